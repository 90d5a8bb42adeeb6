"""Render a report for whoever reads it: a person at a terminal, a browser, a pull request, a CI gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.report.formats import FORMATS, SIDE_BY_SIDE, Format
from bdaudit.report.schema import Report


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
        case "latex":
            from bdaudit.report import latex

            return latex.render(report)
        case "junit":
            from bdaudit.report import junit

            return junit.render(report)
        case "html":
            from bdaudit.report import html

            return html.render(report)
        case "json":
            return report.to_json()
        case _:
            raise UsageError(_unknown(format, FORMATS))


def render_side_by_side(named: Sequence[tuple[str, Report]], format: Format, *, color: bool = False) -> str:
    """Show several reports, each with the name of its file, beside one another; the first is what the others are held
    against.

    Raises UsageError for a format that holds one report alone, and for more reports than fit.
    """
    from bdaudit.report import compare

    if format in FORMATS and format not in SIDE_BY_SIDE:
        raise UsageError(f"{format} holds one audit; audits side by side come as {', '.join(SIDE_BY_SIDE)}")
    if not 2 <= len(named) <= compare.MOST:
        raise UsageError(f"got {len(named)} reports to compare, expected 2 to {compare.MOST}")
    audits = compare.audits(named)
    match format:
        case "text":
            from bdaudit.report import terminal

            return terminal.side_by_side(audits, color=color)
        case "markdown":
            from bdaudit.report import markdown

            return markdown.side_by_side(audits)
        case "latex":
            from bdaudit.report import latex

            return latex.side_by_side(audits)
        case "html":
            from bdaudit.report import html

            return html.side_by_side(audits)
        case _:
            raise UsageError(_unknown(format, SIDE_BY_SIDE))


def _unknown(format: object, known: Iterable[str]) -> str:
    name = one_line(format, 40)
    return f"unknown report format {name!r}, expected one of {', '.join(known)}{did_you_mean(name, known)}"
