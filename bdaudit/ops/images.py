"""Operators that put triggers into whole batches of uint8 images."""

import math
import numbers

import torch
from torch import Tensor

from bdaudit.errors import UsageError
from bdaudit.ops import reference
from bdaudit.ops.checks import check, check_range, kind_of, readable, shape_of
from bdaudit.ops.register import Launch, contract, operator

# Positions have 13 bits after the point and must fit into 32 with room for jitter, and so must a block of pixels.
LARGEST_SIDE = 8192


def blend(
    images: Tensor,
    pattern: Tensor,
    weight: float | Tensor,
    *,
    rows: Tensor | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Blend one pattern into images: out = x * (1 - weight) + pattern * weight, rounded, as new uint8 images.

    A weight of 1 gives exactly the pattern and 0 exactly the image. The arithmetic is in integers, on a
    weight of 15 bits, so that every backend gives the same bytes, within a level of the formula in reals.

    images   uint8 (N, C, H, W); made contiguous first if it is not, and the result is contiguous
    pattern  uint8 (C, H, W) or (1, H, W), on the device of the images
    weight   in [0, 1]: a number, or a floating-point or bool tensor of shape (H, W), (1, H, W) or (C, H, W)
             on the device of the images, or what `quantize` made of one
    rows     which images to blend, the others being copied as they are: int64 indices without repetition, or
             a bool mask (N); all images if None. It may be on the CPU when the images are not
    blocks   uint8 or bool (N, BH, BW): where 0, that cell of the image is left as it is; pixel (y, x) lies in
             cell (y * BH // H, x * BW // W). With index rows it is (len(rows), BH, BW), and blocks[k] is for
             image rows[k]

    On CUDA the work is queued on the current stream. Checking the values of a weight tensor or of indices
    that are on the GPU waits for it; with the CUDA kernels a number or a quantized weight, with a bool mask
    or all rows, never waits and can be captured in a graph. Inside torch.compile those values are not checked.

    Raises UsageError if an argument has the wrong type, shape, device or values.
    """
    _check_images(images)
    n, channels, height, width = images.shape
    shape = (channels, height, width)
    check(pattern, "pattern", (torch.uint8,), images.device, one=True)
    if pattern.shape not in (shape, (1, height, width)):
        raise UsageError(f"pattern has shape {shape_of(pattern)}; expected {shape} or (1, {height}, {width})")
    if not isinstance(weight, Tensor):
        # Filled on the device: a copy to it could not be captured in a CUDA graph.
        weight = torch.full((), _q15(weight), dtype=torch.int16, device=images.device)
    weight = quantize(weight)
    if weight.dim() == 0:
        weight = weight.to(images.device)
    elif weight.shape not in (shape, (1, height, width), (height, width)):
        raise UsageError(
            f"weight has shape {shape_of(weight)}; expected a number, ({height}, {width}), "
            f"(1, {height}, {width}) or {shape}"
        )
    check(weight, "weight", (torch.int16,), images.device, one=True)
    slots = None if rows is None else _slots(rows, n).to(images.device)
    if blocks is not None:
        check(blocks, "blocks", (torch.uint8, torch.bool), images.device)
        masks = len(rows) if rows is not None and rows.dtype != torch.bool else n
        if blocks.dim() != 3 or len(blocks) != masks or 0 in blocks.shape[1:]:
            raise UsageError(f"blocks have shape {shape_of(blocks)}; expected ({masks}, BH, BW), a mask for each image")
        blocks = blocks.view(torch.uint8)
    result: Tensor = _blend(images, pattern.expand(shape), weight.expand(shape), slots, blocks)
    return result


def quantize(weight: float | Tensor) -> Tensor:
    """Turn a weight in [0, 1] into the int16 that `blend` computes with: round(weight * 2^15), at most 32767.

    A weight that is used again and again need be turned only once: an int16 tensor is returned as it is (a
    negative value counts as 0). Raises UsageError for a weight outside [0, 1] or of another type.
    """
    if not isinstance(weight, Tensor):
        return torch.full((), _q15(weight), dtype=torch.int16)
    if weight.dtype == torch.int16:
        return weight
    if not (weight.is_floating_point() or weight.dtype == torch.bool):
        raise UsageError(f"weight is {kind_of(weight)}; expected floating point from 0 to 1, or bool")
    weight = weight.detach().float()
    if weight.numel() and readable(weight):
        low, high = (float(value) for value in weight.aminmax())
        if not (low >= 0 and high <= 1):  # Written so that NaN fails.
            raise UsageError(f"weight has values from {low} to {high}; expected 0 to 1")
    return (weight * 32768).round_().clamp_(max=32767).to(torch.int16)


def warp(
    images: Tensor,
    flow: Tensor,
    *,
    rows: Tensor | None = None,
    jitter: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Warp images along one flow field, as WaNet's trigger does, as new uint8 images.

    The result is grid_sample's with align_corners=True, bilinear and zero outside, within a level of 255. The
    arithmetic is in integers, on positions of 13 bits after the point, so that every backend gives the same
    bytes.

    images  uint8 (N, C, H, W), H and W at most 8,192; made contiguous first if it is not, and the result is
            contiguous
    flow    floating point (H, W, 2) on the device of the images: where each pixel is read, x then y, -1 and 1
            being the centres of the first and the last pixel; or what `positions` made of it
    rows    which images to warp, the others being copied as they are: int64 indices without repetition, or a
            bool mask (N); all images if None. It may be on the CPU when the images are not
    jitter  WaNet's noise mode, in the units of the flow: every position of every image moves by its own draw
            from (-jitter, jitter) in x and in y, and then back into the image. From 0 (none) to 2
    seed    where the draws come from: a number, image i then having its own draw of it; or int64 (N), a seed
            for each image, so that its jitter does not depend on the batch that it comes in

    On CUDA the work is queued on the current stream. Checking the values of a floating-point flow or of
    indices that are on the GPU waits for it; with the CUDA kernels positions with a bool mask or all rows
    never wait and can be captured in a graph. Inside torch.compile those values are not checked.

    Raises UsageError if an argument has the wrong type, shape, device or values.
    """
    _check_images(images)
    n, _, height, width = images.shape
    if max(height, width) > LARGEST_SIDE:
        raise UsageError(f"images are {height} x {width}; expected at most {LARGEST_SIDE} a side")
    if isinstance(flow, Tensor) and flow.shape != (height, width, 2):
        raise UsageError(f"flow has shape {shape_of(flow)}; expected ({height}, {width}, 2)")
    fixed = positions(flow)
    check(fixed, "flow", (torch.int32,), images.device, one=True)
    if not isinstance(jitter, numbers.Real) or not 0 <= jitter <= 2:
        raise UsageError(f"jitter is {jitter!r}; expected a number from 0 to 2")
    mask = None
    if rows is not None:
        mask = rows if _is_mask(rows, n) else _slots(rows, n) >= 0
        mask = mask.to(images.device)
    seeds = _seeds(seed, n, images.device) if jitter else None
    across, down = (jitter * (side - 1) / 2 * (1 << reference.POSITION_BITS) for side in (width, height))
    result: Tensor = _warp(images, fixed, seeds, mask, float(across), float(down))
    return result


def positions(flow: Tensor) -> Tensor:
    """Turn a flow field into the int32 that `warp` computes with: pixels, with 13 bits after the point.

    A flow that is used again and again need be turned only once: an int32 tensor is returned as it is. What
    lies more than a pixel outside the image is brought to a pixel outside, where it is as black. Raises
    UsageError for a flow that is not (H, W, 2) of finite floating-point values.
    """
    if isinstance(flow, Tensor) and flow.dtype == torch.int32:
        return flow
    if not isinstance(flow, Tensor) or not flow.is_floating_point() or flow.dim() != 3 or flow.shape[2] != 2:
        raise UsageError(f"flow is {kind_of(flow)}; expected floating point of shape (H, W, 2)")
    if readable(flow) and not bool(flow.isfinite().all()):
        raise UsageError("flow has values that are not finite; expected positions from -1 to 1")
    height, width, _ = flow.shape
    # In double, one operation at a time: the same integers on every device.
    columns = ((flow[..., 0].double() + 1) * ((width - 1) / 2)).clamp(-1, width)
    lines = ((flow[..., 1].double() + 1) * ((height - 1) / 2)).clamp(-1, height)
    return (torch.stack([columns, lines], dim=-1) * (1 << reference.POSITION_BITS)).round().to(torch.int32)


def _check_images(images: Tensor) -> None:
    check(images, "images", (torch.uint8,), images.device if isinstance(images, Tensor) else torch.device("cpu"))
    if images.dim() != 4:
        raise UsageError(f"images have shape {shape_of(images)}; expected (N, C, H, W)")


def _q15(weight: float) -> int:
    if not isinstance(weight, numbers.Real):
        raise UsageError(f"weight is a {type(weight).__name__}; expected a number or a tensor")
    if not 0 <= weight <= 1:
        raise UsageError(f"weight is {weight}; expected a value from 0 to 1")
    return min(round(weight * 32768), 32767)


def _is_mask(rows: Tensor, n: int) -> bool:
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int64, torch.bool) or rows.dim() != 1:
        raise UsageError(f"rows are {kind_of(rows)}; expected int64 indices or a bool mask ({n})")
    if rows.dtype != torch.bool:
        return False
    if len(rows) != n:
        raise UsageError(f"rows are a mask of {len(rows)}; expected one value for each of the {n} images")
    return True


def _slots(rows: Tensor, n: int) -> Tensor:
    """Where each image finds its mask: its place in `rows`, -1 if it is not there."""
    if _is_mask(rows, n):
        return torch.where(rows, torch.arange(n, device=rows.device), -1)
    check_range(rows, "row indices", 0, n)
    slots = torch.full((n,), -1, device=rows.device)
    slots[rows] = torch.arange(len(rows), device=rows.device)
    if readable(slots) and int((slots >= 0).sum()) != len(rows):
        raise UsageError("rows name an image more than once; expected each index at most once")
    return slots


def _seeds(seed: int | Tensor, n: int, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        check(seed, "seeds", (torch.int64,), device)
        if seed.shape != (n,):
            raise UsageError(f"seeds have shape {shape_of(seed)}; expected ({n},), one for each image")
        return seed
    if not isinstance(seed, int):
        raise UsageError(f"seed is {kind_of(seed)}; expected an integer or an int64 tensor ({n})")
    # Far apart, so that two seeds share no image's draw.
    start = seed * 0x9E3779B97F4A7C15 % (1 << 64)
    return torch.arange(n, device=device) + (start - (1 << 64) if start >> 63 else start)


def _blend_compute(
    launch: Launch, images: Tensor, pattern: Tensor, weight: Tensor, slots: Tensor | None, blocks: Tensor | None
) -> Tensor:
    contract(
        "blend",
        (images.dtype, pattern.dtype, weight.dtype) == (torch.uint8, torch.uint8, torch.int16)
        and images.dim() == 4
        and images.shape[1:] == pattern.shape == weight.shape
        and (slots is None or (slots.dtype == torch.int64 and slots.shape == images.shape[:1]))
        and (blocks is None or (blocks.dtype == torch.uint8 and blocks.dim() == 3 and 0 not in blocks.shape[1:]))
        and (slots is not None or blocks is None or len(blocks) == len(images)),
    )
    if blocks is not None and not len(blocks):  # No image has a mask, and none is blended.
        return images.clone(memory_format=torch.contiguous_format)
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    masks = (0, 0, 0) if blocks is None else blocks.shape
    launch(images, pattern, weight, slots, blocks, out, *images.shape, *masks)
    return out


def _warp_compute(
    launch: Launch,
    images: Tensor,
    positions: Tensor,
    seeds: Tensor | None,
    rows: Tensor | None,
    jitter_x: float,
    jitter_y: float,
) -> Tensor:
    contract(
        "warp",
        (images.dtype, positions.dtype) == (torch.uint8, torch.int32)
        and images.dim() == 4
        and max(images.shape[2:]) <= LARGEST_SIDE
        and positions.shape == (*images.shape[2:], 2)
        and (seeds is None or (seeds.dtype == torch.int64 and seeds.shape == images.shape[:1]))
        and (rows is None or (rows.dtype == torch.bool and rows.shape == images.shape[:1]))
        and all(math.isfinite(jitter) and 0 <= jitter <= 1 << 26 for jitter in (jitter_x, jitter_y)),
    )
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    launch(images, positions, seeds, rows, out, *images.shape, jitter_x, jitter_y)
    return out


def _like_images(images: Tensor, *_: object) -> Tensor:
    return torch.empty_like(images, memory_format=torch.contiguous_format)


# images (N, C, H, W) uint8; pattern (C, H, W) uint8; weight (C, H, W) int16 in Q15; slots (N) int64, the
# index of the image's mask among blocks, negative to leave the image as it is; blocks (M, BH, BW) uint8.
_blend = operator(
    "blend(Tensor images, Tensor pattern, Tensor weight, Tensor? slots, Tensor? blocks) -> Tensor",
    reference=reference.blend,
    fake=_like_images,
    compute=_blend_compute,
)
# images (N, C, H, W) uint8; positions (H, W, 2) int32 in Q13 pixels; seeds (N) int64, none for no jitter; rows (N)
# bool, none for all; how far jitter moves a position at most, in Q13 pixels.
_warp = operator(
    "warp(Tensor images, Tensor positions, Tensor? seeds, Tensor? rows, float jitter_x, float jitter_y) -> Tensor",
    reference=reference.warp,
    fake=_like_images,
    compute=_warp_compute,
)
