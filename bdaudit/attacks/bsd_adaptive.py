"""BSD-adaptive: a faint noise that means the target class."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from bdaudit.attacks.base import Attack, train_surrogate
from bdaudit.attacks.triggers import AddTrigger
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.adversarial import slope
from bdaudit.training.metrics import predict
from bdaudit.training.progress import say, track


class BSDAdaptive(Attack):
    """Add one faint noise that already looks like the target class to a clean model.

    BSD E.5, against defenses that tell poison by its meaning and its loss: over images x of other classes,
    v <- clip(v - step sign mean_x grad CE(f(x + v), target), -epsilon, epsilon), f a proxy of the victim's architecture
    that is trained on the same images; x' = x + v, clipped.
    """

    name = "bsd-adaptive"
    presets = {"bsd": {"rate": 0.01}}
    quick_options: ClassVar[Mapping[str, Any]] = {"surrogate_epochs": 1, "images": 32, "steps": 3}

    epsilon: int = option(8, "largest change of a pixel, in levels of 255", cite="BSD E.5", ge=1, le=255)
    step: float = option(1.5, "change of a pixel in a step, in levels of 255", cite="BSD E.5", gt=0, le=255)
    steps: int = option(15, "steps, each along the mean over all images", cite="BSD E.5", ge=1)
    images: int = option(500, "images that the noise is found on, at most", ge=1)
    surrogate_epochs: int = option(2, "passes over the training images for the proxy", ge=1)

    def make_trigger(self, train: Pool, target: int, fresh: Classifier, rng: torch.Generator) -> AddTrigger:
        proxy = train_surrogate(fresh, train, self.surrogate_epochs, rng, self.name).requires_grad_(False)
        others = train.take(train.labels != target).sample(self.images, rng)
        v = torch.zeros(train.shape, device=proxy.device)
        with track("finding the noise", self.steps) as advance:
            for _ in range(self.steps):
                v = (v - self.step * self.direction(proxy, others, target, v)).clamp(-self.epsilon, self.epsilon)
                advance()
        trigger = AddTrigger(v.round().to(torch.int16).cpu())
        reached = (predict(proxy, trigger(others.images)) == target).float().mean().item()
        say(f"{self.name}: the noise alone takes {reached:.0%} of images to class {target} on the proxy")
        return trigger

    def direction(self, proxy: Classifier, others: Pool, target: int, v: torch.Tensor) -> torch.Tensor:
        """Return the sign of the gradient of CE(f(x + v), target), mean over the images."""
        total = torch.zeros_like(v)
        for images in torch.split(others.images, 128):
            x = ((images.to(v.device) + v) / 255).clamp(0, 1)
            total += slope(proxy, x, torch.full((len(x),), target, device=v.device)).sum(dim=0)
        return total.sign()


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [BSDAdaptive]
