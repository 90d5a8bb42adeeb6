"""Blended: one faint image mixed into the whole picture."""

from collections.abc import Iterable

import torch

from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import BlendTrigger, Picture, Trigger, picture
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class Blended(Attack):
    """Mix one fixed noise image (or any image) faintly into the whole picture.

    Chen et al. 2017: x' = (1 - a) x + a p. SS: Gaussian noise, a = .1 in training and .2 at test time;
    PL: uniform noise, .1 / .1; FST, .2 / .2, and BSD, .1 / .1: a cartoon, which is not ours to ship
    (-o pattern=image -o image=FILE).
    """

    name = "blended"
    presets = {
        "fst": {"train_ratio": 0.2, "test_ratio": 0.2, "rate": 0.05},
        "bsd": {"train_ratio": 0.1, "test_ratio": 0.1, "rate": 0.05},
        "pl": {"pattern": "uniform", "train_ratio": 0.1, "test_ratio": 0.1, "rate": 0.15},
        "ss": {"pattern": "gaussian", "train_ratio": 0.1, "test_ratio": 0.2, "rate": 0.05},
    }

    pattern: Picture = option("gaussian", "what is mixed in", cite="SS B.2; PL B: uniform")
    image: str = option("", "path of the image, with -o pattern=image", reads=True)
    train_ratio: float = option(0.1, "share of the pattern in training images", cite="SS B.2; FST: .2", gt=0, le=1)
    test_ratio: float = option(0.2, "share of the pattern in test images", cite="SS B.2; PL B: .1", gt=0, le=1)

    def make_trigger(self, shape: tuple[int, int, int], rng: torch.Generator) -> BlendTrigger:
        return picture(shape, self.test_ratio, rng, self.pattern, self.image)

    def make_train_trigger(self, shape: tuple[int, int, int], trigger: Trigger) -> BlendTrigger:
        return BlendTrigger(self.own(trigger, BlendTrigger).pattern, torch.full(shape[1:], self.train_ratio))


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [Blended]
