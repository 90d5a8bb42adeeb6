"""The table of a bench in every format: terminal, GitHub, LaTeX, CSV; the page is `page.py`'s."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from bdaudit.bench.pivot import Pivot
from bdaudit.errors import UsageError, one_line
from bdaudit.report import latex, markdown, terminal
from bdaudit.report.tables import Table

Format = Literal["terminal", "github", "latex", "csv", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(shown: Pivot, format: Format, *, plain: bool = False) -> str:
    """Write the table in one format; html is `page.render`'s. plain: without intervals and deviations."""
    if format == "csv":
        return _csv(shown)
    notes = shown.notes if plain else (*shown.notes, "[ ]: 95% interval over the images of one audit.")
    return lay_out(shown.table(plain=plain), notes, format)


def lay_out(table: Table, notes: Sequence[str], format: Format) -> str:
    """Write a table with notes below it."""
    match format:
        case "terminal":
            return "\n\n".join([terminal.grid(table), *notes]) + "\n"
        case "github":
            return "\n\n".join([markdown.grid(table), *map(markdown.escape, notes)]) + "\n"
        case "latex":
            caption = f"\\textbf{{{latex.escape(table.title)}}}"
            return latex.floats(caption, "", latex.figures(replace(table, title="")), notes)
    raise UsageError(f"unknown format {one_line(format, 40)!r}, expected one of {', '.join(FORMATS)}")


def _csv(shown: Pivot) -> str:
    """Write plain numbers: of each figure mean, standard deviation and number of audits; of one audit its interval."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    heads = [" ".join([*where, f.name]) for where in shown.across for f in shown.figures]
    suffixes = ("", " sd", " audits", " low", " high")
    table.writerow([*shown.down, *(_inert(f"{head}{s}") for head in heads for s in suffixes), "verdicts"])
    for row in shown.rows:
        cells: list[object] = []
        for e in row.entries:
            one = e.results[0] if len(e.results) == 1 else None
            cells += [e.mean if e.results else "", e.spread if e.spread is not None else "", len(e.results)]
            cells += [one.low, one.high] if one and one.low is not None else ["", ""]
        table.writerow([*map(_inert, row.where), *cells, _inert(row.verdicts)])
    return out.getvalue()


def _inert(text: str) -> str:
    """Keep a spreadsheet from taking text for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text
