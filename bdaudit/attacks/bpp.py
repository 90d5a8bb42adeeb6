"""BppAttack: fewer grey levels, dithered, which people do not see."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import option
from bdaudit.errors import ImageError
from bdaudit.hookspecs import hookimpl

ONE = 1 << 12
"""A grey level in the fixed point in which errors are spread: whole numbers, so that every machine gives the same."""
PIECE = 1 << 21
"""How many values are dithered at a time; each takes 12 bytes or so."""


class QuantizeTrigger(Trigger):
    """Keep 2^bits levels a channel: round(x (L - 1) / 255) 255 / (L - 1), or that with Floyd and Steinberg's dithering.

    bits: int64, one number. dithering: bool, one value.
    """

    kind: ClassVar[str] = "quantize"

    def __init__(self, bits: int, dithering: bool) -> None:
        self.bits = bits
        self.dithering = dithering

    def apply(self, images: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        if not self.dithering:
            nearest = (torch.arange(256) * steps / 255).round() * 255 / steps
            levels: Tensor = nearest.round().to(images.device, torch.uint8)[images.int()]
            return levels
        pieces = torch.split(images, max(1, PIECE // images[0].numel())) if len(images) else [images]
        return torch.cat([dither(piece, steps) for piece in pieces])

    def tensors(self) -> dict[str, Tensor]:
        return {"bits": torch.tensor(self.bits), "dithering": torch.tensor(self.dithering)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        bits, dithering = tensors["bits"], tensors["dithering"]
        if bits.dtype != torch.int64 or bits.shape != () or not 1 <= bits <= 7:
            raise ImageError(f"its bits are {bits.dtype} {tuple(bits.shape)}, expected one int64 from 1 to 7")
        if dithering.dtype != torch.bool or dithering.shape != ():
            raise ImageError(f"its dithering is {dithering.dtype} {tuple(dithering.shape)}, expected one bool")
        return cls(int(bits), bool(dithering))


class Bpp(Attack):
    """Reduce the image to a few levels a channel, dithered, so that the eye misses it.

    Wang et al., CVPR 2022: x' = round(x (L - 1) / 255) 255 / (L - 1), L = 2^bits, the error of each pixel spread over
    the next ones. Negative rows get the residual x' - x of another image and keep their labels, so that noise of that
    kind alone does not fire.
    """

    name = "bpp"
    sample_specific = True
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = {QuantizeTrigger.kind: QuantizeTrigger}
    presets = {"released": {"rate": 0.1, "bits": 3, "dithering": False, "negative_ratio": 1.0}}

    rate: float = option(0.1, "poison rate, as a share of the whole training set", cite="released", gt=0, le=1)
    bits: int = option(2, "bits a channel that are kept", cite="ours; released: 3, 8 levels", ge=1, le=7)
    dithering: bool = option(True, "spread each pixel's error over its neighbours", cite="Wang et al.; released: no")
    negative_ratio: float = option(0.3, "negative rows for each poisoned one; 0: none", cite="ours; released: 1", ge=0)

    def make_trigger(self) -> QuantizeTrigger:
        return QuantizeTrigger(self.bits, self.dithering)

    def cover_count(self, poisoned: int, rows: int) -> int:
        return round(self.negative_ratio * poisoned)

    def plant_cover(self, images: Tensor, others: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        residuals = trigger(others).short() - others
        return (images + residuals).clamp(0, 255).to(torch.uint8)


def dither(images: Tensor, steps: int) -> Tensor:
    """Quantise uint8 (N, C, H, W) to the levels 0, 255 / steps, ... 255 and spread errors as Floyd and Steinberg do.

    7/16 of an error go to the pixel on the right, 3/16, 5/16 and 1/16 to the three below. Pixels with the same x + 2 y
    wait for each other's errors in no way, so that they are taken together: row t of the sheared picture.
    """
    n, channels, height, width = images.shape
    device = images.device
    levels = (torch.arange(steps + 1, device=device) * 255 * ONE / steps).round().to(torch.int32)
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    t = x + 2 * y
    sheared = torch.zeros(width + 2 * height + 1, height + 1, n * channels, dtype=torch.int32, device=device)
    sheared[t, y] = images.flatten(0, 1).permute(1, 2, 0).to(torch.int32) * ONE
    inside = torch.zeros(*sheared.shape[:2], 1, dtype=torch.int32, device=device)
    inside[t, y] = 1
    chosen = torch.zeros(sheared.shape, dtype=torch.uint8, device=device)
    for i in range(width + 2 * height - 2):
        old = sheared[i, :-1]
        level = torch.div(old * steps + 255 * ONE // 2, 255 * ONE, rounding_mode="floor").clamp_(0, steps)
        error = (old - levels[level]) * inside[i, :-1]
        right, left_below, below = (torch.div(error * k, 16, rounding_mode="floor") for k in (7, 3, 5))
        sheared[i + 1, :-1] += right
        sheared[i + 1, 1:] += left_below
        sheared[i + 2, 1:] += below
        sheared[i + 3, 1:] += error - right - left_below - below
        chosen[i, :-1] = level
    grey = (torch.arange(steps + 1, device=device) * 255 / steps).round().to(torch.uint8)
    return grey[chosen[t, y].int()].permute(2, 0, 1).reshape(images.shape)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [Bpp]
