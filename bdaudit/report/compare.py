"""Several audits side by side: what they share, where they differ, and whether they may be compared at all.

The first audit is A; the others are held against it. Like `content` and `tables`, this module gives cleaned words and
leaves the markup to the renderers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from string import ascii_uppercase
from typing import Any

from bdaudit.report import tables
from bdaudit.report.content import LISTED, ROWS, STAGES_SHOWN, Bar, Kind, cut, headline, reactivations
from bdaudit.report.controls import contrast
from bdaudit.report.schema import Finding, Report
from bdaudit.report.tables import Table
from bdaudit.report.words import NUMBERS, VERDICT_WORDS, clean, metric, rate, stage, subject

MOST, NAMED = 8, 8
"""Most audits beside one another, and most figures named in a sentence."""

ABSENT = "not recorded"
ALIKE = (
    "Same suspect model, same images, same aim of the attack, same policy, same options of the probes that they share."
)

EXPLAINED = (
    "Differences are in points, against A; square brackets: 95% interval for the difference of two independent rates "
    "(Newcombe's hybrid score). Where both were measured on the same images, which reports do not pair, it is wider "
    "than it need be, as long as the models tend to err on the same images. It covers the choice of images alone: "
    "another seed may move either figure further."
)

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Audit:
    """A report, the letter it goes by, and the file it was read from."""

    letter: str
    source: str
    report: Report


def audits(named: Sequence[tuple[str, Report]]) -> list[Audit]:
    """Letter reports in the order in which they were given."""
    return [Audit(letter, clean(name, 80), r) for letter, (name, r) in zip(ascii_uppercase, named[:MOST], strict=False)]


@dataclass(frozen=True)
class Section:
    """A heading with sentences, and tables of figures or of words."""

    title: str
    lines: list[str] = field(default_factory=list)
    figures: list[Table] = field(default_factory=list)
    words: list[Table] = field(default_factory=list)


def title(compared: Sequence[Audit]) -> str:
    """Name the whole."""
    return f"{len(compared)} audits side by side"


def sections(compared: Sequence[Audit]) -> list[Section]:
    """Arrange the comparison as people read it: may it be made, how did each end, what differs."""
    against = unlike(compared)
    shared, policy, ran = figures(compared), policies(compared), provenance(compared)
    made = [
        Section("NOT like for like", against) if against else Section("Like for like", [ALIKE]),
        Section("Verdicts", [f"{a.letter}: {headline(a.report)}" for a in compared], words=[verdicts(compared)]),
        Section("Figures", [EXPLAINED] if shared else ["A shares no figure with another."], figures=shared),
        Section("Figures that not all have", missing(compared)),
        Section("Policy", words=[policy]) if policy.rows else Section("Policy", ["The same in all."]),
        Section("Provenance", words=[ran]) if ran.rows else Section("Provenance", ["The same in all, but for times."]),
    ]
    return [s for s in made if s.lines or s.words]


def verdicts(compared: Sequence[Audit]) -> Table:
    """Make the table of the audits, each with its verdict."""
    rows = [[a.letter, VERDICT_WORDS[a.report.verdict], clean(a.report.title), a.source] for a in compared]
    return Table("Verdicts", ["audit", "verdict", "title", "file"], rows)


def unlike(compared: Sequence[Audit]) -> list[str]:
    """Say why these audits are no comparison of like with like; empty where nothing recorded speaks against it."""
    first, *others = compared
    said = []
    for what, place in _CONDITIONS.items():
        mine = place(first.report)
        theirs = {o.letter: place(o.report) for o in others}
        if differing := [letter for letter, value in theirs.items() if None not in (mine, value) and value != mine]:
            said.append(f"{', '.join(differing)} {'differs' if len(differing) == 1 else 'differ'} from A in {what}.")
        if unknown := [letter for letter, value in ((first.letter, mine), *theirs.items()) if value is None]:
            said.append(f"{what[:1].upper()}{what[1:]}: not recorded in {', '.join(unknown)}, so this cannot be told.")
    probes = dict.fromkeys(f.probe for a in compared for f in a.report.findings)
    for probe in islice(probes, ROWS):
        differing = [o.letter for o in others if _differs(_probe(first.report, probe), _probe(o.report, probe))]
        if differing:
            named = ", ".join(["A", *differing])
            said += [f"The options of the probe {clean(probe, 60)} are not the same in {named}."]
    return said


def figures(compared: Sequence[Audit]) -> list[Table]:
    """Make one table a stage of the figures that A and another audit have, with their differences from A."""
    first, *others = ({_key(f): f for f in reversed(a.report.findings)} for a in compared)
    shared = dict.fromkeys(k for f in compared[0].report.findings if any((k := _key(f)) in o for o in others))
    headers = ["figure", *(a.letter for a in compared), *(f"{a.letter} - A" for a in compared[1:])]
    stages: dict[str, list[list[str]]] = {}
    for key in shared:
        a, rest = first[key], [o.get(key) for o in others]
        row = [f"{metric(a.metric)}, {subject(a)}", *(rate(f, spread=False) if f else "" for f in (a, *rest))]
        stages.setdefault(a.probe, []).append([*row, *(difference(a, f) if f else "" for f in rest)])
    return [
        Table(stage(probe), headers, *cut(stages[probe], ROWS))
        for probe in islice(sorted(stages, key=lambda p: p != "evaluation"), STAGES_SHOWN)
    ]


def missing(compared: Sequence[Audit]) -> list[str]:
    """Say which figures not every audit has."""
    everywhere = set.intersection(*({_key(f) for f in a.report.findings} for a in compared))
    said = []
    for a in compared:
        alone = [f for f in a.report.findings if _key(f) not in everywhere]
        named = list(dict.fromkeys(f"{metric(f.metric)}, {subject(f)} ({stage(f.probe)})" for f in alone))
        more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
        said += [f"{a.letter}: {'; '.join([*named[:NAMED], *more])}."] if named else []
    return said


def policies(compared: Sequence[Audit]) -> Table:
    """Make the table of the policy's bounds that are not the same in all."""
    bounds = zip(*(tables.policy(a.report).rows for a in compared), strict=True)
    rows = [[same[0][0], *(value for _, value, _ in same)] for same in bounds]
    return Table("Policy, where it differs", ["bound", *(a.letter for a in compared)], [r for r in rows if _varies(r)])


def provenance(compared: Sequence[Audit]) -> Table:
    """Make the table of inputs, options, seeds and versions that are not the same in all; times always differ."""
    sides = [dict(_recorded(a.report)) for a in compared]
    names = dict.fromkeys(name for side in sides for name in side)
    rows = [[name, *(side.get(name, ABSENT) for side in sides)] for name in names]
    kept, left_out = cut([r for r in rows if _varies(r)], ROWS)
    return Table("Provenance, where it differs", ["what", *(a.letter for a in compared)], kept, left_out)


def bars(compared: Sequence[Audit], limit: int = 24) -> list[Bar]:
    """Choose the attack success rates to draw beside one another: before, after, and after each reactivation."""
    wanted = {
        "Before purification": ("evaluation", "suspect", "o_asr"),
        "Purified": ("evaluation", "purified", "o_asr"),
    }
    for a in compared:
        wanted |= {stage(f.probe): (f.probe, "purified", "p_asr") for f in reactivations(a.report)}
    out = []
    for when, (probe, whose, name) in wanted.items():
        for i, a in enumerate(compared):
            if f := a.report.find(name, probe=probe, subject=whose):
                out.append(Bar(f"{a.letter}: {when}", f, _KINDS[min(i, 2)]))
    return out[:limit]


def difference(a: Finding, b: Finding) -> str:
    """Write b - a: in points with an interval if both are rates over images, else without one."""
    if a.metric.endswith("_p"):
        return ""  # the difference of two p-values is no figure
    if a.metric in NUMBERS or max(abs(a.value), abs(b.value)) > 1:
        return f"{b.value - a.value:+.3g}"
    text = f"{100 * (b.value - a.value):+.1f}"
    if not (_is_rate(a) and _is_rate(b)):
        return text
    _, low, high = contrast(b, a)
    return f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


_KINDS: list[Kind] = ["attack", "reference", "null"]

_CONDITIONS: dict[str, Callable[[Report], object]] = {
    "the suspect model": lambda r: _hash(r.inputs, "model", "weights_sha256"),
    "the images for clean accuracy": lambda r: _hash(r.inputs, "test", "sha256"),
    "the images for attack success": lambda r: _hash(r.inputs, "evaluation", "sha256"),
    "the images to retune with": lambda r: _hash(r.inputs, "reactivation", "sha256"),
    "the reference": lambda r: _hash(r.inputs, "reference", "weights_sha256") or "none",
    "what the attack aims at": lambda r: _hash(r.inputs, "goal"),
    "the policy": lambda r: r.policy,
}


def _hash(value: object, *path: str) -> str | None:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) and value else None


def _probe(report: Report, name: str) -> object:
    probes = report.provenance.get("probes")
    return probes.get(name) if isinstance(probes, Mapping) else None


def _differs(mine: object, theirs: object) -> bool:
    return None not in (mine, theirs) and mine != theirs


def _key(f: Finding) -> Key:
    return f.probe, f.subject, f.variant, f.metric


def _is_rate(f: Finding) -> bool:
    """Tell whether the interval is Wilson's: that of a share of n images."""
    return f.metric.endswith(("acc", "asr")) and bool(f.n) and None not in (f.low, f.high)


def _recorded(report: Report) -> Iterator[tuple[str, str]]:
    kept: dict[str, Any] = {k: v for k, v in report.provenance.items() if k != "times"}
    yield from islice(tables.flatten({"inputs": report.inputs} | kept), LISTED)


def _varies(row: Sequence[str]) -> bool:
    return len(set(row[1:])) > 1
