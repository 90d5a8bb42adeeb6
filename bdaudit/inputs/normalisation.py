"""What networks expect of their pixels: the usual normalisations, and how to find out where nothing says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.inputs.classifier import Classifier, Preprocessing

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-std0.2": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
    "digits": ((0.3053,), (0.3186,)),
}
"""Data set -> (mean, std) per channel, on pixels scaled to [0, 1], as the field's own code has them.

For CIFAR-10 two are in use: `cifar10-std0.2` has the mean of each image's own deviation."""

RANGES: dict[str, tuple[float, float]] = {"[0,1]": (0.0, 1.0), "[-1,1]": (0.5, 0.5)}
"""What pixels are scaled to -> (mean, std) of every channel."""


def normalisations(channels: int) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """List every normalisation known for images of so many channels, the ranges first."""
    ranges = {name: ((mean,) * channels, (std,) * channels) for name, (mean, std) in RANGES.items()}
    return ranges | {name: figures for name, figures in NORMALISATIONS.items() if len(figures[0]) == channels}


def normalisation(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up (mean, std) by name; raises UsageError for an unknown one, or one for another number of channels."""
    found = normalisations(channels).get(name)
    if found is not None:
        return found
    if name in NORMALISATIONS:
        raise UsageError(
            f"--normalise {name}: is for {len(NORMALISATIONS[name][0])} channels, the images have {channels}"
        )
    known = [*RANGES, *NORMALISATIONS]
    raise UsageError(
        f"--normalise {one_line(name, 40)}: known are {', '.join(known)}{did_you_mean(one_line(name, 40), known)}"
    )


def usual_preprocessing(shape: tuple[int, int, int], name: str | None = None) -> Preprocessing:
    """What a network expects of (C, H, W) images under a named normalisation; without one, pixels in [0, 1]."""
    channels, height, width = shape
    mean, std = normalisation(name or "[0,1]", channels)
    return Preprocessing(channels=channels, height=height, width=width, mean=mean, std=std)


@torch.no_grad()
def rank_normalisations(
    model: Classifier, images: Tensor, labels: Tensor, candidates: Mapping[str, tuple[tuple[float, ...], ...]]
) -> list[tuple[str, Tensor]]:
    """Try a network under each normalisation and say which images it gets right, the best normalisation first.

    images: uint8 (N, C, H, W) of the model's own size. labels: int64 (N,). Both on the model's device.
    candidates: name -> (mean, std); two of the same figures are tried once, and the first one wins a tie.
    Returns (name, bool (N,) on the CPU). The model's mode and its own normalisation are left as they were.
    """
    if not candidates or not len(images):
        raise UsageError(f"no normalisation to choose from for {len(images)} images")
    distinct = {figures: name for name, figures in reversed(list(candidates.items()))}
    p = model.preprocessing
    tried = []
    for name, (mean, std) in candidates.items():
        if distinct[mean, std] == name:
            pixels = Preprocessing(channels=p.channels, height=p.height, width=p.width, mean=mean, std=std)
            tried.append((name, _right(model.preprocessed(pixels), images, labels)))
    return sorted(tried, key=lambda row: -int(row[1].sum()))


def _right(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        batches = zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
        return torch.cat([(model(x).argmax(1) == y).cpu() for x, y in batches])
    finally:
        model.train(training)
