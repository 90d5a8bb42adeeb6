"""Gather what there is to purify and audit a model with, and keep its parts disjoint."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import RESOURCES
from bdaudit.errors import ImageError, UsageError
from bdaudit.flow.edited import edited
from bdaudit.flow.proxy import Proxy, stand_in
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool, distinct, without
from bdaudit.probes.base import Backdoor
from bdaudit.report.controls import INVERTED
from bdaudit.report.schema import Granted, Outcome, SelfCheck
from bdaudit.training.metrics import predict

RETUNE_ROWS = 5
DEFENSE_ROWS = 5
TUNED_ELSEWHERE = "the model was purified elsewhere: overlap with the rows that tuned it cannot be ruled out"

SEPARATE = "no image is both learned from and tested on"
ONCE = "no image counts twice"
NOT_TARGET = "no image of the target class counts as a success"
ENOUGH = "there are enough images"
INVERSION_ROWS = 20
NULL_ROWS = 500


@dataclass(frozen=True)
class Evidence:
    """What is known about a suspect model. Each field may be missing; plugins say what they cannot do without.

    clean, malicious, train, trigger: for the defense. benign, backdoor, test: for probes and evaluation,
    which no defense may see. attack: which one a run folder records. proxy: what stands in for the trigger where nothing
    is known of it. sources: where each came from, in words.
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


def known_backdoor(
    trigger: Trigger, goal: Goal, benign: Pool, test: Pool, source: Literal["trigger", "inverted"] = "trigger"
) -> Backdoor:
    """Trigger the images whose true class is not the target: some to reactivate with, others to evaluate on."""
    sources, held_out = (p.take(goal.counted(p.labels)) for p in (benign, test))
    return Backdoor(goal, source, trigger.on(sources), trigger.on(held_out))


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
    notes = [TUNED_ELSEWHERE]
    evidence = replace(evidence, goal=goal, test=test, notes=(*evidence.notes, *(notes if tuned_elsewhere else [])))
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


def inverted_backdoor(proxy: Proxy, goal: Goal, benign: Pool, test: Pool) -> Backdoor:
    """Build the stand-in's backdoor, and as its controls the same with the triggers of ordinary classes."""
    assert goal.target is not None
    nulls = {
        f"{INVERTED}{c}": known_backdoor(trigger, Goal(c, goal.num_classes), benign, test.first(NULL_ROWS), "inverted")
        for c, trigger in proxy.controls().items()
    }
    return replace(known_backdoor(proxy.trigger(goal.target), goal, benign, test, "inverted"), nulls=nulls)


def target_label(goal: Goal) -> int:
    """The one label that flagged images get; all-to-all backdoors have none."""
    if goal.target is None:
        raise UsageError(
            "flagged images of an all-to-all backdoor have no common target, so no defense can be given them"
        )
    return goal.target


def settle(evidence: Evidence, images: int, min_triggered: int, rng: torch.Generator) -> Evidence:
    """Take tuned rows out of what is held out, cap the sizes, and only then build the known trigger's backdoor.

    In this order, since a triggered copy of a row that was tuned on no longer looks like it. images: per rate,
    at most; the intervals say what that costs. What is left too small for any verdict becomes a shortfall.
    """
    evidence = limit_evaluation(drop_overlap(drop_repeats(evidence)), images, rng)
    if evidence.shortfall:
        # There are images enough where no class stands out.
        return evidence if evidence.proxy else _checked(evidence, ENOUGH, evidence.shortfall, "stopped")
    benign, test, goal, backdoor = evidence.benign, evidence.test, evidence.goal, evidence.backdoor
    if backdoor is None and evidence.trigger and goal and benign is not None and test is not None:
        backdoor = known_backdoor(evidence.trigger, goal, benign, test)
    if backdoor is None and evidence.proxy and goal and benign is not None and test is not None:
        backdoor = inverted_backdoor(evidence.proxy, goal, benign, test)
    if backdoor is None or goal is None or benign is None or test is None:
        raise UsageError("an audit needs triggered images: give --malicious DIR or --attack RUN")
    backdoor = replace(backdoor, attack=evidence.attack)
    evidence = _check_targets(replace(evidence, backdoor=backdoor), goal)
    sizes = {
        "held-out clean images of other classes than the target": int(goal.counted(test.labels).sum()),
        "triggered images to evaluate on": int(goal.counted(backdoor.evaluation.labels).sum()),
        "clean images to retune with": len(benign),
        "triggered images to retune with": len(backdoor.reactivation),
    }
    least = {name: min_triggered if "retune" not in name else 1 for name in sizes}
    short = [
        f"{n} {name}, at least {least[name]} are needed ({least[name] - n} more)"
        for name, n in sizes.items()
        if n < least[name]
    ]
    shortfall = f"too little to judge by: {'; '.join(short)}" if short else ""
    evidence = _checked(evidence, ENOUGH, shortfall, "stopped" if short else "sound")
    return replace(evidence, shortfall=shortfall)


def drop_repeats(evidence: Evidence) -> Evidence:
    """Remove images that are in held-out data twice, since they would make intervals narrower than they are."""
    test, backdoor, notes = evidence.test, evidence.backdoor, []
    if test is not None:
        kept = distinct(test)
        notes += [f"{len(test) - len(kept)} test images were there twice; they count once"] if kept is not test else []
        test = kept
    if backdoor is not None:
        kept = distinct(backdoor.evaluation)
        if kept is not backdoor.evaluation:
            twice = len(backdoor.evaluation) - len(kept)
            notes.append(f"{twice} triggered test images were there twice; they count once")
        backdoor = replace(backdoor, evaluation=kept)
    evidence = replace(evidence, test=test, backdoor=backdoor, notes=(*evidence.notes, *notes))
    return _checked(evidence, ONCE, "; ".join(notes))


def drop_overlap(evidence: Evidence) -> Evidence:
    """Remove from held-out data what tuning or retuning has seen, and say how much that was.

    Images are compared pixel for pixel, and cell by cell, which finds a triggered copy of an image that was tuned on.
    """
    searched = evidence.proxy.rows if evidence.proxy else None
    seen = [p for p in (evidence.clean, evidence.malicious, evidence.train, searched) if p is not None]
    backdoor, test, benign = evidence.backdoor, evidence.test, evidence.benign
    notes: list[str] = []
    if benign is not None and seen:
        benign = _unseen(benign, seen, "images for retuning", "the tuning data", notes)
    retuned = [benign] if benign is not None else []
    if test is not None:
        test = _unseen(test, [*seen, *retuned], "test images", "tuning or retuning data", notes)
    if backdoor is not None:
        learned = [*seen, *retuned, backdoor.reactivation]
        evaluation = _unseen(backdoor.evaluation, learned, "triggered test images", "tuning or retuning data", notes)
        backdoor = replace(backdoor, evaluation=evaluation)
    elsewhere = TUNED_ELSEWHERE in evidence.notes
    found = "; ".join([*notes, *([TUNED_ELSEWHERE] if elsewhere else [])])
    evidence = replace(evidence, backdoor=backdoor, test=test, benign=benign, notes=(*evidence.notes, *notes))
    return _checked(evidence, SEPARATE, found, "caveat" if elsewhere else "sound")


def limit_evaluation(evidence: Evidence, images: int, rng: torch.Generator) -> Evidence:
    """Evaluate on at most so many images, drawn at random."""
    test, backdoor = evidence.test, evidence.backdoor
    if test is not None and len(test) > images:
        test = test.sample(images, rng)
    if backdoor is not None and len(backdoor.evaluation) > images:
        backdoor = replace(backdoor, evaluation=backdoor.evaluation.sample(images, rng))
    return replace(evidence, test=test, backdoor=backdoor)


def _unseen(pool: Pool, seen: list[Pool], what: str, where: str, notes: list[str]) -> Pool:
    """Drop what was seen; `notes` gets a line about it."""
    other = without(pool, *seen)
    altered = edited(other, *seen)
    kept = other.take(~altered) if altered.any() else other
    if len(kept) < len(pool):
        but = f" ({int(altered.sum())} of them but for a few pixels)" if altered.any() else ""
        notes.append(f"{len(pool) - len(kept)} {what} were also in {where}{but}; they were left out")
    return kept


def _check_targets(evidence: Evidence, goal: Goal) -> Evidence:
    """Say whether images that belong to the target class anyway are kept out of attack success rates."""
    assert evidence.backdoor is not None and evidence.test is not None
    if not evidence.backdoor.labels_known:
        doubt = "true labels of the flagged images are unknown; those of the target class count as successes"
        return _checked(evidence, NOT_TARGET, doubt, "caveat")
    theirs = int((~goal.counted(evidence.test.labels)).sum())
    said = f"{theirs} of {len(evidence.test)} test images belong to it and are not counted" if theirs else ""
    return _checked(evidence, NOT_TARGET, said)


def _checked(evidence: Evidence, name: str, detail: str, outcome: Outcome = "sound") -> Evidence:
    row = SelfCheck(name=name, subject="images", outcome=outcome, detail=detail)
    return replace(evidence, checks=(*evidence.checks, row))


def _labels_are_true(flagged: Pool, goal: Goal) -> bool:
    """Whether sub-folder names of a flagged folder are true classes; all in the target's folder means as-given labels."""
    known = bool((flagged.labels != UNKNOWN).all())
    return known and bool(goal.counted(flagged.labels).any())
