"""Figures looked up in the committed results, and the rules by which they bear a claim out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bdaudit.report.statistics import wilson
from bdaudit.training.metrics import der
from benchmarks import named, rows_of, spread

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class Rate:
    """A rate over runs (fractions), and on how many images each was taken, 0 where that was not recorded."""

    values: tuple[float, ...]
    n: int = 0

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1 and self.n:
            low, high = wilson(self.values[0] * self.n, self.n)
            return f"{100 * self.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        return spread(100 * v for v in self.values)


@dataclass(frozen=True)
class Part:
    """One figure or comparison that a claim rests on, and whether it bears the claim out."""

    text: str
    holds: bool


@dataclass
class Results:
    """The rows of the committed result files."""

    folder: Path = RESULTS
    tuned: list[dict[str, Any]] = field(init=False)
    """What single defenses left."""
    audits: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.tuned = self.of("defenses", "training", "contaminated", "grey_presets")
        self.audits = self.of("flow_seed", "flow_clean_twin")

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Read the rows of all files whose names begin so."""
        return rows_of(*(file for kind in kinds for file in sorted(self.folder.glob(f"{kind}*.json"))))

    @property
    def attacks(self) -> list[str]:
        """Those that anything was measured on."""
        return list(dict.fromkeys(row["attack"] for row in (*self.tuned, *self.audits)))

    def after(self, attack: str, defense: str, metric: str, eps: float | str = 0.0) -> Rate | None:
        """Look up what a defense left, on pools of which a share eps was exchanged, or as said of each pool."""
        found = [row for row in self.left(attack, defense, eps) if metric in row]
        values = tuple(row[metric] for row in found)
        return Rate(values, found[0]["n"] if metric != "c_acc" else 0) if values else None

    def left(self, attack: str, defense: str, eps: float | str = 0.0) -> list[dict[str, Any]]:
        """Look up the rows of a defense, '' for the suspects.

        Where an attack was measured with several sizes of the clean pool, the smallest counts, for every defense alike.
        """
        there = [row for row in self.tuned if (row["attack"], row["eps"]) == (attack, eps)]
        size = min((row["clean"] for row in there), default=0)
        return [row for row in there if (row["defense"], row["clean"]) == (defense, size)]

    def beside_suspects(self, attack: str, defense: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Look up pairs of rows: the suspect, and what a defense made of it, over the same test images."""
        suspects = {(row["run"], row["n"]): row for row in self.left(attack, "")}
        made = self.left(attack, defense)
        return [(suspects[at], row) for row in made if (at := (row["run"], row["n"])) in suspects]

    def audited(self, attack: str, defense: str, column: str, removed: float = 1.0) -> Rate | None:
        """Look up a figure of whole audits, over their seeds; removed: of models left with so much O-ASR at most."""
        rows = [r for r in self.audits if (r["attack"], r["defense"]) == (attack, defense) and column in r]
        values = tuple(r[column] for r in rows if r["purified.o_asr"] <= removed)
        return Rate(values) if values else None


@dataclass(frozen=True)
class Claim:
    """What a paper says, how it is looked for, and what is known of the cause where it does not show."""

    source: str
    says: str
    parts: Callable[[Results], Iterator[Part]]
    cause: str = ""
    missing: str = ""


def falling(rates: list[Rate], slack: float) -> bool:
    """Whether no rate exceeds the one before it by more than the slack."""
    return all(b.mean <= a.mean + slack for a, b in pairwise(rates))


def costing(results: Results, name: str, least: float, most: float) -> Iterator[Part]:
    """Say of each attack whether a defense costs so much of the suspect's C-ACC (fractions)."""
    for attack in results.attacks:
        if pairs := results.beside_suspects(attack, name):
            suspect, rate = (Rate(tuple(row["c_acc"] for row in rows)) for rows in zip(*pairs, strict=True))
            yield Part(f"{name} on {attack}: {suspect} -> {rate}", least <= suspect.mean - rate.mean <= most)


def effective(results: Results, name: str, least: float) -> Iterator[Part]:
    """Say of each attack whether a defense's DER is at least so much."""
    for attack in results.attacks:
        if pairs := results.beside_suspects(attack, name):
            rate = Rate(tuple(der(a["c_acc"], b["c_acc"], a["o_asr"], b["o_asr"]) for a, b in pairs))
            left = Rate(tuple(b["o_asr"] for _, b in pairs), pairs[0][1]["n"])
            yield Part(f"{name} on {attack}: DER {rate}, ASR {left}", rate.mean >= least)


def ordered(results: Results, names: tuple[str, ...], metric: str = "o_asr", slack: float = 0.01) -> Iterator[Part]:
    """Say of each attack whether the defenses leave less and less, in this order; slack: of a point each."""
    for attack in results.attacks:
        rates = [(name, results.after(attack, name, metric)) for name in names]
        known = [(name, rate) for name, rate in rates if rate]
        if len(known) > 1:
            text = ", ".join(f"{name} {rate}" for name, rate in known)
            yield Part(f"{attack}: {text}", falling([rate for _, rate in known], slack))


def below(
    results: Results, name: str, others: tuple[str, ...], eps: float | str = 0.0, least: float = 0.0
) -> Iterator[Part]:
    """Say of each attack and other defense whether it leaves no less ASR than this one, and at least so much."""
    for attack in results.attacks:
        ours = results.after(attack, name, "o_asr", eps)
        for other in others:
            theirs = results.after(attack, other, "o_asr", eps)
            if ours and theirs:
                holds = theirs.mean >= max(least, ours.mean)
                yield Part(f"{attack}: {name} {100 * ours.mean:.1f}, {other} {theirs}", holds)


def bounded(
    results: Results,
    names: tuple[str, ...],
    most: float = 1.0,
    metric: str = "o_asr",
    eps: float | str = 0.0,
    least: float = 0.0,
) -> Iterator[Part]:
    """Say of each attack and defense whether a figure lies within bounds."""
    for attack in results.attacks:
        for name in names:
            if rate := results.after(attack, name, metric, eps):
                yield Part(f"{name} on {attack}: {rate}", least <= rate.mean <= most)


def reactivated(
    results: Results,
    names: tuple[str, ...],
    column: str,
    least: float = 0.0,
    most: float = 1.0,
    removed: float = 1.0,
) -> Iterator[Part]:
    """Say of each attack and defense whether a figure of its audits lies within bounds.

    removed: of the models that it left with so much O-ASR at most.
    """
    for attack in results.attacks:
        for name in names:
            if rate := results.audited(attack, name, column, removed):
                before = results.audited(attack, name, "purified.o_asr", removed)
                yield Part(f"{name} on {attack}: {before} -> {rate}", least <= rate.mean <= most)


def crossed(results: Results, *, own_images: bool, most: float) -> Iterator[Part]:
    """Say of each model whether little is left of it that an attack reaches whose images the defense was not shown.

    Each beside what that trigger does to the model before. own_images: purified with images of its own attack, under
    others' triggers; else with those of another, under its own trigger.
    """
    rows = results.of("cross")  # PL with the images of one attack, under the triggers of others
    before = {(row["run"], row["trigger"]): row["asr"] for row in rows if not row["donor"]}
    for row in rows:
        model, donor, trigger = (row[key].rpartition("-")[0] for key in ("run", "donor", "trigger"))
        if donor and trigger != donor and model == (donor if own_images else trigger):
            change = f"{100 * before[row['run'], row['trigger']]:.1f} -> {Rate((row['asr'],), row['n'])}"
            yield Part(f"{model}, shown {donor}, under {trigger}'s trigger: {change}", row["asr"] <= most)


def series(
    results: Results,
    defense: str,
    option: str,
    default: float,
    metric: str = "o_asr",
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, list[tuple[float, Rate]]]]:
    """Look up of each victim how a metric goes with an option, others at defaults or `fixed`: three points or more.

    Victim by victim: means over different victims at different values would compare the victims.
    """
    specs = {}
    for spec in {row["defense"] for row in results.tuned} - {""}:
        name, options = named(spec)
        value = options.pop(option, default)
        if (name, options) == (defense, fixed):
            specs[float(value)] = spec
    for attack in results.attacks:
        points: dict[str, list[tuple[float, Rate]]] = {}
        for value in sorted(specs):
            for row in results.left(attack, specs[value]):
                if metric in row:
                    rate = Rate((row[metric],), row["n"] if metric != "c_acc" else 0)
                    points.setdefault(row["run"], []).append((value, rate))
        yield from ((run, known) for run, known in points.items() if len(known) > 2)


def monotone(
    results: Results,
    defense: str,
    option: str,
    default: float,
    metric: str = "o_asr",
    slack: float = 0.02,
    fixed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Part]:
    """Say of each victim whether a metric falls as an option rises and its others are at their defaults, or `fixed`.

    slack: 2 points, about two standard errors.
    """
    for run, known in series(results, defense, option, default, metric, fixed):
        text = ", ".join(f"{value:g}: {rate}" for value, rate in known)
        yield Part(f"{run}: {text}", falling([rate for _, rate in known], slack))
