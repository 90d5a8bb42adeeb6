"""Adaptive-Blend: half a trigger in training, all of it at test time."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bdaudit import ops
from bdaudit.attacks.base import Adaptive, Attack
from bdaudit.attacks.triggers import BlendTrigger, Picture, Trigger, picture
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class AdaptiveBlend(Adaptive):
    """Mix a random half of a picture into each training image, the whole of it at test time.

    Qi et al. 2023: x' = x + a M (p - x), M keeping each image's own half of 4 x 4 blocks. Cover rows, triggered in the
    same way, keep their labels, so that poisoned and clean features do not separate. At test time M is 1.
    """

    name = "adaptive-blend"
    presets = {
        "fst": {"rate": 0.003, "cover_rate": 0.003, "ratio": 0.2, "dropped": 0.5},
        "pl": {"rate": 0.15, "pattern": "uniform", "dropped": 0.5},
    }

    pattern: Picture = option("uniform", "what is mixed in", cite="PL B; FST: a cartoon")
    image: str = option("", "path of the image, with -o pattern=image", reads=True)
    ratio: float = option(0.2, "a, share of the pattern in an image", cite="Qi et al.; FST", gt=0, le=1)
    blocks: int = option(4, "the picture is cut into so many by so many blocks", cite="Qi et al.", ge=1, le=64)
    dropped: float = option(0.5, "share of the blocks left out of each training image", cite="Qi et al.", ge=0, lt=1)

    def make_trigger(self, shape: tuple[int, int, int], rng: torch.Generator) -> BlendTrigger:
        return picture(shape, self.ratio, rng, self.pattern, self.image)

    def plant(self, images: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        whole = self.own(trigger, BlendTrigger)
        kept = self.kept(len(images), rng).to(images.device)
        return ops.blend(images, whole.pattern.to(images.device), whole.weight.to(images.device), blocks=kept)

    def kept(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw the blocks that each image gets: bool (n, blocks, blocks), the same number in every image."""
        cells = self.blocks**2
        rank = torch.rand(n, cells, generator=rng).argsort(dim=1)
        return (rank >= round(self.dropped * cells)).view(n, self.blocks, self.blocks)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [AdaptiveBlend]
