"""Contrastive learning: views of one image are alike and unlike all others, with labels those of one class as well.

SimCLR (Chen et al. 2020) and SupCon (Khosla et al. 2020), which are one loss with other positives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import seeded
from bdaudit.training.augment import resampled, uniform
from bdaudit.training.loop import Recipe, tune

RATIO = math.log(4 / 3)
"""Of a crop's sides to each other, at most."""
BLUR = 2.0
"""Standard deviation of a blur in pixels, at most."""
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Views:
    """What makes a view of an image: a crop at another size, mirroring, other colours, a blur; drawn per image.

    least: of the image's area that a crop shows. jitter: how far brightness, contrast and saturation are moved, as
    shares of themselves, and a quarter of it is the part of the circle that hues are turned by; all of it in four
    images of five. grey, blurred: shares of images without colours, and of those that are blurred. Grey images have no
    colours to change.
    """

    least: float = 0.2
    flip: bool = False
    jitter: float = 0.4
    grey: float = 0.2
    blurred: float = 0.0

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Turn uint8 (N, C, H, W) into float32 in [0, 1] of the same shape."""
        x = self._cropped(images.float() / 255, rng)
        if self.jitter:
            x = self._jittered(x, rng)
        return self._blurred(x, rng) if self.blurred else x

    def _cropped(self, x: Tensor, rng: torch.Generator) -> Tensor:
        n = len(x)
        area, ratio = uniform(n, self.least, 1, rng), uniform(n, -RATIO, RATIO, rng).exp()
        theta = torch.zeros(n, 2, 3)
        for axis, side in enumerate(((area * ratio).sqrt(), (area / ratio).sqrt())):
            side = side.clamp(max=1)
            theta[:, axis, axis] = side
            theta[:, axis, 2] = (1 - side) * uniform(n, -1, 1, rng)
        if self.flip:
            theta[:, 0, 0] *= torch.where(torch.rand(n, generator=rng) < 0.5, -1, 1)
        return resampled(x, theta, outside="border")

    def _jittered(self, x: Tensor, rng: torch.Generator) -> Tensor:
        n, colours = x.shape[:2]
        touched = torch.rand(n, generator=rng) < 0.8

        def factor() -> Tensor:
            drawn = uniform(n, 1 - self.jitter, 1 + self.jitter, rng)
            return torch.where(touched, drawn, 1.0)[:, None, None, None].to(x.device)

        x = (x * factor()).clamp(0, 1)
        mean = luminance(x).mean((1, 2, 3), keepdim=True)
        x = (mean + (x - mean) * factor()).clamp(0, 1)
        if colours == 1:
            return x
        x = luminance(x) + (x - luminance(x)) * factor()
        turned = torch.where(touched, uniform(n, -1, 1, rng) * self.jitter / 4, 0.0) * 2 * math.pi
        x = torch.einsum("nij,njhw->nihw", hue_turn(turned).to(x.device), x).clamp(0, 1)
        drained = (torch.rand(n, generator=rng) < self.grey)[:, None, None, None].to(x.device)
        return torch.where(drained, luminance(x), x)

    def _blurred(self, x: Tensor, rng: torch.Generator) -> Tensor:
        n, sides = len(x), x.shape[2:]
        reach = max(1, min(sides) // 20)  # a kernel of a tenth of the side, as in SimCLR
        sigma = torch.where(torch.rand(n, generator=rng) < self.blurred, uniform(n, 0.1, BLUR, rng), 1e-3)
        weights = (-((torch.arange(2 * reach + 1) - reach) ** 2) / (2 * sigma[:, None] ** 2)).exp()
        weights = (weights / weights.sum(1, keepdim=True))[:, None, None, None].to(x.device)
        for axis in (2, 3):
            padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
            windows = F.pad(x, padding, mode="reflect").unfold(axis, 2 * reach + 1, 1)
            x = (windows * weights).sum(-1)
        return x


def luminance(x: Tensor) -> Tensor:
    """Drop the colours of (N, C, H, W), floats; (N, 1, H, W)."""
    return x if x.shape[1] == 1 else (x * YIQ[0].to(x.device)[:, None, None]).sum(1, keepdim=True)


def hue_turn(angles: Tensor) -> Tensor:
    """Turn colours around the axis of greys: matrices (N, 3, 3) for RGB columns. angles: radians (N,)."""
    cos, sin = angles.cos(), angles.sin()
    turn = torch.zeros(len(angles), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = -sin, sin
    matrices: Tensor = torch.linalg.inv(YIQ) @ turn @ YIQ
    return matrices


def contrastive_loss(z: Tensor, temperature: float, positives: Tensor | None = None) -> Tensor:
    """Draw each view to its positives, relative to all other views (SupCon, Eq. 2).

    z: (2N, D) of length 1; rows i and i + N are views of one image, and always each other's positives. positives: bool
    (N, N), the images whose views are positives as well; None: no others, which makes it SimCLR's NT-Xent (Eq. 1).
    """
    n, device = len(z) // 2, z.device
    own = torch.eye(n, dtype=torch.bool, device=device)
    itself = torch.eye(2 * n, dtype=torch.bool, device=device)
    positive = (own if positives is None else own | positives).repeat(2, 2) & ~itself
    with torch.autocast(device.type, enabled=False):  # at a low temperature bf16 would tell few similarities apart
        similarity = z.float() @ z.float().T / temperature
    log_p = similarity.masked_fill(itself, -torch.inf).log_softmax(1)
    loss: Tensor = -(log_p.masked_fill(~positive, 0.0).sum(1) / positive.sum(1)).mean()
    return loss


@dataclass(frozen=True)
class Contrast:
    """How to learn by contrast: SGD along a cosine, after a warm-up of a part of the steps.

    dimensions: of the projections, which a hidden layer as wide as the features leads to.
    """

    epochs: int
    lr: float
    batch_size: int
    temperature: float
    views: Views = field(default_factory=Views)
    min_steps: int = 1
    warm_up: float = 0.0
    weight_decay: float = 1e-4
    dimensions: int = 128


def contrast(model: Classifier, pool: Pool, how: Contrast, rng: torch.Generator, *, what: str) -> Classifier:
    """Train all of `model` but its head in place: images with one label are each other's positives.

    Labels are compared and nothing else, so that images which get numbers of their own are learnt without labels.
    """

    def loss(projected: Classifier, x: Tensor, y: Tensor) -> Tensor:
        both = torch.cat([how.views(x, rng), how.views(x, rng)])
        z = F.normalize(projected(both).float(), dim=1)
        return contrastive_loss(z, how.temperature, y[:, None] == y[None, :])

    recipe = Recipe(
        how.epochs,
        how.lr,
        how.batch_size,
        weight_decay=how.weight_decay,
        schedule=warm_cosine(how.warm_up),
        min_steps=how.min_steps,
    )
    with seeded(rng), projecting(model, how.dimensions) as projected:
        tune(projected, pool, recipe, rng, loss=loss, keep={}, what=what)
    return model.eval()


@contextmanager
def projecting(model: Classifier, dimensions: int) -> Iterator[Classifier]:
    """Put a projection in the place of the head inside the block: the same network, whose logits are projections."""
    parent, _, name = model.head_name.rpartition(".")
    owner, head = model.body.get_submodule(parent), model.head
    width = head.in_features
    setattr(owner, name, nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dimensions)))
    try:
        names = tuple(str(i) for i in range(dimensions))
        yield Classifier(model.body, model.preprocessing, classes=names).to(model.device)
    finally:
        setattr(owner, name, head)


def warm_cosine(warm_up: float) -> Callable[[float], float]:
    """Rise over a share of the steps to where a cosine over all of them then is."""

    def factor(done: float) -> float:
        cosine = (1 + math.cos(math.pi * max(done, warm_up))) / 2
        return cosine if done >= warm_up else cosine * done / warm_up

    return factor
