"""Find images that are others but for a few pixels, as a triggered image is the one that it was made from."""

from __future__ import annotations

import torch
from torch import Tensor

from bdaudit.inputs import scratch
from bdaudit.inputs.pool import Pool

GRID = 8
"""Images are compared in about so many cells a side."""
FEWEST = 4
"""Cells that must agree: fewer are no evidence."""


def edited(pool: Pool, *others: Pool) -> Tensor:
    """Mark the rows of `pool` (bool, N) that share most of their cells, pixel for pixel, with one image of the others.

    A patch or a mark changes some cells and leaves the rest; a trigger that changes all pixels is not found. Cells of
    one colour, and those that many rows of the pool share (a common background, the trigger itself), do not count.
    Time and memory grow with the pools' sizes, not with their product.
    """
    found = torch.zeros(len(pool), dtype=torch.bool)
    if not len(pool):
        return found
    marks, telling = _cells(pool.images)
    _, group, size = torch.unique(marks, return_inverse=True, return_counts=True)
    telling &= size[group] <= max(2, len(pool) // 100)
    rows = torch.arange(len(pool))[:, None].expand_as(marks)[telling]
    cells = rows.bincount(minlength=len(pool))
    marks, order = marks[telling].sort()
    rows = rows[order]
    for other in others:
        for part in _parts(other):
            row, agreeing = _agreeing(marks, rows, *_cells(other.images[part]), len(pool))
            found[row[(agreeing >= FEWEST) & (2 * agreeing >= cells[row])]] = True
            scratch.release(other.images)
    return found


def _agreeing(marks: Tensor, rows: Tensor, theirs: Tensor, telling: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Count how many cells each pair of images shares, over all pairs that share any; the row of each pair beside it.

    marks, rows: the pool's cells, sorted, and the row of each. theirs: the other images' cells (M, cells).
    """
    images = torch.arange(len(theirs))[:, None].expand_as(theirs)[telling]
    wanted = theirs[telling]
    first = torch.searchsorted(marks, wanted)
    many = torch.searchsorted(marks, wanted, right=True) - first
    first, images, many = first[many > 0], images[many > 0], many[many > 0]
    start = first - (many.cumsum(0) - many)  # of each run of equal marks, less what was listed before it
    place = torch.arange(int(many.sum())) + start.repeat_interleave(many)
    pairs, agreeing = torch.unique(images.repeat_interleave(many) * n + rows[place], return_counts=True)
    return pairs % n, agreeing


def _cells(images: Tensor) -> tuple[Tensor, Tensor]:
    """Hash each cell of each image, place included (int64, (N, cells)), and mark the cells of more than one colour."""
    n, channels, height, width = images.shape
    side = max(2, min(height, width) // GRID)
    cut = images.cpu()[:, :, : height // side * side, : width // side * side]
    tiles = cut.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
    cells = tiles.reshape(n, -1, channels, side * side)
    weights = torch.randint(-(2**62), 2**62, cells.shape[1:], generator=torch.Generator().manual_seed(0))
    return (cells * weights).sum((2, 3)), (cells.amax(3) != cells.amin(3)).any(2)


def _parts(pool: Pool) -> list[slice]:
    """Cut a pool into pieces, since hashing needs eight times the room of the pixels, several times over."""
    step = max(1, scratch.CHUNK // max(1, pool.images[0:1].numel()))
    return [slice(start, start + step) for start in range(0, len(pool), step)]
