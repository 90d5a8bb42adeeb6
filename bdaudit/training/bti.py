"""Backdoor trigger inversion from decoupled benign features: the reverse step of BTI-DBF, PAM and BTI+SAM.

Xu et al., "Towards Reliable and Efficient Backdoor Trigger Reversal via Decoupling Benign Features" (ICLR 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, seeded
from bdaudit.training.loop import descend, endless_rows
from bdaudit.training.metrics import Rate
from bdaudit.training.progress import say
from bdaudit.training.split import Split
from bdaudit.training.unet import UNet, resolutions


@dataclass(frozen=True, kw_only=True)
class Reversal:
    """How long to look for a trigger, and how far it may change an image.

    images: clean images to look with, at most. mask_steps, steps: of 128 images (features only) and of `batch_size`.
    width: channels of the generator. pixel_bound: mean squared change of a normalised pixel. feature_bound: of a
    benign feature.
    """

    images: int
    mask_steps: int
    steps: int
    batch_size: int
    width: int
    pixel_bound: float
    feature_bound: float


@dataclass(frozen=True)
class Reversed:
    """A trigger that was reversed from a model.

    generator: clean pixels to poisoned ones. target: the class that most of its images get; rate: how many do.
    """

    generator: Generator
    target: int
    rate: Rate

    @torch.no_grad()
    def mix(self, x: Tensor, share: float) -> Tensor:
        """Replace the first images of a batch, `share` of them and one more, by poisoned ones; floats in pixels."""
        k = poisoned_in(len(x), share)
        pixels = x / 255 if x.dtype == torch.uint8 else x
        return torch.cat([self.generator(pixels[:k]), pixels[k:]])


def poisoned_in(n: int, share: float) -> int:
    """How many of n images are replaced."""
    return min(n, int(share * n) + 1)


class Generator(nn.Module):
    """Poisoned images from clean ones: a U-Net over normalised pixels that adds to its input, without bounds.

    Its last layer starts small, so that it begins near the identity. width: channels at full resolution, doubled at
    each of up to four resolutions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, width: int) -> None:
        super().__init__()
        channels, *size = model.preprocessing.shape
        self.unet = UNet(channels, channels, [width * 2**i for i in range(resolutions(size, 4))])
        with torch.no_grad():
            for parameter in self.unet.out.parameters():
                parameter.mul_(0.1)
        self.register_buffer("mean", model.mean.clone())
        self.register_buffer("std", model.std.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (N, C, H, W), uint8 or floats in [0, 1], to floats that may leave [0, 1]."""
        pixels = x / 255 if x.dtype == torch.uint8 else x
        change: Tensor = self.unet((pixels - self.mean) / self.std)
        return pixels + change * self.std


def reverse(
    model: Classifier, clean: Pool, how: Reversal, rng: torch.Generator, before: Sequence[Reversed] = ()
) -> Reversed:
    """Decouple the benign features, train a generator that changes only the others, and see where its images go.

    model: is left as it was, and looked at in eval mode. before: what earlier rounds found; the generator of
    the last is trained on, towards the target of the first, which the suspect itself showed.
    """
    frozen = Runtime.of(model.device).place(model.clone()).eval().requires_grad_(False)
    split = Split(frozen)
    pool = clean.sample(how.images, rng).to(model.device)
    features = split.features_of(pool.images)
    mask = benign_mask(split, features, pool.labels, how, rng)
    with seeded(rng):
        generator = copy.deepcopy(before[-1].generator) if before else Generator(frozen, how.width).to(model.device)
    target = before[0].target if before else None
    deal = endless_rows(len(pool), rng)

    def loss() -> Tensor:
        rows = deal(how.batch_size).to(model.device)
        return generator_loss(split, generator, pool.images[rows] / 255, features[rows], mask, how, target)

    descend(torch.optim.Adam(generator.parameters(), 1e-3), loss, how.steps, model.device, what="reversing")
    found = detect(frozen, generator, pool.images, rng)
    say(f"reversed a trigger: {found.rate.value:.0%} of its images become class {model.classes[found.target]}")
    return found


def benign_mask(split: Split, features: Tensor, labels: Tensor, how: Reversal, rng: torch.Generator) -> Tensor:
    """Find which features are benign: min over M in [0, 1] of CE(h(M g(x)), y) - CE(h((1 - M) g(x)), y).

    features: g(x) (N, ...), which do not change here. Returns M, of the shape of one image's features.
    """
    free = torch.randn(features.shape[1:], generator=rng).to(features.device).requires_grad_()
    optimizer = torch.optim.Adam([free], 0.01)
    deal = endless_rows(len(features), rng)
    for _ in range(how.mask_steps):
        rows = deal(128).to(features.device)
        loss = mask_loss(split, free.tanh() / 2 + 0.5, features[rows], labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (free.tanh() / 2 + 0.5).detach()


def mask_loss(split: Split, mask: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """CE(h(M g(x)), y) - CE(h((1 - M) g(x)), y), the two in one pass."""
    kept, dropped = split.logits(torch.cat([mask * features, (1 - mask) * features])).chunk(2)
    return F.cross_entropy(kept, labels) - F.cross_entropy(dropped, labels)


def generator_loss(
    split: Split, generator: Generator, x: Tensor, features: Tensor, mask: Tensor, how: Reversal, target: int | None
) -> Tensor:
    """Move the features that are not benign as far as the bounds on pixels and benign features allow."""
    poisoned = generator(x)
    after, logits = split.both(poisoned)
    distance = F.mse_loss(split.model.normalise(poisoned), split.model.normalise(x))
    moved = (after - features).square()
    benign = (mask.square() * moved).mean()
    if distance > how.pixel_bound or benign > how.feature_bound:
        loss = distance
    else:
        loss = 0.01 * benign - ((1 - mask).square() * moved).mean()
    if target is not None:
        loss = loss + F.cross_entropy(logits, torch.full((len(x),), target, device=logits.device))
    return loss


@torch.no_grad()
def detect(model: Classifier, generator: Generator, images: Tensor, rng: torch.Generator) -> Reversed:
    """The target is what the model takes most poisoned images for, when their sources carry a little noise."""
    predicted = []
    for x in torch.split(images, 512):
        noise = torch.randn(x.shape, generator=rng).to(x.device) * model.std
        predicted.append(model(generator(x / 255 + 0.03 * noise)).argmax(1))
    classes = torch.cat(predicted).cpu()
    target = int(torch.bincount(classes, minlength=model.num_classes).argmax())
    return Reversed(generator, target, Rate.of(classes == target))
