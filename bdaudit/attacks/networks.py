"""Triggers that are networks: run in float64 and rounded, kept as float32 weights, rebuilt without strangers' code."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bdaudit.attacks.triggers import Trigger
from bdaudit.errors import ImageError

MAX_WIDTH = 256
MAX_SIDE = 4096
MAX_CELLS = 2**27
"""Entries of the largest map that a network from a file may make of one image: a GiB in float64."""
AT_ONCE = 4
"""Images; in float64 more at a time are twice as slow, as their maps leave the cache."""


class NetworkTrigger(Trigger):
    """Give the image to a network, pixels in [0, 1] to pixels, in float64: the batch and the machine change no byte.

    layout: what `build` makes the network from: channels, height and width of the images, channels at full
    resolution, and what else a subclass needs.
    """

    fields: ClassVar[tuple[str, ...]] = ("channels", "height", "width", "network width")

    def __init__(self, network: nn.Module, layout: tuple[int, ...]) -> None:
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        self.layout = layout

    @staticmethod
    @abstractmethod
    def build(*layout: int) -> nn.Module:
        """Make the untrained network, whose `forward` turns float pixels (N, C, H, W) into triggered ones."""

    def apply(self, images: Tensor) -> Tensor:
        return self.run(images)

    @torch.no_grad()
    def run(self, *batches: Tensor) -> Tensor:
        """Give batches of as many images each to the network: uint8 (N, C, H, W) -> the same."""
        images = batches[0]
        self.check_shape(images, torch.Size(self.layout[:3]))
        network = copy.deepcopy(self.network).to(images.device, torch.float64)
        out = torch.empty_like(images)
        if not len(images):
            return out  # InstanceNorm fails on none
        for into, *parts in zip(*(torch.split(b, AT_ONCE) for b in (out, *batches)), strict=True):
            made = network(*(part.double() / 255 for part in parts))
            if not made.isfinite().all():
                raise ImageError(f"the {self.kind} trigger's network gives infinite pixels for these images")
            into.copy_((made * 255).round().clamp(0, 255))
        return out

    def tensors(self) -> dict[str, Tensor]:
        return {"layout": torch.tensor(self.layout), **self.network.state_dict()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        layout = cls._checked_layout(tensors["layout"])
        with torch.device("meta"):  # shapes alone: memory is taken by what the file holds, not by what it claims
            network = cls.build(*layout)
        expected, given = network.state_dict(), {n: t for n, t in tensors.items() if n != "layout"}
        if expected.keys() != given.keys():
            odd = sorted(expected.keys() ^ given.keys())[0]
            raise ImageError(f"its weights are not those of such a network: {odd} is in one of the two alone")
        for name, like in expected.items():
            tensor = given[name]
            if tensor.dtype != like.dtype or tensor.shape != like.shape:
                raise ImageError(
                    f"its {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {like.dtype} {tuple(like.shape)}"
                )
            if not tensor.isfinite().all():
                raise ImageError(f"its {name} is not finite")
        network.load_state_dict(given, assign=True)
        return cls(network, layout)

    @classmethod
    def _checked_layout(cls, layout: Tensor) -> tuple[int, ...]:
        if layout.dtype != torch.int64 or layout.shape != (len(cls.fields),):
            raise ImageError(
                f"its layout is {layout.dtype} {tuple(layout.shape)}, expected int64: {', '.join(cls.fields)}"
            )
        channels, height, width, wide, *rest = numbers = [int(n) for n in layout]
        fits = channels in (1, 3) and max(height, width) <= MAX_SIDE and wide <= MAX_WIDTH and min(numbers) >= 1
        if not fits or any(n > MAX_SIDE for n in rest) or height * width * wide > MAX_CELLS:
            raise ImageError(f"its layout is {numbers}, no network of a usable size ({', '.join(cls.fields)})")
        return tuple(numbers)
