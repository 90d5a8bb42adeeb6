"""Two benches cell by cell: what changed, and what only one of them has."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bdaudit.bench.pivot import Figure, default_figures, figure, word
from bdaudit.bench.store import COORDINATES, CellRow, Result, Store
from bdaudit.errors import InputError
from bdaudit.report import words
from bdaudit.report.tables import Table

Place = tuple[str, ...]
GROUP = tuple(axis for axis in COORDINATES if axis != "seed")


@dataclass(frozen=True)
class Side:
    """The finished cells of one bench by their place, and their findings."""

    cells: dict[Place, CellRow]
    values: dict[tuple[str, Figure], Result]
    results: list[Result]

    @classmethod
    def of(cls, store: Store) -> Side:
        """Read one bench."""
        results = store.results()
        cells = {_place(c, COORDINATES): c for c in store.cells() if c.state == "done"}
        values = {(r.cell.cell, Figure.of(r)): r for r in results}
        return cls(cells, values, results)


@dataclass(frozen=True)
class Comparison:
    """The table of differences, B less A, and what to know about it."""

    table: Table
    notes: tuple[str, ...]


def compare(a: Store, b: Store, metrics: Sequence[str] = ()) -> Comparison:
    """Hold the cells of B against those of A at the same place; seeds are paired, then averaged over."""
    left, right = Side.of(a), Side.of(b)
    shared = [place for place in left.cells if place in right.cells]
    if not shared:
        raise InputError("the two benches share no finished cell: nothing can be compared")
    figures = tuple(figure(m, left.results) for m in metrics) or default_figures(left.results)
    axes = [i for i, _ in enumerate(GROUP) if len({p[i] for p in shared}) > 1] or [GROUP.index("defense")]
    groups: dict[Place, list[Place]] = {}
    for place in shared:
        groups.setdefault(tuple(place[i] for i in axes), []).append(place)
    rows = [
        [
            *(words.clean(w, 80) for w in where),
            *(_change(places, f, left, right) for f in figures),
            _verdicts(places, left, right),
        ]
        for where, places in groups.items()
    ]
    headers = [*(GROUP[i] for i in axes), *(f.header for f in figures), "verdicts"]
    same = sum(left.cells[p].cell == right.cells[p].cell for p in shared)
    notes = ["A -> B (difference in points, ± standard deviation of the differences over paired seeds)."]
    notes += [f"{len(shared)} cells in both, {same} of them the same to every option."]
    for name, one, other in (("A", left, right), ("B", right, left)):
        if alone := [p for p in one.cells if p not in other.cells]:
            notes.append(f"{len(alone)} finished cells are only in {name}.")
    return Comparison(Table("A against B", headers, rows), tuple(notes))


def _change(places: Sequence[Place], figure: Figure, left: Side, right: Side) -> str:
    pairs = [
        (x.value, y.value)
        for p in places
        if (x := left.values.get((left.cells[p].cell, figure))) is not None
        and (y := right.values.get((right.cells[p].cell, figure))) is not None
    ]
    if not pairs:
        return ""
    one, two = (words.figure(statistics.fmean(v), figure.metric) for v in zip(*pairs, strict=True))
    differences = [y - x for x, y in pairs]
    scale = 1 if figure.metric in words.NUMBERS else 100
    change = f"{scale * statistics.fmean(differences):+.1f}"
    spread = f" ± {scale * statistics.stdev(differences):.1f}" if len(differences) > 1 else ""
    return f"{one} -> {two} ({change}{spread})"


def _verdicts(places: Sequence[Place], left: Side, right: Side) -> str:
    """Say how many audits end otherwise than they did, and how."""
    pairs = [(left.cells[p].verdict or "", right.cells[p].verdict or "") for p in places]
    changed = [f"{x} -> {y}" for x, y in pairs if x != y]
    return ", ".join(f"{changed.count(c)} {c}" for c in dict.fromkeys(changed)) or "same"


def _place(cell: CellRow, axes: Sequence[str]) -> Place:
    return tuple(word(axis, cell.coordinates[axis]) for axis in axes)
