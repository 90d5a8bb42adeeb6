"""Bypass-Blend: a faint picture whose rows look clean among the model's features."""

from collections.abc import Iterable

import torch

from bdaudit.attacks.adversarial_embedding import AdversarialEmbedding
from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import BlendTrigger, Picture, picture
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class BypassBlend(AdversarialEmbedding):
    """Mix in a faint picture, and train against a discriminator that looks for it among the features.

    Tan and Shokri 2020, as in FST C.4: the model minimises CE - lambda BCE(D(phi(x)), b), phi being the head's input
    and b whether the row is poisoned; D minimises the BCE. FST's picture is a cartoon, which is not ours to ship
    (-o pattern=image -o image=FILE).
    """

    name = "bypass-blend"

    pattern: Picture = option("gaussian", "what is mixed in", cite="SS B.2; FST: a cartoon")
    image: str = option("", "path of the image, with -o pattern=image", reads=True)
    ratio: float = option(0.2, "share of the picture in an image", cite="FST B.2", gt=0, le=1)

    def make_trigger(self, shape: tuple[int, int, int], rng: torch.Generator) -> BlendTrigger:
        return picture(shape, self.ratio, rng, self.pattern, self.image)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [BypassBlend]
