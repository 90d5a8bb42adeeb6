"""Settle what is held out for an audit: nothing learned from, nothing twice, and enough of it."""

from __future__ import annotations

from dataclasses import replace

import torch

from bdaudit.errors import UsageError
from bdaudit.flow.edited import edited
from bdaudit.flow.evidence import TUNED_ELSEWHERE, Evidence
from bdaudit.flow.proxy import Proxy
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool, distinct, without
from bdaudit.probes.base import Backdoor, known_backdoor
from bdaudit.report.controls import INVERTED
from bdaudit.report.schema import Outcome, SelfCheck

SEPARATE = "no image is both learned from and tested on"
ONCE = "no image counts twice"
NOT_TARGET = "no image of the target class counts as a success"
ENOUGH = "there are enough images"
NULL_ROWS = 500


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


def inverted_backdoor(proxy: Proxy, goal: Goal, benign: Pool, test: Pool) -> Backdoor:
    """Build the stand-in's backdoor, and as its controls the same with the triggers of ordinary classes."""
    assert goal.target is not None
    nulls = {
        f"{INVERTED}{c}": known_backdoor(trigger, Goal(c, goal.num_classes), benign, test.first(NULL_ROWS), "inverted")
        for c, trigger in proxy.controls().items()
    }
    return replace(known_backdoor(proxy.trigger(goal.target), goal, benign, test, "inverted"), nulls=nulls)


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
