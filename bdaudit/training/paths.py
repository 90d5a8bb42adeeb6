"""Straight lines through two models: what lies between their weights, and beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from bdaudit.errors import UsageError, one_line
from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import Runtime, seeded

BATCH = 128


def obstacle(start: Classifier, end: Classifier) -> str:
    """Say in words why no straight line joins two models; '' if one does."""
    if start.preprocessing != end.preprocessing:
        return "their preprocessing differs"
    here, there = ({name: tuple(w.shape) for name, w in _weights(m)} for m in (start, end))
    for name in chain(here, there):
        if here.get(name) != there.get(name):
            shapes = " and ".join(str(w[name]) if name in w else "missing" for w in (here, there))
            return f"their architectures differ ({one_line(name, 80)} is {shapes})"
    return ""


@torch.no_grad()
def between(
    start: Classifier, end: Classifier, t: float, rng: torch.Generator, *, reestimate_on: Tensor | None = None
) -> Classifier:
    """Make the model W(t) = (1 - t) W0 + t W1, in eval mode; t = 0 and t = 1 give the two models themselves.

    Superficial Safety 4.1, D3 3.2. Parameters and floating-point buffers are interpolated; all others come from
    the nearer end. reestimate_on: clean images, uint8 (N, C, H, W), to take BatchNorm's statistics from anew;
    needed outside [0, 1], where the line through two variances may fall below zero.
    """
    reason = obstacle(start, end)
    if reason:
        raise UsageError(f"no straight line joins the two models: {reason}")
    if reestimate_on is None and has_batchnorm(start) and not 0 <= t <= 1:
        raise UsageError(f"t = {t:g} lies outside [0, 1]: give clean images to re-estimate BatchNorm's statistics on")
    model, there = start.clone().eval(), dict(_weights(end))
    for name, weight in _weights(model):
        if weight.is_floating_point():
            weight.copy_(torch.lerp(weight, there[name], t))
        elif t >= 0.5:
            weight.copy_(there[name])
        if name.endswith("running_var"):
            weight.clamp_(min=0)  # a frozen BatchNorm has variances as well, and nothing to estimate them with
    if reestimate_on is not None:
        _reestimate(model, reestimate_on, rng)
    return model


def has_batchnorm(model: Classifier) -> bool:
    """Whether there are statistics to re-estimate."""
    return any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())


def _reestimate(model: Classifier, images: Tensor, rng: torch.Generator) -> None:
    """Replace BatchNorm's running statistics by the plain mean over one pass through the images."""
    if len(images) < 2:
        raise UsageError(f"re-estimating BatchNorm's statistics takes at least 2 clean images, got {len(images)}")
    # Parts of one size, since each counts the same in the mean.
    parts = images.tensor_split(-(-len(images) // BATCH))
    with seeded(rng), Runtime.of(model.device).autocast():
        update_bn(parts, model, model.device)


def _weights(model: Classifier) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
