"""Gather what there is to purify and audit a model with, and keep its parts disjoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import RESOURCES
from bdaudit.errors import ImageError, UsageError
from bdaudit.flow.proxy import Proxy, stand_in
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.probes.base import THIS, Backdoor
from bdaudit.report.schema import Granted, SelfCheck
from bdaudit.training.metrics import predict

RETUNE_ROWS = 5
DEFENSE_ROWS = 5
TUNED_ELSEWHERE = "the model was purified elsewhere: overlap with the rows that tuned it cannot be ruled out"

INVERSION_ROWS = 20


@dataclass(frozen=True)
class Evidence:
    """What is known about a suspect model. Each field may be missing; plugins say what they cannot do without.

    clean, malicious, train, trigger: for the defense. benign, backdoor, test: for probes and evaluation,
    which no defense may see. attack: which one a run folder records. proxy: what stands in for the trigger where
    nothing is known of it. sources: where each came from, in words.
    """

    suspect: Classifier
    goal: Goal | None = None
    clean: Pool | None = None
    malicious: Pool | None = None
    train: Pool | None = None
    trigger: Trigger | None = None
    benign: Pool | None = None
    test: Pool | None = None
    backdoor: Backdoor | None = None
    reference: Classifier | None = None
    attack: str = ""
    proxy: Proxy | None = None
    others: dict[str, Classifier] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shortfall: str = ""
    checks: tuple[SelfCheck, ...] = ()

    def for_defense(self, rng: torch.Generator) -> dict[str, Any]:
        """List what a defense may ask for, held-out data and what was inverted excluded."""
        known = self.goal is not None and (self.proxy is None or self.proxy.named)
        return {
            "model": self.suspect,
            "clean": self.clean,
            "malicious": self.malicious,
            "target": self.goal.target if self.goal and known else None,
            "train": self.train,
            "trigger": self.trigger,
            "rng": rng,
        }

    def for_probe(self, purified: Classifier, rng: torch.Generator) -> dict[str, Any]:
        """List what a probe may ask for."""
        return {
            "suspect": self.suspect,
            "purified": purified,
            "reference": self.reference,
            "others": self.others or None,
            "benign": self.benign,
            "backdoor": self.backdoor,
            "test": self.test,
            "rng": rng,
        }

    def granted(self, plugin: str, names: tuple[str, ...], available: dict[str, Any]) -> list[Granted]:
        """Record which of the inputs a plugin names it was given, and whence."""
        return [
            Granted(plugin=plugin, input=n, source=self.sources.get(n, RESOURCES[n].source), oracle=RESOURCES[n].oracle)
            for n in names
            if available.get(n) is not None
        ]


def unlike(name: str, taken: Collection[str]) -> str:
    """Call one of several models unlike the others, and unlike the one that is audited: with marks where need be."""
    while name in taken or name == THIS:
        name += "'"
    return name


def find_target(model: Classifier, flagged: Pool) -> tuple[int, str]:
    """Take the class that the model gives most flagged images, and say so in words."""
    counts = Counter(predict(model, flagged.images).tolist())
    target, votes = max(counts.items(), key=lambda item: (item[1], -item[0]))
    share = votes / len(flagged)
    doubt = "" if share >= 0.5 else "; that is no majority, so give --target if you know better"
    return target, (
        f"target: class {target} ({model.classes[target]}), which the model gives {votes} of {len(flagged)} "
        f"flagged images{doubt}"
    )


def from_run(evidence: Evidence, run: Run, rng: torch.Generator, notes: list[str]) -> Evidence:
    """Add what a run folder holds: the trigger, and pools that are disjoint by construction.

    notes: gets a line about files that are not used.
    """
    model = evidence.suspect
    if model.preprocessing.shape != run.record.shape or model.num_classes != len(run.record.classes):
        raise UsageError(
            f"--attack {run.folder}: its images are {run.record.shape} with {len(run.record.classes)} classes, "
            f"the model takes {model.preprocessing.shape} with {model.num_classes}"
        )
    # Folders are read class by class; whoever takes the first few rows must get a fair sample.
    benign, test = (run.pool(name, notes).shuffled(rng) for name in ("reserve", "test"))
    sources = {"trigger": "--attack", "benign": "run reserve/", "test": "run test/", "backdoor": "--attack (trigger)"}
    return replace(
        evidence,
        goal=run.goal,
        attack=run.record.attack,
        trigger=run.trigger,
        benign=benign,
        test=test,
        sources=evidence.sources | sources,
    )


def from_folders(
    evidence: Evidence,
    clean: Pool,
    flagged: Pool,
    goal: Goal,
    *,
    tuned_elsewhere: bool,
    wants_malicious: bool,
    min_triggered: int,
    rng: torch.Generator,
) -> Evidence:
    """Cut the auditor's own folders into disjoint parts for the defense, for reactivation and for evaluation.

    tuned_elsewhere: the model was purified by somebody else, so that no rows are spent on a defense here.
    """
    notes = [
        "the trigger is unknown: some flagged images reactivate the backdoor, the others measure it; "
        "flagged images that truly belong to the target class would count as attack successes"
    ]
    given = flagged
    flagged = (
        flagged.take(goal.counted(flagged.labels)) if _labels_are_true(flagged, goal) else flagged.labelled(UNKNOWN)
    )
    if (flagged.labels != UNKNOWN).all():
        notes = ["the trigger is unknown: some flagged images reactivate the backdoor, the others measure it"]
    if len(flagged) < len(given):
        notes.append(f"{len(given) - len(flagged)} flagged images truly belong to the target class; they were left out")
    for_defense = DEFENSE_ROWS if wants_malicious else 0
    needed = for_defense + RETUNE_ROWS + min_triggered
    if len(flagged) < needed:
        parts = f"{RETUNE_ROWS} to retune with, {min_triggered} to evaluate on" + (
            f", {for_defense} for the defense" if for_defense else ""
        )
        return replace(
            evidence,
            goal=goal,
            notes=(*evidence.notes, *notes),
            test=clean,
            shortfall=f"too few flagged images: {len(flagged)} given, at least {needed} are needed ({parts}), "
            f"{needed - len(flagged)} more",
        )
    flagged, clean = flagged.shuffled(rng), clean.shuffled(rng)
    reactivation = min(25, max(RETUNE_ROWS, len(flagged) // 10))
    spent = max(for_defense, round(0.4 * (len(flagged) - reactivation))) if wants_malicious else 0
    for_reactivation, malicious, evaluation = flagged.split(
        reactivation, min(spent, len(flagged) - needed + for_defense)
    )
    tuning = 0 if tuned_elsewhere else len(clean) // 2
    tuning_rows, benign, test = clean.split(tuning, (len(clean) - tuning) // 2)
    if not len(benign) or not len(test):
        raise ImageError(
            f"{len(given)} flagged but only {len(clean)} clean images: too few to tune, retune and test with"
        )
    if tuned_elsewhere:
        notes.append(TUNED_ELSEWHERE)
    return replace(
        evidence,
        goal=goal,
        clean=tuning_rows if tuning else None,
        malicious=malicious.labelled(target_label(goal)) if spent else None,
        benign=benign,
        test=test,
        backdoor=Backdoor(goal, "flagged", for_reactivation, evaluation),
        notes=(*evidence.notes, *notes),
        sources=evidence.sources
        | {"benign": "a quarter of --clean" if tuning else "half of --clean", "test": "the rest of --clean"}
        | {"backdoor": "a part of --malicious", "malicious": "a part of --malicious", "clean": "half of --clean"},
    )


def from_clean(
    evidence: Evidence,
    clean: Pool,
    target: int | None,
    *,
    model_name: str,
    tuned_elsewhere: bool,
    min_triggered: int,
    rng: torch.Generator,
) -> Evidence:
    """Cut clean images into disjoint parts where nothing is flagged, and invert a trigger on one of them.

    target: the class to test, else the one that stands out. tuned_elsewhere: as in `from_folders`.
    """
    goal = Goal(target, evidence.suspect.num_classes) if target is not None else None
    shares = (0.0, 0.3, 0.35) if tuned_elsewhere else (0.4, 0.2, 0.2)
    tuning, searched, benign, test = clean.shuffled(rng).split(*(int(share * len(clean)) for share in shares))
    notes = (TUNED_ELSEWHERE,) if tuned_elsewhere else ()
    evidence = replace(evidence, goal=goal, test=test, notes=evidence.notes + notes)
    if len(searched) < INVERSION_ROWS or len(test) < min_triggered:
        return replace(
            evidence,
            shortfall=f"too few clean images to invert a trigger, to retune and to test with: {len(clean)} given, "
            f"{len(searched)} of them to invert with (at least {INVERSION_ROWS} are needed) and {len(test)} to test "
            f"with (at least {min_triggered})",
        )
    proxy = stand_in(evidence.suspect, searched, target, rng)
    part = "a part of --clean"
    return replace(
        evidence,
        goal=Goal(proxy.target, evidence.suspect.num_classes) if proxy.target is not None else None,
        clean=None if tuned_elsewhere else tuning,
        benign=benign,
        proxy=proxy,
        notes=(*evidence.notes, *proxy.notes(model_name)),
        sources=evidence.sources
        | {"clean": part, "benign": part, "test": part, "inversion": part}
        | {"backdoor": f"inverted from {model_name}, a proxy"},
        shortfall=proxy.shortfall(),
    )


def target_label(goal: Goal) -> int:
    """The one label that flagged images get; all-to-all backdoors have none."""
    if goal.target is None:
        raise UsageError(
            "flagged images of an all-to-all backdoor have no common target, so no defense can be given them"
        )
    return goal.target


def _labels_are_true(flagged: Pool, goal: Goal) -> bool:
    """Whether sub-folder names of a flagged folder are true classes; all in the target's means as-given labels."""
    known = bool((flagged.labels != UNKNOWN).all())
    return known and bool(goal.counted(flagged.labels).any())
