"""What networks expect of their pixels: the usual normalisations, and what to assume where nothing says."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Preprocessing

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "digits": ((0.3053,), (0.3186,)),
}
"""Data set -> (mean, std) per channel, on pixels scaled to [0, 1], as the field's own code has them."""


def guess_preprocessing(channels: int, height: int, width: int) -> Preprocessing:
    """Assume that a network takes pixels in [0, 1] as they are: mean 0, std 1."""
    return Preprocessing(channels=channels, height=height, width=width, mean=(0.0,) * channels, std=(1.0,) * channels)


@torch.no_grad()
def choose_preprocessing(
    body: nn.Module, images: Tensor, labels: Tensor, candidates: Iterable[Preprocessing]
) -> Preprocessing:
    """Pick the candidate under which `body` classifies most images correctly; the first one wins a tie.

    images: uint8 (N, C, H, W). labels: int64 (N,). Both on the device of `body`, whose mode is left as it
    was.
    """
    fitting = [c for c in candidates if c.shape == tuple(images.shape[1:])]
    if not fitting or not len(images):
        raise UsageError(f"no normalisation to choose from for images of shape {tuple(images.shape)}")
    was_training = body.training
    body.eval()
    try:
        return max(fitting, key=lambda c: _correct(body, images, labels, c))
    finally:
        body.train(was_training)


def _correct(body: nn.Module, images: Tensor, labels: Tensor, candidate: Preprocessing) -> int:
    mean, std = (torch.tensor(v, device=images.device).reshape(1, -1, 1, 1) for v in (candidate.mean, candidate.std))
    batches = zip(torch.split(images, 256), torch.split(labels, 256), strict=True)
    return sum(int((body((x / 255 - mean) / std).argmax(1) == y).sum()) for x, y in batches)
