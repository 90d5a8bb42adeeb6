"""Adaptive-Patch: one of four faint patches in training, two of them in full at test time."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bdaudit.attacks.base import Adaptive, Attack
from bdaudit.attacks.triggers import BlendTrigger, Corner, Trigger, in_corner, tile
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class AdaptivePatch(Adaptive):
    """Stamp one of four faint patches on each training image, two of them opaque at test time.

    Qi et al. 2023: four patches of opacity .5, .2, .5 and .3, dealt evenly to the poisoned rows and to the cover rows,
    which keep their labels; at test time the first and the third at once, in full. The patches are our own drawings.
    """

    name = "adaptive-patch"
    presets = {"fst": {"rate": 0.003, "cover_rate": 0.006}}

    size: int = option(-1, "side of the patches in pixels; -1: a quarter of the image", ge=-1)

    def make_trigger(self, shape: tuple[int, int, int]) -> BlendTrigger:
        first, _, third, _ = self.patches(shape, (1, 1, 1, 1))
        return over(third, first)

    def plant(self, images: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        planted = images.clone()
        for i, faint in enumerate(self.patches((images.shape[1], images.shape[2], images.shape[3]))):
            planted[i::4] = faint(images[i::4])
        return planted

    def patches(
        self, shape: tuple[int, int, int], opacities: tuple[float, float, float, float] = (0.5, 0.2, 0.5, 0.3)
    ) -> list[BlendTrigger]:
        """Draw the four patches, each in its own corner."""
        size = self.size if self.size > 0 else max(1, min(shape[1:]) // 4)
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        to_edge = torch.stack([y, x, size - 1 - y, size - 1 - x]).amin(dim=0)
        tiles: dict[Corner, Tensor] = {
            "upper-left": (to_edge % 2 == 0) * 255,
            "upper-right": ((y + 2 * x) % 4 < 2) * 255,
            "lower-right": tile("checkerboard", size),
            "lower-left": 255 - to_edge * 255 // max(1, int(to_edge.max())),
        }
        return [
            in_corner(shape, tile.to(torch.uint8), corner, opacity=opacity)
            for (corner, tile), opacity in zip(tiles.items(), opacities, strict=True)
        ]


def over(upper: BlendTrigger, lower: BlendTrigger) -> BlendTrigger:
    """Stamp two opaque patches at once."""
    pattern = torch.where(upper.weight > 0, upper.pattern, lower.pattern)
    return BlendTrigger(pattern, torch.maximum(upper.weight, lower.weight))


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [AdaptivePatch]
