"""Render a report for whoever reads it: a person at a terminal, a browser, a pull request, a CI gate."""

from __future__ import annotations

from typing import Literal, get_args

from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.report.schema import Report

Format = Literal["text", "html", "markdown", "junit", "json"]
FORMATS: tuple[str, ...] = get_args(Format)


def render(report: Report, format: Format, *, color: bool = False) -> str:
    """Turn a report into text; the same report gives the same bytes.

    color marks the verdict with terminal colours and is heeded by `text` alone: pass it where stdout is a
    terminal. Raises UsageError for an unknown format. jinja2 and matplotlib are imported by `html` only.
    """
    match format:
        case "text":
            from bdaudit.report import terminal

            return terminal.render(report, color=color)
        case "markdown":
            from bdaudit.report import markdown

            return markdown.render(report)
        case "junit":
            from bdaudit.report import junit

            return junit.render(report)
        case "html":
            from bdaudit.report import html

            return html.render(report)
        case "json":
            return report.to_json()
        case _:
            name = one_line(format, 40)
            raise UsageError(
                f"unknown report format {name!r}, expected one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}"
            )
