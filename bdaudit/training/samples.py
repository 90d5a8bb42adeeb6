"""What a model says of each row of a pool, and how rows are chosen by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from bdaudit import ops
from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.metrics import predict_features, predict_logits

Distance = Literal["min", "mean", "max"]


def losses_of(model: Classifier, pool: Pool, what: str) -> ops.SampleLosses:
    """Read every row's losses, prediction and confidence in one pass in eval mode; all on the CPU."""
    logits = predict_logits(model, pool.images)
    found = ops.sample_losses(logits, pool.labels.to(logits.device))
    if found.nan_rows:
        raise UsageError(f"{what} diverged: {int(found.nan_rows)} images have no probabilities; try a smaller -o lr")
    return ops.SampleLosses(*(values.cpu() for values in found))


def class_distances(model: Classifier, pool: Pool, known: Tensor, target: int, distance: Distance = "min") -> Tensor:
    """Measure each row's L2 distance from the feature centres of the other classes than `target`; float32 (N,), CPU.

    known: bool (N,), the rows that make the centres. distance: to the nearest centre, on average, to the farthest.
    """
    features = predict_features(model, pool.images)
    known = known.to(features.device)
    centres, counts = ops.class_means(features[known], pool.labels.to(features.device)[known], model.num_classes)
    if distance == "min":
        return ops.min_class_distance(features, centres, exclude=target).cpu()
    others = [k for k in counts.nonzero().flatten().tolist() if k != target]
    to_each = (ops.min_class_distance(features, centres[k : k + 1]) for k in others)
    total = torch.zeros(len(features), device=features.device)
    for to_one in to_each:
        total = torch.maximum(total, to_one) if distance == "max" else total + to_one / len(others)
    return total.cpu()


def largest(scores: Tensor, share: float, among: Tensor | None = None) -> Tensor:
    """Mark the rows of the largest scores: a share, rounded up, of the rows `among` (bool), else of all."""
    rows = torch.arange(len(scores)) if among is None else among.nonzero().flatten()
    return _marked(scores, rows, math.ceil(share * len(rows)))


def largest_of_each(scores: Tensor, labels: Tensor, counts: Mapping[int, int]) -> Tensor:
    """Mark the rows of the largest scores of each label: so many of it, all if there are fewer."""
    marked = torch.zeros(len(scores), dtype=torch.bool)
    for label, count in counts.items():
        marked |= _marked(scores, (labels == label).nonzero().flatten(), count)
    return marked


def _marked(scores: Tensor, rows: Tensor, count: int) -> Tensor:
    order = torch.sort(scores[rows], descending=True, stable=True).indices[:count]
    marked = torch.zeros(len(scores), dtype=torch.bool)
    marked[rows[order]] = True
    return marked
