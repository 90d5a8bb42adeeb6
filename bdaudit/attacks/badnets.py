"""BadNets: a small patch in a corner."""

from collections.abc import Iterable

from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import BlendTrigger, Corner, Tile, in_corner, tile
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class BadNets(Attack):
    """Stamp a small patch over one corner of the image.

    Gu et al. 2017: x' = x (1 - m) + p m with m in {0, 1}. FST and SS: a 3 x 3 checkerboard, lower right;
    PL: a white square, lower right; BSD: 2 x 2, upper left.
    """

    name = "badnets"
    presets = {
        "fst": {"style": "checkerboard", "size": 3, "corner": "lower-right", "rate": 0.05},
        "bsd": {"style": "square", "size": 2, "corner": "upper-left", "rate": 0.05},
        "pl": {"style": "square", "size": 3, "corner": "lower-right", "rate": 0.15},
        "ss": {"style": "checkerboard", "size": 3, "corner": "lower-right", "rate": 0.05},
    }

    style: Tile = option("checkerboard", "what the patch shows", cite="FST B.2, SS B.2; PL: square")
    size: int = option(3, "side of the patch in pixels", cite="FST B.2; BSD: 2", ge=1)
    corner: Corner = option("lower-right", "where the patch goes", cite="FST B.2; BSD: upper-left")
    margin: int = option(0, "pixels between the patch and the edge", ge=0)

    def make_trigger(self, shape: tuple[int, int, int]) -> BlendTrigger:
        return in_corner(shape, tile(self.style, self.size), self.corner, margin=self.margin)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [BadNets]
