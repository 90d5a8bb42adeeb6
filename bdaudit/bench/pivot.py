"""A bench's findings as the table of a paper, before any markup: axes down and across, means over the rest."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bdaudit.bench.store import COORDINATES, CellRow, Result, Store
from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.report import words
from bdaudit.report.schema import Finding
from bdaudit.report.tables import Table

HIGHER = frozenset({"c_acc", "p_c_acc", "o_c_acc", "robust_acc", "o_robust_acc", "p_robust_acc", "der"})
LOWER = frozenset({"asr", "o_asr", "p_asr", "excess", "transfer_p_asr"})
"""Metrics of which more, or less, is better for a defense; of others none is best."""

_SUBJECTS = ("suspect", "purified", "reference", "null")
_FIGURE = re.compile(r"((?:[\w-]+\.){0,2})(\w+)(?:\[(.*)\])?")


@dataclass(frozen=True)
class Figure:
    """Which finding of each audit a column shows."""

    probe: str
    subject: str
    metric: str
    variant: str = ""

    @property
    def name(self) -> str:
        """What tells it from all others, as --metric takes it."""
        return f"{self.probe}.{self.subject}.{self.metric}" + (f"[{self.variant}]" if self.variant else "")

    @property
    def header(self) -> str:
        before = "" if self.probe == "evaluation" else f"{words.clean(self.probe, 40)} "
        after = "" if self.subject == "purified" else f" ({self.subject})"
        variant = f" [{words.clean(self.variant, 40)}]" if self.variant else ""
        return f"{before}{words.metric(self.metric)}{after}{variant}"

    @classmethod
    def of(cls, result: Result) -> Figure:
        return cls(result.probe, result.subject, result.metric, result.variant)


@dataclass(frozen=True)
class Entry:
    """One figure of one row: the findings behind it, one an audit."""

    figure: Figure
    results: tuple[Result, ...]
    best: bool = False

    @property
    def mean(self) -> float:
        return statistics.fmean(r.value for r in self.results)

    @property
    def spread(self) -> float | None:
        return statistics.stdev(r.value for r in self.results) if len(self.results) > 1 else None

    def text(self, *, plain: bool = False) -> str:
        """One audit's figure with its interval over images, or the mean of several with their standard deviation.

        plain: the figure alone.
        """
        if not self.results:
            return ""
        name = self.figure.metric
        if plain:
            return words.figure(self.mean, name)
        if self.spread is None:
            return words.rate(finding_of(self.results[0]), spread=False)
        return f"{words.figure(self.mean, name)} ± {words.figure(self.spread, name).rstrip('%')}"


@dataclass(frozen=True)
class Row:
    """A row of the table: its place on the axes that run down, its audits, and its figures from left to right."""

    where: tuple[str, ...]
    cells: tuple[CellRow, ...]
    entries: tuple[Entry, ...]

    @property
    def verdicts(self) -> str:
        counts = Counter(c.verdict for c in self.cells if c.state == "done" and c.verdict)
        return ", ".join(f"{n} {verdict}" if len(self.cells) > 1 else verdict for verdict, n in sorted(counts.items()))


@dataclass(frozen=True)
class Pivot:
    """The table of a bench before any markup.

    down: names of the axes that run down. axes: of those that run across. across: the places on them, from left to
    right. averaged: the axes with several values that the figures are means over.
    """

    title: str
    down: tuple[str, ...]
    across: tuple[tuple[str, ...], ...]
    axes: tuple[str, ...]
    figures: tuple[Figure, ...]
    rows: tuple[Row, ...]
    averaged: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def headers(self) -> list[str]:
        return [": ".join([*self._heads(where), f.header]) for where in self.across for f in self.figures]

    def _heads(self, where: Sequence[str]) -> list[str]:
        """Name a place on the axes that run across; a bare number does not say of what."""
        plain = ("data", "arch", "attack", "defense")
        short = [words.clean(w, 80) for w in where]
        return [w if axis in plain else f"{axis} {w}" for axis, w in zip(self.axes, short, strict=True)]

    def table(self, *, plain: bool = False) -> Table:
        """Lay it out as every renderer takes it; plain: without intervals and deviations."""
        down = len(self.down)
        rows = [
            [*(words.clean(w, 80) for w in r.where), *(e.text(plain=plain) for e in r.entries), r.verdicts]
            for r in self.rows
        ]
        strong = {(i, down + j) for i, r in enumerate(self.rows) for j, e in enumerate(r.entries) if e.best}
        headers = [*self.down, *self.headers, "verdicts"]
        return Table(self.title, headers, rows, strong=frozenset(strong))


def pivot(store: Store, *, down: Sequence[str] = (), across: Sequence[str] = (), metrics: Sequence[str] = ()) -> Pivot:
    """Arrange what a bench has found.

    down, across: axes; by default those with several values run down, seeds aside. metrics: `[PROBE.][SUBJECT.]METRIC`,
    with `[VARIANT]` after it where it has one; by default accuracy, attack success and what each reactivation reached.
    Means are over all axes that are not named.
    """
    for axis in (*down, *across):
        if axis not in COORDINATES:
            raise UsageError(
                f"{one_line(axis, 40)!r} is no axis{did_you_mean(axis, COORDINATES)} (axes: {', '.join(COORDINATES)})"
            )
        if (*down, *across).count(axis) > 1:
            raise UsageError(f"{axis} is named twice; an axis runs down or across")
    cells, results = store.cells(), store.results()
    varied = [a for a in COORDINATES if len({str(c.coordinates[a]) for c in cells}) > 1]
    rows_by = tuple(down) or tuple(a for a in varied if a not in ("seed", *across)) or _otherwise(across)
    figures = tuple(figure(m, results) for m in metrics) or default_figures(results)
    title, _ = store.title()
    averaged = tuple(a for a in varied if a not in (*rows_by, *across))
    columns = tuple(dict.fromkeys(_where(c, across) for c in cells)) or ((),)
    made = _rows(cells, results, rows_by, across, columns, figures)
    return Pivot(
        words.clean(title) or "Bench",
        rows_by,
        columns,
        tuple(across),
        figures,
        tuple(_with_best(made, rows_by, across, columns)),
        averaged,
        tuple(_notes(cells, averaged)),
    )


def _otherwise(across: Sequence[str]) -> tuple[str]:
    """Choose an axis for the rows where none that varies is left: every renderer puts names in the first column."""
    for axis in ("defense", *COORDINATES):
        if axis not in across:
            return (axis,)
    raise UsageError("every axis runs across; leave one for the rows")


def figure(text: str, results: Iterable[Result]) -> Figure:
    """Read which figure a column is to show; one that nothing measured is an error."""
    matched = _FIGURE.fullmatch(text.strip())
    known = dict.fromkeys(map(Figure.of, results))
    if matched:
        *names, metric = [*filter(None, matched[1].split(".")), matched[2]]
        subject = next((n for n in names if n in _SUBJECTS), "purified")
        probes = [n for n in names if n not in _SUBJECTS]
        meant = [f for f in known if (f.subject, f.metric) == (subject, metric) and (not probes or f.probe in probes)]
        found = [f for f in meant if f.variant == (matched[3] or "")]
        if len(found) == 1:
            return found[0]
        if found or (meant and matched[3] is None):
            raise UsageError(
                f"--metric {one_line(text, 60)}: is not exact enough; say which: {_listed(found or meant)}"
            )
    counts = Counter(f.metric for f in known if f.subject == "purified" and not f.variant)
    enough = [metric for metric, n in counts.items() if n == 1]
    close = did_you_mean(text, dict.fromkeys([*(f.name for f in known), *enough]))
    raise UsageError(
        f"--metric {one_line(text, 60)}: no such figure was measured{close}; as PROBE.SUBJECT.METRIC[VARIANT] there are: "
        f"{_listed(list(known))}"
    )


def _listed(figures: Sequence[Figure]) -> str:
    """List figures by names that --metric takes."""
    return ", ".join([one_line(f.name, 160) for f in figures[:12]] + ["..."] * (len(figures) > 12))


def default_figures(results: Iterable[Result]) -> tuple[Figure, ...]:
    """Choose accuracy and attack success after purification, and what each probe reached."""
    known = dict.fromkeys(map(Figure.of, results))
    wanted = [Figure("evaluation", "purified", metric) for metric in ("c_acc", "o_asr")]
    wanted += [f for f in known if f == Figure(f.probe, "purified", "p_asr")]
    return tuple(f for f in wanted if f in known)


def finding_of(result: Result) -> Finding:
    """Make a report's row of a bench's."""
    return Finding.model_construct(**{name: getattr(result, name) for name in Finding.model_fields})


def _where(cell: CellRow, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(word(axis, cell.coordinates[axis]) for axis in axes)


def word(axis: str, value: object) -> str:
    """Write a place on an axis."""
    return {"budget": "all", "arch": "default"}.get(axis, "") if value in (None, "") else str(value)


def _rows(
    cells: Sequence[CellRow],
    results: Sequence[Result],
    down: Sequence[str],
    across: Sequence[str],
    columns: Sequence[tuple[str, ...]],
    figures: Sequence[Figure],
) -> list[Row]:
    found: defaultdict[tuple[object, ...], list[Result]] = defaultdict(list)
    wanted = set(figures)
    for r in results:
        if (asked := Figure.of(r)) in wanted:
            found[_where(r.cell, down), _where(r.cell, across), asked].append(r)
    groups: defaultdict[tuple[str, ...], list[CellRow]] = defaultdict(list)
    for cell in cells:
        groups[_where(cell, down)].append(cell)
    return [
        Row(
            where,
            tuple(own),
            tuple(Entry(f, tuple(found[where, column, f])) for column in columns for f in figures),
        )
        for where, own in groups.items()
    ]


def _with_best(
    rows: Sequence[Row], down: Sequence[str], across: Sequence[str], columns: Sequence[tuple[str, ...]]
) -> list[Row]:
    """Mark the best defense of each figure, everything else being the same; one that knows the trigger cannot be it."""
    groups: defaultdict[tuple[object, ...], dict[tuple[int, int], Entry]] = defaultdict(dict)
    for i, row in enumerate(rows):
        for j, entry in enumerate(row.entries):
            column = columns[j * len(columns) // len(row.entries)]
            apart = tuple(w for a, w in zip((*down, *across), (*row.where, *column), strict=True) if a != "defense")
            if entry.results and not any(r.cell.oracle for r in entry.results):
                groups[apart, entry.figure][i, j] = entry
    best = {place for rivals in groups.values() for place in _best(rivals)}
    return [
        replace(row, entries=tuple(replace(e, best=(i, j) in best) for j, e in enumerate(row.entries)))
        for i, row in enumerate(rows)
    ]


def _best(rivals: Mapping[tuple[int, int], Entry]) -> list[tuple[int, int]]:
    """Choose the best of at least two that are means over equally many audits: who failed the hard ones cannot win."""
    most = max(len(e.results) for e in rivals.values())
    means = {place: e.mean for place, e in rivals.items() if len(e.results) == most}
    metric = next(iter(rivals.values())).figure.metric
    if len(set(means.values())) < 2 or metric not in HIGHER | LOWER:
        return []
    top = (max if metric in HIGHER else min)(means.values())
    return [place for place, mean in means.items() if mean == top]


def _notes(cells: Sequence[CellRow], averaged: Sequence[str]) -> list[str]:
    notes = []
    if averaged:
        notes.append(f"Mean ± standard deviation over: {', '.join(averaged)}.")
    if any(c.state == "done" for c in cells):
        notes.append("Bold (or *): the best of those with the most audits, defenses that know the trigger aside.")
    counts = Counter(c.state for c in cells)
    missing = [f"{counts[state]} {word}" for state, word in (("failed", "failed"), ("blocked", "failed with what they need"), ("left", "not done yet")) if counts[state]]  # fmt: skip
    if missing:
        notes.append(f"Of {len(cells)} cells {', '.join(missing)}.")
    if any(c.oracle for c in cells):
        names = dict.fromkeys(words.clean(c.coordinates["defense"], 80) for c in cells if c.oracle)
        notes.append(f"{words.ORACLE}: {', '.join(names)} knows the trigger, as no defender does.")
    return notes
