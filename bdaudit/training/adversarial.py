"""What makes adversarial images, and what unlearning them shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.training.loop import Loss
from bdaudit.training.sam import statistics_kept


def away_from(logits: Tensor, classes: Tensor) -> Tensor:
    """Return -log(1 - p_k) of each image (N,), k its entry of `classes` (N,), without cancelling near p_k = 1."""
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)


def slope(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of every image's own cross-entropy at x, pixels in [0, 1]."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x).float(), y, reduction="sum"), [x])
    return gradient


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent of the cross-entropy by sign steps (Madry et al., ICLR 2018); pixels in [0, 1].

    radius: the largest change of a pixel.
    """

    radius: float
    step: float
    steps: int

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
        """Move each image away from its label; start: what is added to the images at first, else nothing."""
        d = torch.zeros_like(x) if start is None else start
        for _ in range(self.steps):
            d = (d + self.step * slope(model, (x + d).clamp(0, 1), y).sign()).clamp(-self.radius, self.radius)
        return (x + d).clamp(0, 1)

    def loss(self) -> Loss:
        """Make the loss of adversarial training: the cross-entropy of images moved from a random point of the ball."""

        def on_adversaries(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            pixels = x / 255
            start = (2 * torch.rand_like(pixels) - 1) * self.radius
            with statistics_kept(model):
                moved = self(model, pixels, y, start)
            return F.cross_entropy(model(moved), y)

        return on_adversaries
