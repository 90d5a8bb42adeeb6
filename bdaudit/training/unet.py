"""A U-Net: the generator of BTI, and the networks that are triggers (SSBA, Input-aware)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]
"""Channels -> the normalisation behind a convolution."""

per_image: Norm = partial(nn.InstanceNorm2d, affine=True)
"""Every image by its own statistics, in training as in use."""


def resolutions(size: Sequence[int], most: int) -> int:
    """How many times (the first included) images of height and width `size` can be halved to 2 pixels, up to `most`."""
    return max(1, min(most, int(math.log2(min(size)))))


class UNet(nn.Module):
    """Images to images of the same size: (N, into, H, W) -> (N, out, H, W), floats.

    widths: channels at full, half, quarter ... resolution.
    """

    def __init__(self, into: int, out: int, widths: Sequence[int], *, norm: Norm = per_image) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(i, o, norm) for i, o in pairwise([into, *widths]))
        self.up = nn.ModuleList(_block(w + v, v, norm) for v, w in pairwise(widths))
        self.out = nn.Conv2d(widths[0], out, 1)

    def forward(self, h: Tensor) -> Tensor:
        maps = []
        for i, block in enumerate(self.down):
            h = block(F.max_pool2d(h, 2) if i else h)
            maps.append(h)
        for block, beside in zip(reversed(self.up), reversed(maps[:-1]), strict=True):
            h = block(torch.cat([F.interpolate(h, beside.shape[2:]), beside], 1))
        made: Tensor = self.out(h)
        return made


def _block(before: int, after: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in ((before, after), (after, after)):
        layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), norm(o), nn.ReLU()]
    return nn.Sequential(*layers)
