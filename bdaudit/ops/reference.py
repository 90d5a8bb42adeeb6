"""Every operator in plain torch: the meaning of the kernels, and what runs where they are absent."""

import torch
from torch import Tensor

# Bounds the temporaries, which take four bytes a pixel and more.
ROWS = 1024
# What `warp` computes with after the point; csrc/warp.h has the same.
POSITION_BITS = 13
# SCE's weight of cross-entropy, and the logarithm that stands for that of zero, -log(1e-4); csrc/losses.h has the same.
SCE_CE_WEIGHT = 0.1
SCE_LOG_FLOOR = 9.210340371976184


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


def warp(
    images: Tensor,
    positions: Tensor,
    seeds: Tensor | None,
    rows: Tensor | None,
    jitter_x: float,
    jitter_y: float,
) -> Tensor:
    """Read each pixel between its four neighbours, with weights of 13 bits that add up to 1.

    Shapes and types are those of the operator in `images.py`.
    """
    _, channels, height, width = images.shape
    size = height * width
    out = images.clone(memory_format=torch.contiguous_format)
    if not images.numel():
        return out
    chosen = torch.arange(len(images), device=images.device)
    if rows is not None:
        chosen = chosen[rows]
    for begin in range(0, len(chosen), ROWS):
        batch = chosen[begin : begin + ROWS]
        pixels = images[batch].reshape(len(batch), channels, size)
        x, y = positions.to(torch.int64).reshape(1, size, 2).unbind(-1)
        if seeds is not None:
            draws = _random(seeds[batch], size)
            x = (x + _jitter(draws & 0xFFFF, jitter_x)).clamp(0, (width - 1) << POSITION_BITS)
            y = (y + _jitter(draws >> 16, jitter_y)).clamp(0, (height - 1) << POSITION_BITS)
        one = 1 << POSITION_BITS
        fx, fy = x & (one - 1), y & (one - 1)
        both = (fx * fy + one // 2) >> POSITION_BITS
        total = torch.full_like(pixels, one // 2, dtype=torch.int64)
        for down, across, weight in ((0, 0, one - fx - fy + both), (0, 1, fx - both), (1, 0, fy - both), (1, 1, both)):
            column, line = (x >> POSITION_BITS) + across, (y >> POSITION_BITS) + down
            inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
            index = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            neighbour = pixels.gather(2, index[:, None].expand(len(batch), channels, size))
            total += neighbour * (weight * inside)[:, None]
        out[batch] = (total >> POSITION_BITS).to(torch.uint8).view(len(batch), channels, height, width)
    return out


def _jitter(draws: Tensor, most: float) -> Tensor:
    """16 random bits to a move of a position: odd multiples of most / 2^16, even about zero, in float32."""
    scale = torch.full((), most, dtype=torch.float32, device=draws.device) / 65536
    return ((2 * draws - 65535).float() * scale).round().to(torch.int64)


def _random(seeds: Tensor, size: int) -> Tensor:
    """32 random bits, as int64 (N, size), for each pixel of each image: the counters of csrc/warp.h."""
    # int64 wraps as uint64 does; only shifts to the right have to be told that there is no sign.
    z = seeds - 0x61C8864680B583EB
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    key = z ^ _shifted(z, 31)
    low, high = key & 0xFFFFFFFF, _shifted(key, 32)
    pixel = torch.arange(size, device=seeds.device)
    return _mixed((_mixed(pixel ^ low[:, None]) + high[:, None]) & 0xFFFFFFFF)


def _shifted(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mixed(z: Tensor) -> Tensor:
    z = ((z ^ (z >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    z = ((z ^ (z >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return z ^ (z >> 16)


def sample_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read losses off logits: cross-entropy, symmetric cross-entropy, entropy and confidence, then predictions.

    Shapes and types are those of the operator in `samples.py`.
    """
    values = logits.new_empty((4, len(logits)), dtype=torch.float32)
    prediction = labels.new_empty((len(logits),))
    classes = logits.shape[1]
    for begin in range(0, len(logits), ROWS):
        rows = slice(begin, begin + ROWS)
        known = (labels[rows] >= 0) & (labels[rows] < classes)
        x = logits[rows].float()
        largest, best = x.max(dim=1)
        below = x - largest[:, None]
        e = below.exp()
        # The largest one's own 1 is left out: beside it, a sample that fits well would have no loss left in fp32.
        others = e.scatter(1, best[:, None], below.gather(1, best[:, None]) * 0).sum(dim=1)
        own = torch.where(known, x.gather(1, labels[rows].clamp(0, classes - 1)[:, None])[:, 0], torch.nan)
        ce = torch.where(others.isnan(), torch.nan, (largest - own) + others.log1p())
        missed = torch.where(labels[rows] == best, others / (1 + others), -torch.expm1(-ce))
        values[0, rows] = ce
        values[1, rows] = SCE_CE_WEIGHT * ce + SCE_LOG_FLOOR * missed
        values[2, rows] = others.log1p() - torch.where(e > 0, e * below, 0).sum(dim=1) / (1 + others)
        values[3, rows] = 1 / (1 + others)
        prediction[rows] = torch.where(others.isnan(), -1, best)
    return values, prediction, (prediction < 0).sum()


def min_class_distance(features: Tensor, centres: Tensor, exclude: Tensor | None) -> Tensor:
    """Measure each row's distance to every centre but the excluded one, and take the least.

    Shapes and types are those of the operator in `samples.py`.
    """
    out = features.new_full((len(features),), torch.inf, dtype=torch.float32)
    real = centres.isfinite().all(dim=1)
    for begin in range(0, len(features), ROWS):
        rows = slice(begin, begin + ROWS)
        distance = (features[rows, None].float() - centres).square().sum(dim=2).sqrt()
        skipped = ~real.expand(len(distance), len(centres))
        if exclude is not None:
            skipped = skipped | (exclude[rows, None] == torch.arange(len(centres), device=features.device))
        if len(centres):
            out[rows] = distance.masked_fill(skipped, torch.inf).amin(dim=1)
    return out


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum the rows of each class in double and divide by their number.

    Shapes and types are those of the operator in `samples.py`.
    """
    known = (labels >= 0) & (labels < classes)
    own = torch.where(known, labels, classes)
    sums = features.new_zeros((classes + 1, features.shape[1]), dtype=torch.float64)
    sums.index_add_(0, own, features.double())
    counts = torch.bincount(own, minlength=classes + 1)[:classes]
    return (sums[:classes] / counts[:, None]).float(), counts
