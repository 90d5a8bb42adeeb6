"""Every operator in plain torch: the meaning of the kernels, and what runs where they are absent."""

import torch
from torch import Tensor

# Bounds the temporaries, which take four bytes a pixel and more.
ROWS = 1024


def blend(images: Tensor, pattern: Tensor, weight: Tensor, slots: Tensor | None, blocks: Tensor | None) -> Tensor:
    """Blend a pattern into images: x + ((p - x) * w + 2^14 >> 15), rounding the product's half up.

    Shapes and types are those of the operator in `images.py`.
    """
    n, _, height, width = images.shape
    w = weight.clamp(min=0).to(torch.int32)
    p = pattern.to(torch.int32)
    if slots is None:
        slots = torch.arange(n, device=images.device)
    selected = slots >= 0 if blocks is None else (slots >= 0) & (slots < len(blocks))
    if blocks is not None:
        y = torch.arange(height, device=images.device) * blocks.shape[1] // max(height, 1)
        x = torch.arange(width, device=images.device) * blocks.shape[2] // max(width, 1)
    out = images.clone(memory_format=torch.contiguous_format)
    for begin in range(0, n, ROWS):
        rows = slice(begin, begin + ROWS)
        pixels = images[rows].to(torch.int32)
        keep = selected[rows, None, None, None]
        if blocks is not None and len(blocks):
            cells = blocks[slots[rows].clamp(0, len(blocks) - 1)]
            keep = keep & (cells[:, None, y[:, None], x] != 0)
        change = ((p - pixels) * w + (1 << 14)) >> 15
        out[rows] = torch.where(keep, pixels + change, pixels).to(torch.uint8)
    return out
