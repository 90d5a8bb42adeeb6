"""Partition losses: learn one pool and unlearn another in the same steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import Recipe, endless, tune


def partition(
    model: Classifier,
    clean: Pool,
    malicious: Pool,
    recipe: Recipe,
    rng: torch.Generator,
    *,
    alpha: float,
    cap: bool,
    what: str,
) -> Classifier:
    """Tune `model` in place: min E_benign CE(f(x), y) - alpha E_malicious CE(f(z), t), with equal batches (PL Alg. 1).

    cap: stop ascending on images whose malicious loss exceeds log K, that of a model which knows nothing.
    """
    deal = endless(malicious.to(model.device), rng, recipe.augment)
    ceiling = math.log(model.num_classes) if cap else math.inf

    def partition_loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        z, t = deal(len(x))
        # One pass over both halves: BatchNorm then sees the mixture that it will meet in use.
        on_x, on_z = model(torch.cat([x, z])).split([len(x), len(z)])
        ascent = F.cross_entropy(on_z, t, reduction="none").clamp(max=ceiling).mean()
        return F.cross_entropy(on_x, y) - alpha * ascent

    return tune(model, clean, recipe, rng, loss=partition_loss, what=what)
