"""A bench as one HTML file: a table to sort and to filter, a colour for each figure, a link to each audit's report.

It loads nothing: the one script in it is let through by its hash alone, and what came from outside is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from bdaudit.bench.show import HIGHER, Entry, Figure, Pivot, finding_of, word
from bdaudit.bench.store import COORDINATES, CellRow, Result, Store, place_of
from bdaudit.inputs.files import atomic_file
from bdaudit.report import content
from bdaudit.report.html import template

PAGE = "bench.html"
_SCRIPT = Path(content.__file__).with_name("templates") / "bench.js"


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
        probes=content.clean(store.title()[1]),
        headers=[*axes, "verdict", *(f.header for f in shown.figures)],
        choices=[(axis, list(dict.fromkeys(v))) for axis, v in zip(axes, columns, strict=False) if len(set(v)) > 1],
        failures=[(kind, content.clean(label), content.clean(why, 600)) for kind, label, why in store.failures()],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write_page(store: Store, shown: Pivot, folder: Path) -> Path:
    """Put the page into the bench's folder."""
    with atomic_file(folder / PAGE) as partial:
        partial.write_text(render(store, shown, folder, folder), encoding="utf-8")
    return folder / PAGE


def _audits(
    cells: Sequence[CellRow], results: Sequence[Result], axes: Sequence[str], figures: Sequence[Figure], to: str
) -> list[Audit]:
    found = {(r.cell.cell, Figure(r.probe, r.subject, r.metric, r.variant)): r for r in results}
    entries = {f: [r for (_, g), r in found.items() if g == f] for f in figures}
    rows = []
    for c in cells:
        own = [(f, found.get((c.cell, f))) for f in figures]
        shown = [
            Shown(
                content.rate(finding_of(r), spread=False),
                _heat(f, r.value, [e.value for e in entries[f]]),
                f"{r.value:.12g}",
            )
            if r is not None
            else Shown("", "0")
            for f, r in own
        ]
        where = [content.clean(word(a, c.coordinates[a]), 80) for a in axes]
        done = c.state == "done"
        rows.append(Audit(where, c.state, c.verdict or "", c.oracle, _link(c.cell, to) if done else "", shown))
    return rows


def _summary(shown: Pivot, to: str) -> list[Line]:
    values: dict[Figure, list[float]] = {}
    for row in shown.rows:
        for e in row.entries:
            values.setdefault(e.figure, []).extend([e.mean] if e.results else [])
    return [Line(row.where, [_entry(e, values[e.figure], to) for e in row.entries], row.verdicts) for row in shown.rows]


def _entry(entry: Entry, values: Sequence[float], to: str) -> Shown:
    if not entry.results:
        return Shown("", "0")
    link = _link(entry.results[0].cell.cell, to) if len(entry.results) == 1 else ""
    return Shown(entry.text(), _heat(entry.figure, entry.mean, values), link=link, best=entry.best)


def _heat(figure: Figure, value: float, values: Sequence[float]) -> str:
    """How hot a figure is: a share as it is, one of which more is better by how far it falls behind the best."""
    if figure.metric in HIGHER:
        spread = max(values) - min(values)
        heat = (max(values) - value) / spread if spread else 0.0
    else:
        heat = value if figure.metric not in content.NUMBERS else 0.0
    return f"{min(1.0, max(0.0, heat)):.3f}"


def _link(cell: str, to: str) -> str:
    return f"{to}/{place_of('cell', cell).as_posix()}/report.html"
