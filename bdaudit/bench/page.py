"""A bench as one HTML file: a table to sort and to filter, a colour for each figure, a link to each audit's report.

It loads nothing: the one script in it is let through by its hash alone, and what came from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from bdaudit.bench.pivot import HIGHER, Entry, Figure, Pivot, finding_of, word
from bdaudit.bench.store import COORDINATES, CellRow, Result, Store, place_of
from bdaudit.inputs.files import atomic_file
from bdaudit.report import words
from bdaudit.report.html import template

PAGE = "bench.html"
_SCRIPT = Path(words.__file__).with_name("templates") / "bench.js"


class Shown(NamedTuple):
    """One coloured figure. heat: from 0 to 1, the worse for a defense the hotter. value: to sort by."""

    text: str
    heat: str
    value: str = ""
    link: str = ""
    best: bool = False


class Audit(NamedTuple):
    """A row of the table of all audits."""

    where: list[str]
    state: str
    verdict: str
    oracle: bool
    link: str
    cells: list[Shown]


class Line(NamedTuple):
    """A row of the summary."""

    where: tuple[str, ...]
    cells: list[Shown]
    verdicts: str


def render(store: Store, shown: Pivot, folder: Path, beside: Path) -> str:
    """Write the page; folder: the bench's own, beside: where the page will lie, which its links start from."""
    from markupsafe import Markup

    script = _SCRIPT.read_text(encoding="utf-8")
    cells, results = store.cells(), store.results()
    axes = [
        a for a in COORDINATES if a in ("attack", "defense", "seed") or len({str(c.coordinates[a]) for c in cells}) > 1
    ]
    to = quote(os.path.relpath(folder.resolve(), beside.resolve()).replace(os.sep, "/"))
    audits = _audits(cells, results, axes, shown.figures, to)
    columns = list(zip(*(a.where for a in audits), strict=True))
    return template("bench.html").render(
        shown=shown,
        summary=_summary(shown, to),
        summary_headers=[*shown.down, *shown.headers, "verdicts"],
        audits=audits,
        done=sum(c.state == "done" for c in cells),
        probes=words.clean(store.title()[1]),
        headers=[*axes, "verdict", *(f.header for f in shown.figures)],
        choices=[
            (i, axis, list(dict.fromkeys(v)))  # i: its column, whatever axes before it leave no choice
            for i, (axis, v) in enumerate(zip(axes, columns, strict=False))
            if len(set(v)) > 1
        ],
        failures=[words.clean(f.said(folder), 1000) for f in store.failures()],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write_page(store: Store, shown: Pivot, folder: Path) -> None:
    """Put the page into the bench's folder."""
    with atomic_file(folder / PAGE) as partial:
        partial.write_text(render(store, shown, folder, folder), encoding="utf-8")


def _audits(
    cells: Sequence[CellRow], results: Sequence[Result], axes: Sequence[str], figures: Sequence[Figure], to: str
) -> list[Audit]:
    found = {(r.cell.cell, Figure.of(r)): r for r in results}
    ends = _ends((Figure.of(r), r.value) for r in results)
    rows = []
    for c in cells:
        own = [(f, found.get((c.cell, f))) for f in figures]
        shown = [
            Shown(words.rate(finding_of(r), spread=False), _heat(f, r.value, ends[f]), f"{r.value:.12g}")
            if r is not None
            else Shown("", "0")
            for f, r in own
        ]
        where = [words.clean(word(a, c.coordinates[a]), 80) for a in axes]
        done = c.state == "done"
        rows.append(Audit(where, c.state, c.verdict or "", c.oracle, _link(c.cell, to) if done else "", shown))
    return rows


def _summary(shown: Pivot, to: str) -> list[Line]:
    ends = _ends((e.figure, e.mean) for row in shown.rows for e in row.entries if e.results)
    return [Line(row.where, [_entry(e, ends, to) for e in row.entries], row.verdicts) for row in shown.rows]


def _entry(entry: Entry, ends: Mapping[Figure, tuple[float, float]], to: str) -> Shown:
    if not entry.results:
        return Shown("", "0")
    link = _link(entry.results[0].cell.cell, to) if len(entry.results) == 1 else ""
    return Shown(entry.text(), _heat(entry.figure, entry.mean, ends[entry.figure]), link=link, best=entry.best)


def _ends(values: Iterable[tuple[Figure, float]]) -> dict[Figure, tuple[float, float]]:
    """Find the least and the largest value of each figure."""
    found: dict[Figure, tuple[float, float]] = {}
    for figure, value in values:
        low, high = found.get(figure, (value, value))
        found[figure] = (min(low, value), max(high, value))
    return found


def _heat(figure: Figure, value: float, ends: tuple[float, float]) -> str:
    """How hot a figure is: a share as it is, one of which more is better by how far it falls behind the best."""
    if figure.metric in HIGHER:
        least, best = ends
        heat = (best - value) / (best - least) if best > least else 0.0
    else:
        heat = value if figure.metric not in words.NUMBERS else 0.0
    return f"{min(1.0, max(0.0, heat)):.3f}"


def _link(cell: str, to: str) -> str:
    return f"{to}/{place_of('cell', cell).as_posix()}/report.html"
