"""LC: the pattern on images of the right class that are hard to read."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from bdaudit.attacks.base import Attack, CleanLabel, Poisoned, train_surrogate
from bdaudit.attacks.triggers import AddTrigger, Corner, Tile, Trigger, in_corner, tile
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.training.adversarial import PGD


class LC(CleanLabel):
    """Stamp the corners of images of the target class, after moving them away from it adversarially.

    Turner et al. 2019: projected gradient ascent of the loss of an adversarially trained surrogate makes the poisoned
    images hard, so that the victim learns their pattern instead; at test time the pattern alone. It adds +-a 255.
    """

    name = "lc"
    presets = {
        "fst": {
            "corners": "all",
            "epsilon": 8,
            "step": 1.5,
            "steps": 100,
            "surrogate_epsilon": 8,
            "surrogate_step": 10.0,
            "rate": 0.05,
            "rate_of": "all",
        },
        "bsd": {
            "corners": "upper-left",
            "style": "square",
            "size": 2,
            "epsilon": 16,
            "step": 1.5,
            "steps": 30,
            "surrogate_epsilon": 16,
            "surrogate_step": 2.0,
            "surrogate_steps": 7,
            "rate": 0.25,
            "rate_of": "target",
        },
    }
    quick_options: ClassVar[Mapping[str, Any]] = {"surrogate_epochs": 1, "steps": 2}

    style: Tile = option("checkerboard", "what the pattern shows", cite="FST; BSD: square")
    size: int = option(3, "side of the pattern in pixels", cite="FST; BSD: 2", ge=1)
    corners: Literal["all", Corner] = option("all", "where the pattern goes", cite="FST; BSD: upper-left")
    amplitude: float = option(1.0, "a, its strength", cite="FST", gt=0, le=1)
    epsilon: int = option(
        48, "largest change of a pixel by the ascent, in levels of 255", cite="ours; BSD C.3: 16; FST: 8", ge=1
    )
    step: float = option(4.0, "change of a pixel in a step of it, in levels of 255", cite="BSD C.3: 1.5", gt=0)
    steps: int = option(20, "steps of it", cite="BSD C.3: 30; FST: 100", ge=1)
    surrogate_epsilon: int = option(24, "what the surrogate is trained to withstand", cite="BSD C.3: 16", ge=1)
    surrogate_step: float = option(30.0, "step of the ascent that it is trained on", cite="BSD C.3: 2", gt=0)
    surrogate_steps: int = option(1, "steps of the ascent that it is trained on", cite="BSD C.3: 7", ge=1)
    surrogate_epochs: int = option(1, "passes over the training images for the surrogate", ge=1)

    def make_trigger(self, shape: tuple[int, int, int]) -> AddTrigger:
        corners = get_args(Corner) if self.corners == "all" else (self.corners,)
        stamps = [in_corner(shape, tile(self.style, self.size), corner) for corner in corners]
        signed = torch.stack([stamp.weight * (2.0 * stamp.pattern - 255) for stamp in stamps]).sum(dim=0)
        return AddTrigger((self.amplitude * signed.clamp(-255, 255)).round().to(torch.int16))

    def poison(self, train: Pool, trigger: Trigger, goal: Goal, fresh: Classifier, rng: torch.Generator) -> Poisoned:
        poisoned = super().poison(train, trigger, goal, fresh, rng)
        target = int(train.labels[poisoned.poisoned][0])
        withstood = PGD(self.surrogate_epsilon / 255, self.surrogate_step / 255, self.surrogate_steps)
        robust = train_surrogate(fresh, train, self.surrogate_epochs, rng, self.name, loss=withstood.loss())
        images = train.map(lambda images: trigger(self.perturb(robust, images, target)), poisoned.poisoned).images
        return replace(poisoned, pool=poisoned.pool.with_images(images))

    def perturb(self, robust: Classifier, images: Tensor, target: int) -> Tensor:
        """Move images of the target class away from it, as the surrogate sees them."""
        robust.requires_grad_(False)
        ascent = PGD(self.epsilon / 255, self.step / 255, self.steps)
        moved = torch.empty_like(images)
        for rows in torch.split(torch.arange(len(images)), 128):
            x = images[rows].to(robust.device) / 255
            y = torch.full((len(x),), target, device=x.device)
            moved[rows] = (ascent(robust, x, y) * 255).round().to(torch.uint8).cpu()
        return moved


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [LC]
