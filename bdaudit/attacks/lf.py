"""LF: a universal perturbation without high frequencies."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bdaudit.attacks.base import Attack, train_surrogate
from bdaudit.attacks.triggers import AddTrigger
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.progress import say


class LF(Attack):
    """Add a smooth perturbation that pushes a clean model towards the target already.

    Zeng et al., ICCV 2021, section 5: v <- minmax(g * (v + g * dr)) a until so many images reach the target, dr being
    DeepFool's steps and g a Gaussian low-pass filter; x' = x + v, clipped. The clean model is a surrogate that the
    attacker trains on the same images.
    """

    name = "lf"
    quick_options: ClassVar[Mapping[str, Any]] = {"surrogate_epochs": 1, "images": 32, "rounds": 2}

    amplitude: float = option(0.2, "a, the largest change of a pixel in [0, 1]", cite="LF released", gt=0, le=1)
    sigma: float = option(
        6.0, "standard deviation of the filter, in pixels of a 32-pixel image", cite="LF released: 30 taps", gt=0, le=32
    )
    images: int = option(100, "images that the perturbation is found on, at most", cite="LF released", ge=1)
    fooled: float = option(0.2, "share of them that must reach the target", cite="LF released: delta .8", gt=0, le=1)
    rounds: int = option(10, "steps of the search, at most; it settles in about five", ge=1)
    overshoot: float = option(0.02, "how much further than the boundary DeepFool goes", cite="DeepFool", ge=0)
    surrogate_epochs: int = option(3, "passes over the training images for the surrogate", ge=1)

    def make_trigger(self, train: Pool, target: int, fresh: Classifier, rng: torch.Generator) -> AddTrigger:
        surrogate = train_surrogate(fresh, train, self.surrogate_epochs, rng, self.name).requires_grad_(False)
        others = train.take(train.labels != target).sample(self.images, rng)
        x = others.images.to(surrogate.device).float() / 255
        steps, _ = deepfool_steps(surrogate, x, target, self.overshoot)
        v = torch.zeros_like(x[0])
        nearest, best, reached = torch.inf, v, 0.0
        for _ in range(self.rounds):
            v = low_pass(v + low_pass(steps.sum(dim=0), self.sigma), self.sigma)
            v = (v - v.amin()) / (v.amax() - v.amin()).clamp(min=1e-12) * self.amplitude
            steps, gaps = deepfool_steps(surrogate, (x + v).clamp(0, 1), target, self.overshoot)
            if gaps.mean() < nearest:
                nearest, best, reached = gaps.mean().item(), v, (gaps <= 0).float().mean().item()
            if reached >= self.fooled:
                break
        say(f"lf: the smooth perturbation alone takes {reached:.0%} of images to class {target} on the surrogate")
        return AddTrigger((best * 255).round().to(torch.int16).cpu())


def deepfool_steps(model: Classifier, x: Tensor, target: int, overshoot: float) -> tuple[Tensor, Tensor]:
    """Find each image's smallest step over the linearised boundary to the target: (f_k - f_t) w / |w|^2.

    w is the gradient of f_t - f_k, k the class now predicted. Returns the steps, zero for images already there,
    and the gaps f_k - f_t.
    """
    x = x.detach().requires_grad_()
    logits = model(x).float()
    gap = logits.amax(dim=1) - logits[:, target]
    (w,) = torch.autograd.grad(-gap.sum(), x)
    gap = gap.detach()
    scale = (1 + overshoot) * gap / w.flatten(1).square().sum(dim=1).clamp(min=1e-12)
    return scale[:, None, None, None] * w, gap


def low_pass(v: Tensor, sigma: float) -> Tensor:
    """Smooth (C, H, W) by a Gaussian, cut at 2.5 deviations, of `sigma` pixels in an image of 32; zero outside."""
    for axis in (1, 2):
        side = v.shape[axis]
        deviation = sigma * side / 32
        reach = max(1, round(2.5 * deviation))
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=v.device) / deviation) ** 2)
        moved = v.movedim(axis, 2)
        rows = moved.reshape(-1, 1, side)
        smooth = nn.functional.conv1d(rows, (taps / taps.sum()).view(1, 1, -1), padding=reach)
        v = smooth.view(moved.shape).movedim(2, axis)
    return v


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [LF]
