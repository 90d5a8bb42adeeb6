"""How far a transformation moves what a model makes of an image: far if a trigger decides (Chen et al. 2022, FCT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.augment import resampled, uniform
from bdaudit.training.metrics import predict_features

SHIFT = 0.2
"""Of a side, by which an image is moved at most."""
BATCH = 512


def sensitivities(model: Classifier, pool: Pool, rng: torch.Generator) -> Tensor:
    """Mean squared difference of an image's features before and after it is turned and shifted; float32 (N,), CPU."""
    scores = []
    for images in torch.split(pool.images, BATCH):
        moved = predict_features(model, turned(images, rng)) - predict_features(model, images)
        scores.append(moved.square().mean(1).cpu())
    return torch.cat(scores)


def turned(images: Tensor, rng: torch.Generator) -> Tensor:
    """Turn each image by any angle, then shift it by up to a fifth of its sides; uint8 to floats in [0, 1].

    What comes in from outside is black.
    """
    n, _, height, width = images.shape
    angle = uniform(n, -math.pi, math.pi, rng)
    shift = torch.stack([uniform(n, -2 * SHIFT, 2 * SHIFT, rng) for _ in range(2)], 1)  # sides are 2 long
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin * height / width], 1), torch.stack([sin * width / height, cos], 1)], 1)
    theta = torch.cat([turn, (turn @ -shift[:, :, None])], 2)
    return resampled(images.float() / 255, theta)


def intra_class(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine between the centres that a batch's labels have among the features, each with each other."""
    features = model.features(x).float().flatten(1)
    belongs = F.one_hot(y, model.num_classes).float()
    with torch.autocast(features.device.type, enabled=False):
        # Sums have the directions of means; a class without images has no direction, and a cosine of zero with all.
        centres = F.normalize(belongs.T @ features, dim=1)
        cosines = centres @ centres.T
    present = belongs.any(0).sum()
    return (cosines.sum() - cosines.diagonal().sum()) / (present * (present - 1)).clamp(min=1)
