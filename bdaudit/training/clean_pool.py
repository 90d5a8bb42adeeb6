"""Clean pools by what an altruistic model g learnt and the main model f did not, epoch by epoch (BSD, section 4.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bdaudit.ops import SampleLosses
from bdaudit.training.samples import largest_of_each


def alpha_at(done: float, alpha: float, beta: float) -> float:
    """Share of rows in the clean pool, from beta to alpha on half a cosine, when part of that time is done (Eq. 11)."""
    return beta + (alpha - beta) * (1 - math.cos(math.pi * min(1.0, done))) / 2


def discrepancy(on_f: SampleLosses, on_g: SampleLosses) -> Tensor:
    """I = SCE(g) - SCE(f): small where the altruistic model learnt what the main one did not (Eq. 9); float (N,)."""
    return on_g.symmetric_ce - on_f.symmetric_ce


def share_of_each(indicator: Tensor, labels: Tensor, ratio: float, target: int | None) -> Tensor:
    """Mark a share, rounded up, of each class's rows but the target's: those with the largest indicator."""
    sizes = {label: int((labels == label).sum()) for label in set(labels.tolist()) - {target}}
    return largest_of_each(indicator, labels, {label: math.ceil(ratio * size) for label, size in sizes.items()})


def completed(clean: Tensor, indicator: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Add rows of the class that has the fewest clean ones: its own n' with the largest indicator (Eq. 8).

    n' is the ratio of its rows, but no more than the class with the second fewest has.
    """
    sizes = torch.bincount(labels)
    present = sizes.nonzero().flatten()
    if len(present) < 2:
        return clean
    chosen = torch.bincount(labels[clean], minlength=len(sizes))[present]
    fewest, second = chosen.argsort(stable=True)[:2]
    count = min(int(ratio * sizes[present[fewest]]), int(chosen[second]))
    return clean | largest_of_each(indicator, labels, {int(present[fewest]): count})


def selectively_dropped(clean: Tensor, on_f: SampleLosses, on_g: SampleLosses, target: int) -> Tensor:
    """Leave out the rows that both models give the target, unless that is all (Eq. 10)."""
    kept = clean & ~((on_f.prediction == target) & (on_g.prediction == target))
    return kept if kept.any() else clean  # an empty pool would teach nothing
