"""Losses that stop learning where clean images get to, so that what goes beyond is the backdoor; and unlearning it.

ABL (Li et al. 2021).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.training.loop import Loss
from bdaudit.training.samples import largest

Per = Literal["image", "batch"]


def local_gradient_ascent(gamma: float, per: Per) -> Loss:
    """Descend on cross-entropy above gamma and ascend below it: sign(CE - gamma) CE, per image or of a batch's mean."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        ce = F.cross_entropy(model(x), y, reduction="none" if per == "image" else "mean")
        return (torch.sign(ce.detach() - gamma) * ce).mean()

    return loss


def flooding(level: float) -> Loss:
    """Keep a batch's mean cross-entropy at a level: |CE - b| + b."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        return (F.cross_entropy(model(x), y) - level).abs() + level

    return loss


def ascent(cap: bool) -> Loss:
    """Raise the loss on each image; cap: up to log K, that of a model which knows nothing."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        ceiling = math.log(model.num_classes) if cap else math.inf
        return -F.cross_entropy(model(x), y, reduction="none").clamp(max=ceiling).mean()

    return loss


def votes(losses: Tensor, labels: Tensor, share: float, classes: int) -> Tensor:
    """Count the labels of the share of rows with the smallest losses; int64 (K,)."""
    return torch.bincount(labels[largest(-losses, share)], minlength=classes)


def beyond_label(losses: Tensor, labels: Tensor) -> Tensor:
    """Say how far each loss (N,) lies above the third quartile of its label's rows, which most of them lie below.

    Some classes are learnt as well as a trigger is, all of their rows alike; poisoned rows are learnt better than
    others of their label. The third quartile, since poisoned rows may be the greater part of a label.
    """
    beyond = losses.clone()
    for label in set(labels.tolist()):
        rows = labels == label
        beyond[rows] -= losses[rows].quantile(0.75)
    return beyond


def second_likely(logits: Tensor) -> Tensor:
    """Count how many rows have each class as their second likely one; int64 (K,)."""
    return torch.bincount(logits.topk(2, dim=1).indices[:, 1].cpu(), minlength=logits.shape[1])
