"""What the audit makes sure of before it believes its figures: that each model can be measured at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bdaudit.errors import one_line
from bdaudit.flow.evidence import Evidence
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Probe
from bdaudit.report.schema import Outcome, SelfCheck
from bdaudit.report.statistics import wilson
from bdaudit.runtime import generator, seeded
from bdaudit.training.metrics import predict_logits

LOOKED_AT, AGAIN, FOLLOWED = 128, 32, 8
"""Test images that a model is tried on, that it sees more than once, and that a gradient is followed to."""
FEWEST = 20
"""On fewer images nobody can be told from one who guesses."""
TOLERANCE = 0.02
"""How far logits may move, as a share of their spread: rounding does by 3e-6 in fp32; in bf16 each layer by 4e-3."""
SELDOM = 0.1
"""The share of images that may move further, as where rounding tips a network that quantises."""

RUNS = "answers with finite numbers"
LOGITS = "gives logits, not probabilities"
STEADY = "gives the same answer twice"
ALONE = "judges each image by itself"
BETTER = "does better than guessing"
GRADIENT = "lets gradients through to the pixels"

FOLLOWS: dict[str, Outcome] = {
    RUNS: "stopped",
    LOGITS: "stopped",
    STEADY: "no-pass",
    ALONE: "stopped",
    BETTER: "no-pass",
    GRADIENT: "caveat",
}


def check_model(subject: str, model: Classifier, test: Pool) -> list[SelfCheck]:
    """Try a model on a few test images; one row a check, the later ones only where the earlier ones left sense in them.

    subject: `suspect`, `purified`, or a control, which is then left out where the others would end the audit.
    """
    few = test.spread(LOOKED_AT)
    try:
        # A network that draws random numbers must draw others every time, and yet leave the audit's alone.
        with seeded(generator(0)):
            faults = dict(_faults(model.clone(), few))  # one that trains itself must not change the model audited
    except Exception as e:  # whatever the code of somebody's network raises
        faults = {RUNS: f"it fails on test images ({type(e).__name__}: {one_line(e, 160)})"}
    return [
        SelfCheck(name=name, subject=subject, outcome=_outcome(subject, name) if fault else "sound", detail=fault)
        for name, fault in faults.items()
    ]


def trusted(evidence: Evidence, checks: Sequence[SelfCheck]) -> Evidence:
    """Act on what was found: leave controls out that show nothing, or say why nothing more is measured."""
    stops = [f"the {c.subject} model cannot be audited: {c.detail}" for c in checks if c.outcome == "stopped"]
    out = {c.subject for c in checks if c.outcome == "left-out"}
    others = {name: model for name, model in evidence.others.items() if other(name) not in out}
    evidence = replace(evidence, others=others, shortfall=evidence.shortfall or "; ".join(stops))
    if "reference" not in out:
        return evidence
    sources = evidence.sources | {"reference": "none (left out: see self_checks)"}
    return replace(evidence, reference=None, sources=sources)


def doubts(checks: Sequence[SelfCheck]) -> list[str]:
    """Say why nothing may pass, whatever was measured."""
    return [f"the {c.subject} model: {c.detail}" for c in checks if c.outcome == "no-pass"]


def caveats(checks: Sequence[SelfCheck]) -> list[str]:
    """Say what to bear in mind; a control that was left out is missed."""
    said = {"caveat": "", "left-out": "; it was left out"}
    return [
        (c.detail if c.subject == "images" else f"the {c.subject} model: {c.detail}") + said[c.outcome]
        for c in checks
        if c.outcome in said
    ]


def unable(probe: Probe, evidence: Evidence, checks: Sequence[SelfCheck]) -> str:
    """Why a probe could measure nothing here; '' if nothing stands in its way."""
    if probe.through_pixels and any((c.subject, c.name, c.outcome) == ("purified", GRADIENT, "caveat") for c in checks):
        return "no gradient reaches the purified model's pixels"
    left_out = {c.subject for c in checks if c.outcome == "left-out"}
    if "others" in probe.needs() and not evidence.others and left_out - {"reference"}:
        return "all other models were left out"
    if "reference" in probe.needs() and evidence.reference is None:
        return "the reference was left out"
    return ""


def other(name: str) -> str:
    """What one of several further models is called as a subject."""
    return f"other ({name})"


def _outcome(subject: str, name: str) -> Outcome:
    if subject not in ("suspect", "purified"):
        return "caveat" if FOLLOWS[name] == "caveat" else "left-out"
    # A purified model that only guesses lost its accuracy, and fails by that; a suspect was never understood.
    return "stopped" if name == BETTER and subject == "suspect" else FOLLOWS[name]


def _faults(model: Classifier, few: Pool) -> Iterator[tuple[str, str]]:
    """Yield each check with what is wrong, '' if nothing is."""
    again = few.spread(AGAIN)
    logits = predict_logits(model, few.images).cpu()
    fault = not_finite(logits)
    yield RUNS, fault
    if fault:
        return
    yield LOGITS, probabilities(logits)
    first = predict_logits(model, again.images)
    # Alone, and in company so small that each image weighs in what is averaged over it.
    company = torch.cat([predict_logits(model, part) for part in (again.images[:1], *torch.split(again.images[1:], 5))])
    fault = unsteady(first, predict_logits(model, again.images))
    yield STEADY, fault
    if not fault:
        yield ALONE, depends_on_company(first, company)
    if len(few) >= FEWEST:
        yield BETTER, guesses(logits.argmax(1), few.labels, model.classes)
    yield GRADIENT, blocks_gradients(model, again.images[:FOLLOWED])


def not_finite(logits: Tensor) -> str:
    """NaN or infinite logits (N, K), of which argmax would still make predictions."""
    bad = int((~logits.isfinite()).any(1).sum())
    return f"{bad} of {len(logits)} test images get logits that are NaN or infinite" if bad else ""


def probabilities(logits: Tensor) -> str:
    """Outputs (N, K) that went through a softmax or a sigmoid: losses, which apply their own, would be flattened.

    Log-probabilities are no fault: softmax gives back what they came from.
    """
    if logits.min() < 0 or logits.max() > 1:
        return ""
    softmax = bool(((logits.sum(1) - 1).abs() < 0.01).all())
    # A sigmoid's fill the unit interval, which untrained logits may lie within by chance.
    if not softmax and not (logits.min() < 0.01 and logits.max() > 0.99):
        return ""
    kind = "and those of an image sum to one (softmax)" if softmax else "as after a sigmoid"
    return (
        f"all its outputs lie in [0, 1], {kind}: probabilities, not logits. Losses over them are flattened, so that neither "
        "retuning nor queries would find what there is; give the network without its last activation (log-softmax is fine)"
    )


def unsteady(first: Tensor, second: Tensor) -> str:
    """Logits (N, K) of the same images in the same batch, twice."""
    moved, most = _moved(first, second)
    if not moved:
        return ""
    return (
        f"{moved} of {len(first)} test images get other logits the second time (by up to {most:.0%} of their spread): dropout "
        "or noise stays on in eval mode, or the model changes itself; whoever asks more than once sees more than was measured"
    )


def depends_on_company(together: Tensor, apart: Tensor) -> str:
    """Logits (N, K) of the same images in one batch and in others."""
    moved, most = _moved(together, apart)
    if not moved:
        return ""
    return (
        f"the logits of {moved} of {len(together)} test images depend on the images beside them (by up to {most:.0%} of their "
        "spread): BatchNorm uses the batch's statistics although the model is in eval mode (it keeps no running ones, or "
        "the network calls train()), so figures would hold for the audit's batches only"
    )


def _moved(a: Tensor, b: Tensor) -> tuple[int, float]:
    """How many images' logits moved by more than rounding, if more than seldom, the furthest as a share of spread."""
    spread = (a.amax(1) - a.amin(1)).median()
    by = (a - b).abs().amax(1)
    moved = int((by > TOLERANCE * spread).sum())
    return (moved if moved > SELDOM * len(a) else 0), float(by.max() / spread.clamp(min=1e-30))


def guesses(predicted: Tensor, labels: Tensor, classes: tuple[str, ...]) -> str:
    """Predictions (N) that agree with the labels (N) no more than by chance: as often as classes are given and occur.

    Chance as in Cohen's kappa, so that always naming the commonest class is guessing however common it is.
    """
    n, right = len(labels), int((predicted == labels).sum())
    given, true = (t.bincount(minlength=len(classes)) for t in (predicted, labels))
    chance = float((given * true).sum()) / n**2
    if wilson(right, n)[0] > chance:
        return ""
    top = int(given.argmax())
    if given[top] > 0.99 * n:
        return (
            f"it gives class {top} ({one_line(classes[top], 40)}) to {int(given[top])} of {n} test images whatever they show, "
            "so that its attack success rate says nothing about a backdoor"
        )
    return (
        f"it gives {right} of {n} test images their true class, no better than guessing ({chance:.1%}), so that its attack "
        "success rate says nothing about a backdoor"
    )


def blocks_gradients(model: Classifier, images: Tensor) -> str:
    """Whether perturbations of these uint8 images (N, C, H, W) could be found by following the gradient."""
    x = (images.to(model.device).float() / 255).requires_grad_()
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(x)
            [gradient] = torch.autograd.grad((logits.amax(1) - logits.mean(1)).sum(), x, allow_unused=True)
    except RuntimeError as e:
        return _blocked(f"there is none ({one_line(e, 100)})")
    if gradient is None:
        return _blocked("there is none")
    reached = gradient.isfinite().flatten(1).all(1) & (gradient != 0).flatten(1).any(1)
    if 2 * int(reached.sum()) < len(x):
        return _blocked(f"it is zero or not finite on {int((~reached).sum())} of {len(x)} images")
    return ""


def _blocked(why: str) -> str:
    return (
        f"no gradient reaches the pixels: {why}, as where a network rounds or takes an argmax. Queries cannot be optimised, "
        "so that probes which do that say nothing"
    )
