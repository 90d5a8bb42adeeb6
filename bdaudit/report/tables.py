"""The report's tables, as cleaned text: what every renderer shows, before any markup."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bdaudit.report.content import COLUMNS, LISTED, ROWS, STAGES_SHOWN, cut, self_checks
from bdaudit.report.controls import journey
from bdaudit.report.schema import Finding, Report
from bdaudit.report.words import ORACLE, OUTCOMES, SUBJECTS, clean, figure, metric, rate, stage, subject

SQUARE = 12
"""Most models across."""


@dataclass(frozen=True)
class Table:
    """A titled table of cleaned text; the first column names the row.

    strong: (row, column) of the cells that stand out.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    left_out: int = 0
    strong: frozenset[tuple[int, int]] = frozenset()

    def written(self, plain: Callable[[str], str], strong: Callable[[str], str]) -> list[list[str]]:
        """Write each cell in some markup, and mark what stands out in it."""
        return [
            [strong(plain(cell)) if (r, c) in self.strong else plain(cell) for c, cell in enumerate(row)]
            for r, row in enumerate(self.rows)
        ]


def summary(report: Report) -> list[Table]:
    """Make one table a stage: subjects down, metrics across, each cell a rate with its interval."""
    stages: defaultdict[str, list[Finding]] = defaultdict(list)
    for f in report.findings:
        stages[f.probe].append(f)
    order = sorted(stages, key=lambda p: p != "evaluation")  # stable: evaluation first, then as measured
    return [table for probe in order[:STAGES_SHOWN] for table in _stage_tables(probe, stages[probe])]


def _stage_tables(probe: str, findings: list[Finding]) -> list[Table]:
    """Make a stage's table, and a square one a metric where perturbations made on several models were exchanged."""
    travelled = [(where, f) for f in findings if (where := journey(f))]
    if len({made for (made, _), _ in travelled}) < 2:
        return [_stage_table(probe, findings)]
    rest = [f for f in findings if not journey(f)]
    metrics, _ = cut(dict.fromkeys(f.metric for _, f in travelled), COLUMNS)
    squares = [_square(probe, m, [(where, f) for where, f in travelled if f.metric == m]) for m in metrics]
    return ([_stage_table(probe, rest)] if rest else []) + squares


def _square(probe: str, metric_name: str, travelled: list[tuple[tuple[str, str], Finding]]) -> Table:
    """Make the table of one metric: the models perturbations were made on down, those they were tried on across."""
    made_on, left_out = cut(dict.fromkeys(made for (made, _), _ in travelled), ROWS)
    tried = dict.fromkeys(tried for (_, tried), _ in travelled)
    tried_on, dropped = cut([*(m for m in made_on if m in tried), *(t for t in tried if t not in made_on)], SQUARE)
    cells = {where: rate(f) for where, f in reversed(travelled)}
    rows = [[clean(made, 60), *(cells.get((made, name), "") for name in tried_on)] for made in made_on]
    title = f"{stage(probe)}: {metric(metric_name)}, made on (down) and tried on (across)"
    headers = [clean(name, 60) if name else SUBJECTS["reference"] for name in tried_on]
    return Table(title, ["made on", *headers], rows, left_out + dropped)


def _stage_table(probe: str, findings: list[Finding]) -> Table:
    metrics, dropped = cut(dict.fromkeys(f.metric for f in findings), COLUMNS)
    names = list(SUBJECTS)
    groups: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for f in findings:
        groups[names.index(f.subject), f.variant].append(f)
    keys, left_out = cut(sorted(groups, key=lambda k: k[0]), ROWS)
    rows = []
    for key in keys:
        cells: dict[str, str] = {}
        counts: dict[str, None] = {}
        for f in groups[key]:
            if f.metric in metrics:
                cells.setdefault(f.metric, rate(f))
                if f.n is not None:
                    counts[count(f.n)] = None
        rows.append([subject(groups[key][0]), *(cells.get(m, "") for m in metrics), " / ".join(list(counts)[:3])])
    return Table(stage(probe), ["model", *(metric(m) for m in metrics), "images"], rows, left_out + dropped)


def flat(report: Report) -> Table:
    """Make the table of all findings, a row each, as in the JSON document."""
    headers = ["probe", "subject", "variant", "metric", "value", "low", "high", "n", "seeds", "spread"]
    kept, left_out = cut(report.findings, LISTED)
    rows = [
        [
            clean(f.probe, 60), f.subject, clean(f.variant, 60), clean(f.metric, 60), figure(f.value, f.metric),
            *("" if e is None else figure(e, f.metric) for e in (f.low, f.high)),
            count(f.n), count(f.seeds), "" if f.spread is None else figure(f.spread, f.metric),
        ]
        for f in kept
    ]  # fmt: skip
    return Table("All findings", headers, rows, left_out)


def granted(report: Report) -> Table:
    """Make the table of what each plugin was given."""
    kept, left_out = cut(report.granted, ROWS)
    rows = [[clean(g.plugin, 60), clean(g.input, 60), clean(g.source), ORACLE if g.oracle else "no"] for g in kept]
    return Table("What was granted", ["plugin", "input", "from", "oracle"], rows, left_out)


def checked(report: Report) -> Table:
    """Make the table of what the audit checked about itself; what was found of several models alike shares a row."""
    subjects: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for c in report.self_checks:
        subjects[clean(c.name, 80), OUTCOMES[c.outcome], clean(c.detail, 600)].append(clean(c.subject, 60))
    kept, left_out = cut(subjects.items(), ROWS)
    rows = [
        [name, ", ".join(of[:8]) + (", …" if len(of) > 8 else ""), outcome, detail]
        for (name, outcome, detail), of in kept
    ]
    return Table(self_checks(report), ["check", "of", "came out", "what was found"], rows, left_out)


def policy(report: Report) -> Table:
    """Make the table of the policy's bounds, each with what it means."""
    fields = type(report.policy).model_fields
    rows = []
    for name, field in fields.items():
        value = getattr(report.policy, name)
        shown = figure(value) if isinstance(value, float) else _scalar(value)
        rows.append([name, shown, clean(field.description or "")])
    return Table("Policy", ["bound", "value", "meaning"], rows)


def inputs(report: Report) -> Table:
    """Make the table of what entered, with sizes and hashes."""
    kept, left_out = cut(report.inputs, ROWS)
    rows = [[clean(name, 60), "\n".join(_pairs(flatten(report.inputs[name])))] for name in kept]
    return Table("Inputs", ["input", "what it was"], rows, left_out)


def provenance(report: Report) -> Table:
    """Make the table of how the audit was run."""
    pairs, left_out = cut(flatten(report.provenance) if report.provenance else [], LISTED)
    return Table("Provenance", ["what", "value"], [[k, v] for k, v in pairs], left_out)


def count(n: int | None) -> str:
    """Write how many, with thousands apart."""
    return "" if n is None else f"{n:,}" if abs(n) < 10**15 else "over 10^15"


def flatten(value: object, name: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    """Walk nested values as (dotted name, text) pairs, in their own order."""
    if isinstance(value, Mapping) and value and depth < 8:
        for key, inner in islice(value.items(), LISTED):
            part = clean(key, 80)
            yield from flatten(inner, f"{name}.{part}" if name else part, depth + 1)
    elif isinstance(value, list | tuple) and depth < 8 and any(isinstance(v, Mapping | list | tuple) for v in value):
        for i, inner in enumerate(value[:LISTED]):
            yield from flatten(inner, f"{name}[{i}]", depth + 1)
    else:
        yield name, _scalar(value)


def _scalar(value: object) -> str:
    if value is None or value in ("", [], {}, ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return clean(", ".join(_scalar(v) for v in value[:50]) + (", …" if len(value) > 50 else ""), 1000)
    return clean(value if isinstance(value, str | float) else _repr(value), 1000)


def _repr(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a bottomless nest
        return f"{type(value).__name__} too large to show"


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{k}: {v}" if k else v for k, v in islice(pairs, 40)]
