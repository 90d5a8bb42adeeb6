"""Operators that read what a model says of each sample: losses for splits, distances for BSD's OSS score."""

from typing import NamedTuple

import torch
from torch import Tensor

from bdaudit.errors import UsageError
from bdaudit.ops import reference
from bdaudit.ops.checks import check, check_range, kind_of, shape_of
from bdaudit.ops.register import Launch, contract, operator

FLOATS = (torch.float32, torch.bfloat16)


class SampleLosses(NamedTuple):
    """What logits say of each sample's label; all (N), float32 but for the prediction."""

    ce: Tensor
    symmetric_ce: Tensor
    entropy: Tensor
    confidence: Tensor
    prediction: Tensor
    nan_rows: Tensor


def sample_losses(logits: Tensor, labels: Tensor) -> SampleLosses:
    """Read every sample's losses, entropy, prediction and confidence off its logits, in one pass.

    With p = softmax(logits) and y the label, per sample:

    ce            cross-entropy, -log p_y
    symmetric_ce  0.1 ce + rce, where rce = -log(1e-4) (1 - p_y) is cross-entropy the other way round, log 0
                  being log 1e-4 (SCE as DBD, ASD and BSD split by it)
    entropy       -sum p log p, in nats
    confidence    max p
    prediction    int64: the class of the largest logit, the first of equals
    nan_rows      int64 scalar: how many rows had no probabilities

    logits  float32 or bfloat16 (N, C), C >= 1; computed in float32. No gradient flows
    labels  int64 (N) in [0, C), on the device of the logits; on a GPU, checking that waits for it. Inside
            torch.compile and while a CUDA graph is captured it is not checked, and a row with another label gets
            a NaN ce

    A row with NaN, with +inf, or of nothing but -inf has no probabilities: its values are NaN, its prediction
    is -1. Logits of any finite size are safe, and -inf for a class that cannot be. Raises UsageError if an
    argument has the wrong type, shape, device or values.
    """
    _check_matrix(logits, "logits", "(N, C)")
    if logits.shape[1] < 1:
        raise UsageError(f"logits have shape {shape_of(logits)}; expected (N, C) with at least one class")
    _check_labels(labels, logits, "logits")
    check_range(labels, "labels", 0, logits.shape[1])
    values, prediction, nan_rows = _sample_losses(logits.detach(), labels)
    ce, symmetric_ce, entropy, confidence = values.unbind(0)
    return SampleLosses(ce, symmetric_ce, entropy, confidence, prediction, nan_rows)


def min_class_distance(features: Tensor, centres: Tensor, *, exclude: int | Tensor | None = None) -> Tensor:
    """Measure how far each sample is from the nearest class centre (BSD, Eq. 6: its OSS score).

    Returns float32 (N): min over k != exclude of ||features_i - centres_k||_2, from differences summed in
    float32, without ever holding N x K values.

    features  float32 or bfloat16 (N, D)
    centres   float32 (K, D) on the device of the features. One that is not finite, as `class_means` gives for
              a class without samples, is no centre; with none left the distance is infinite
    exclude   a class in [0, K) that no sample is measured against, or int64 (N), a class for each sample, -1
              for none

    Features with NaN have distance NaN, but to no centre it is infinite. Raises UsageError if an argument has the wrong
    type, shape, device or values; a tensor `exclude` on a GPU is checked by waiting for it, and inside torch.compile or
    while a CUDA graph is captured it is not.
    """
    _check_matrix(features, "features", "(N, D)")
    check(centres, "centres", (torch.float32,), features.device, "features")
    if centres.dim() != 2 or centres.shape[1] != features.shape[1]:
        raise UsageError(f"centres have shape {shape_of(centres)}; expected (K, {features.shape[1]})")
    classes = len(centres)
    if isinstance(exclude, Tensor):
        _check_labels(exclude, features, "features", name="exclude")
        check_range(exclude, "exclude", -1, classes)
    elif exclude is not None:
        if not isinstance(exclude, int) or not 0 <= exclude < classes:
            raise UsageError(f"exclude is {exclude!r}; expected a class from 0 to {classes - 1}")
        exclude = torch.full((len(features),), exclude, device=features.device)
    result: Tensor = _min_class_distance(features.detach(), centres.detach(), exclude)
    return result


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Average the features of each class: float32 (K, D), and how many samples it had, int64 (K).

    Sums are in double and, by the kernels, in the same order every time, however many threads there are. A class
    without samples has a mean of NaN, which `min_class_distance` takes for no centre.

    features  float32 or bfloat16 (N, D)
    labels    int64 (N) in [0, classes), on the device of the features; on a GPU, checking that waits for it.
              Inside torch.compile and while a CUDA graph is captured it is not checked, and a row with another
              label counts for no class

    Raises UsageError if an argument has the wrong type, shape, device or values.
    """
    _check_matrix(features, "features", "(N, D)")
    if not isinstance(classes, int) or classes < 1:
        raise UsageError(f"classes is {classes!r}; expected a positive integer")
    _check_labels(labels, features, "features")
    check_range(labels, "labels", 0, classes)
    means, counts = _class_means(features.detach(), labels, classes)
    return means, counts


def _check_matrix(matrix: Tensor, name: str, shape: str) -> None:
    check(matrix, name, FLOATS, matrix.device if isinstance(matrix, Tensor) else torch.device("cpu"))
    if matrix.dim() != 2:
        raise UsageError(f"{name} have shape {shape_of(matrix)}; expected {shape}")


def _check_labels(labels: Tensor, rows: Tensor, of: str, name: str = "labels") -> None:
    check(labels, name, (torch.int64,), rows.device, of)
    if labels.shape != rows.shape[:1]:
        raise UsageError(f"{name} are {kind_of(labels)}; expected one for each of the {len(rows)} rows")


def _sample_losses_compute(launch: Launch, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    contract(
        "sample_losses",
        logits.dtype in FLOATS
        and logits.dim() == 2
        and logits.shape[1] >= 1
        and labels.dtype == torch.int64
        and labels.shape == logits.shape[:1],
    )
    values, prediction, nans = _sample_losses_fake(logits, labels)
    launch(logits, labels, values, prediction, nans.zero_(), *logits.shape, logits.dtype == torch.bfloat16)
    return values, prediction, nans


def _sample_losses_fake(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        logits.new_empty((4, len(logits)), dtype=torch.float32),
        logits.new_empty((len(logits),), dtype=torch.int64),
        logits.new_empty((), dtype=torch.int64),
    )


def _min_class_distance_compute(launch: Launch, features: Tensor, centres: Tensor, exclude: Tensor | None) -> Tensor:
    contract(
        "min_class_distance",
        features.dtype in FLOATS
        and centres.dtype == torch.float32
        and features.dim() == centres.dim() == 2
        and features.shape[1] == centres.shape[1]
        and (exclude is None or (exclude.dtype == torch.int64 and exclude.shape == features.shape[:1])),
    )
    out = _min_class_distance_fake(features)
    launch(features, centres, exclude, out, *features.shape, len(centres), features.dtype == torch.bfloat16)
    return out


def _min_class_distance_fake(features: Tensor, *_: object) -> Tensor:
    return features.new_empty((len(features),), dtype=torch.float32)


def _class_means_compute(launch: Launch, features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    contract(
        "class_means",
        features.dtype in FLOATS
        and features.dim() == 2
        and labels.dtype == torch.int64
        and labels.shape == features.shape[:1]
        and classes >= 1,
    )
    means, counts = _class_means_fake(features, labels, classes)
    # As many stretches as leave their sums small: a matter of shapes alone, so that results are the same again.
    segments = max(1, min(64 if features.is_cuda else 16, len(features) // 256, (1 << 21) // max(means.numel(), 1)))
    scratch = features.new_empty((segments, *means.shape), dtype=torch.float64) if features.is_cuda else None
    sizes = (*features.shape, classes, segments)
    launch(features, labels, means, counts.zero_(), scratch, *sizes, features.dtype == torch.bfloat16)
    return means, counts


def _class_means_fake(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    means = features.new_empty((classes, features.shape[1]), dtype=torch.float32)
    return means, labels.new_empty((classes,))


_sample_losses = operator(
    "sample_losses(Tensor logits, Tensor labels) -> (Tensor, Tensor, Tensor)",
    reference=reference.sample_losses,
    fake=_sample_losses_fake,
    compute=_sample_losses_compute,
)
_min_class_distance = operator(
    "min_class_distance(Tensor features, Tensor centres, Tensor? exclude) -> Tensor",
    reference=reference.min_class_distance,
    fake=_min_class_distance_fake,
    compute=_min_class_distance_compute,
)
_class_means = operator(
    "class_means(Tensor features, Tensor labels, int classes) -> (Tensor, Tensor)",
    reference=reference.class_means,
    fake=_class_means_fake,
    compute=_class_means_compute,
)
