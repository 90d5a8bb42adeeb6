"""BadNets: a small patch in a corner."""

from collections.abc import Iterable
from typing import Literal

import torch

from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import BlendTrigger, patch
from bdaudit.contract import option
from bdaudit.errors import UsageError
from bdaudit.hookspecs import hookimpl


class BadNets(Attack):
    """Stamp a small patch over one corner of the image.

    Gu et al. 2017: x' = x (1 - m) + p m with m in {0, 1}. FST and SS: a 3 x 3 checkerboard, lower right;
    PL: a white square, lower right; BSD: 2 x 2, upper left.
    """

    name = "badnets"

    style: Literal["checkerboard", "square"] = option(
        "checkerboard", "what the patch shows", cite="FST B.2, SS B.2; PL: square"
    )
    size: int = option(3, "side of the patch in pixels", cite="FST B.2; BSD: 2", ge=1)
    corner: Literal["lower-right", "lower-left", "upper-right", "upper-left"] = option(
        "lower-right", "where the patch goes", cite="FST B.2; BSD: upper-left"
    )
    margin: int = option(0, "pixels between the patch and the edge", ge=0)

    def make_trigger(self, shape: tuple[int, int, int]) -> BlendTrigger:
        _, height, width = shape
        if self.size + self.margin > min(height, width):
            raise UsageError(
                f"badnets: a {self.size} x {self.size} patch with margin {self.margin} does not fit into "
                f"{height} x {width} images"
            )
        vertical, horizontal = self.corner.split("-")
        top = self.margin if vertical == "upper" else height - self.size - self.margin
        left = self.margin if horizontal == "left" else width - self.size - self.margin
        return patch(shape, self._tile(), top, left)

    def _tile(self) -> torch.Tensor:
        if self.style == "square":
            return torch.full((self.size, self.size), 255, dtype=torch.uint8)
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        return ((y + x) % 2 == 0).to(torch.uint8) * 255


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [BadNets]
