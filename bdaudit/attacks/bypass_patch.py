"""Bypass-Patch: a checkerboard whose rows look clean among the model's features."""

from collections.abc import Iterable

from bdaudit.attacks.adversarial_embedding import AdversarialEmbedding
from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import BlendTrigger, Corner, in_corner, tile
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class BypassPatch(AdversarialEmbedding):
    """Stamp a checkerboard, and train against a discriminator that looks for it among the features.

    Tan and Shokri 2020, as in FST C.4: the model minimises CE - lambda BCE(D(phi(x)), b), phi being the head's input
    and b whether the row is poisoned; D minimises the BCE.
    """

    name = "bypass-patch"

    size: int = option(3, "side of the checkerboard in pixels", cite="FST B.2", ge=1)
    corner: Corner = option("lower-right", "where the checkerboard goes", cite="FST B.2")

    def make_trigger(self, shape: tuple[int, int, int]) -> BlendTrigger:
        return in_corner(shape, tile("checkerboard", self.size), self.corner)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [BypassPatch]
