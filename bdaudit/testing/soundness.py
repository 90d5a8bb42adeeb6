"""Whether what a plugin returned is sound; each function says in words what is wrong ('' if nothing is)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.attacks.base import Attack, Implanted, Poisoned
from bdaudit.attacks.triggers import KINDS, Trigger, load_trigger, save_trigger
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.report.schema import Finding, Measurement
from bdaudit.report.words import NUMBERS
from bdaudit.training.metrics import predict_logits


def model(result: Classifier, like: Classifier, images: Tensor) -> str:
    """Finite weights, and finite logits over the same classes."""
    if result.classes != like.classes:
        return f"its classes are {result.classes}, and were {like.classes}"
    bad = [n for n, t in result.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        return f"{bad[0]} is not finite"
    logits = predict_logits(result, images)
    if logits.shape != (len(images), like.num_classes) or not logits.isfinite().all():
        return f"{len(images)} images give logits of shape {tuple(logits.shape)}, expected finite ones for {like.num_classes} classes"
    return ""


def bookkeeping(attack: Attack, poisoned: Poisoned, train: Pool, goal: Goal) -> str:
    """Every row is accounted for: poisoned, cover, or as it was."""
    pool, rows, cover = poisoned.pool, poisoned.poisoned, poisoned.cover
    if len(pool) != len(train) or any(m.shape != (len(train),) or m.dtype != torch.bool for m in (rows, cover)):
        return f"{len(train)} rows went in, {len(pool)} came out, with marks of shape {tuple(rows.shape)}"
    if not torch.equal(poisoned.true_labels, train.labels):
        return "true_labels are not the labels of the rows that went in"
    if not rows.any():
        return "no row is marked as poisoned"
    others = ~(rows | cover)
    if not (torch.equal(pool.images[others], train.images[others])):
        return "images changed in rows marked neither poisoned nor cover"
    if not torch.equal(pool.labels[~rows], train.labels[~rows]):
        return "labels changed in rows not marked poisoned"
    if attack.clean_label and not torch.equal(goal.wanted(train.labels)[rows], train.labels[rows]):
        return "a clean-label attack poisoned rows of other classes than the target"
    wanted = train.labels if attack.clean_label else goal.wanted(train.labels)
    if not torch.equal(pool.labels[rows], wanted[rows]):
        return "poisoned rows do not carry the label that the backdoor is to give them"
    return ""


def measurement(result: Measurement, name: str) -> str:
    """Findings about the purified model, each a fraction within its interval, over images; curves over their x."""
    if not any(f.subject == "purified" for f in result.findings):
        return "no finding is about the purified model"
    rows = [(f.subject, f.metric, f.variant) for f in result.findings]
    repeated = [row for row in rows if rows.count(row) > 1]
    if repeated:
        return f"two findings have the same subject, metric and variant: {' '.join(repeated[0])}"
    for finding in result.findings:
        why = _finding(finding, name)
        if why:
            return f"{finding.subject} {finding.metric}: {why}"
    for exhibit in result.exhibits:
        lengths = {len(ys) for ys in exhibit.curves.values()} - {len(exhibit.x)}
        if exhibit.probe != name or lengths:
            return f"exhibit {exhibit.title!r}: " + (
                f"a curve has {lengths.pop()} values over {len(exhibit.x)}"
                if lengths
                else f"probe is {exhibit.probe!r}"
            )
    return ""


def _finding(f: Finding, name: str) -> str:
    if f.probe != name:
        return f"probe is {f.probe!r}, expected {name!r}"
    least = -1 if f.metric.endswith(("_change", "excess")) else 0
    if f.metric not in NUMBERS and not least <= f.value <= 1:
        return f"{f.value} is no fraction in [{least}, 1]"
    if f.metric.endswith(("asr", "acc")) and (f.low is None or f.high is None or f.n is None):
        return "a rate needs its interval and its number of images (report.statistics.rate_finding)"
    if not (f.value if f.low is None else f.low) <= f.value <= (f.value if f.high is None else f.high):
        return f"{f.value} lies outside its interval [{f.low}, {f.high}]"
    if (f.n is not None and f.n < 1) or f.seeds < 1:
        return f"it is over {f.n} images and {f.seeds} seeds"
    return ""


def triggers(attack: Attack, implanted: Implanted, images: Tensor) -> str:
    """Pure, visible, and the same after a file."""
    for what, trigger in (("trigger", implanted.trigger), ("training trigger", implanted.train_trigger)):
        before = images.clone()
        out, again = trigger(images), trigger(images)
        if not torch.equal(images, before):
            return f"the {what} changed the images it was given, in place"
        if not torch.equal(out, again):
            return f"the {what} gave two results for the same images"
        if torch.equal(out, images):
            return f"the {what} changes no pixel"
        back = _through_a_file(attack, trigger)
        if back.digest() != trigger.digest() or not torch.equal(back(images), out):
            return f"the {what} that was saved and loaded gives other images"
    return ""


def _through_a_file(attack: Attack, trigger: Trigger) -> Trigger:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trigger.safetensors")
        save_trigger(trigger, path, attack=attack.name)
        return load_trigger(path, {**KINDS, **attack.trigger_kinds})
