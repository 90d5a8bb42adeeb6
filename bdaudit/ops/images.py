"""Operators that put triggers into whole batches of uint8 images."""

import numbers
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import UsageError
from bdaudit.ops import extension, reference

# Not custom_op: its calls cost twice as much. Any, because torch leaves its functions untyped.
_torch_library: Any = torch.library
_library = _torch_library.Library("bdaudit", "FRAGMENT")
# images (N, C, H, W) uint8; pattern (C, H, W) uint8; weight (C, H, W) int16 in Q15; slots (N) int64, the
# index of the image's mask among blocks, negative to leave the image as it is; blocks (M, BH, BW) uint8.
_library.define(
    "blend(Tensor images, Tensor pattern, Tensor weight, Tensor? slots, Tensor? blocks) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_blend = torch.ops.bdaudit.blend.default


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
    that are on the GPU waits for it; a number or a quantized weight, with a bool mask or all rows, never
    waits and can be captured in a graph. Inside torch.compile those values are not checked.

    Raises UsageError if an argument has the wrong type, shape, device or values.
    """
    _check(images, "images", (torch.uint8,), images.device)
    if images.dim() != 4:
        raise UsageError(f"images have shape {_shape(images)}; expected (N, C, H, W)")
    n, channels, height, width = images.shape
    shape = (channels, height, width)
    _check(pattern, "pattern", (torch.uint8,), images.device)
    if pattern.shape not in (shape, (1, height, width)):
        raise UsageError(f"pattern has shape {_shape(pattern)}; expected {shape} or (1, {height}, {width})")
    if not isinstance(weight, Tensor):
        # Filled on the device: a copy to it could not be captured in a CUDA graph.
        weight = torch.full((), _q15(weight), dtype=torch.int16, device=images.device)
    weight = quantize(weight)
    if weight.dim() == 0:
        weight = weight.to(images.device)
    elif weight.shape not in (shape, (1, height, width), (height, width)):
        raise UsageError(
            f"weight has shape {_shape(weight)}; expected a number, ({height}, {width}), "
            f"(1, {height}, {width}) or {shape}"
        )
    _check(weight, "weight", (torch.int16,), images.device)
    slots = None if rows is None else _slots(rows, n).to(images.device)
    if blocks is not None:
        _check(blocks, "blocks", (torch.uint8, torch.bool), images.device)
        masks = len(rows) if rows is not None and rows.dtype != torch.bool else n
        if blocks.dim() != 3 or len(blocks) != masks or 0 in blocks.shape[1:]:
            raise UsageError(f"blocks have shape {_shape(blocks)}; expected ({masks}, BH, BW), a mask for each image")
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
        raise UsageError(f"weight is {_kind(weight)}; expected floating point from 0 to 1, or bool")
    weight = weight.float()
    if weight.numel() and not torch.compiler.is_compiling():
        low, high = (float(value) for value in weight.aminmax())
        if not (low >= 0 and high <= 1):  # Written so that NaN fails.
            raise UsageError(f"weight has values from {low} to {high}; expected 0 to 1")
    return (weight * 32768).round_().clamp_(max=32767).to(torch.int16)


def _q15(weight: float) -> int:
    if not isinstance(weight, numbers.Real):
        raise UsageError(f"weight is a {type(weight).__name__}; expected a number or a tensor")
    if not 0 <= weight <= 1:
        raise UsageError(f"weight is {weight}; expected a value from 0 to 1")
    return min(round(weight * 32768), 32767)


def _slots(rows: Tensor, n: int) -> Tensor:
    """Where each image finds its mask: its place in `rows`, -1 if it is not there."""
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int64, torch.bool) or rows.dim() != 1:
        raise UsageError(f"rows are {_kind(rows)}; expected int64 indices or a bool mask ({n})")
    if rows.dtype == torch.bool:
        if len(rows) != n:
            raise UsageError(f"rows are a mask of {len(rows)}; expected one value for each of the {n} images")
        return torch.where(rows, torch.arange(n, device=rows.device), -1)
    known = not torch.compiler.is_compiling()
    if known and len(rows):
        low, high = (int(value) for value in rows.aminmax())
        if low < 0 or high >= n:
            raise UsageError(f"rows have indices from {low} to {high}; expected 0 to {n - 1}")
    slots = torch.full((n,), -1, device=rows.device)
    slots[rows] = torch.arange(len(rows), device=rows.device)
    if known and int((slots >= 0).sum()) != len(rows):
        raise UsageError("rows name an image more than once; expected each index at most once")
    return slots


def _check(tensor: object, name: str, dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    verb = "is" if name in ("pattern", "weight") else "are"
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise UsageError(f"{name} {verb} {_kind(tensor)}; expected a tensor of {expected}")
    if tensor.device != device:
        raise UsageError(f"{name} {verb} on {tensor.device}; expected the device of the images, {device}")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {_shape(value)}"
    return f"a {type(value).__name__}"


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _blend_fake(images: Tensor, pattern: Tensor, weight: Tensor, slots: Tensor | None, blocks: Tensor | None) -> Tensor:
    return torch.empty_like(images, memory_format=torch.contiguous_format)


def _blend_cpu(images: Tensor, pattern: Tensor, weight: Tensor, slots: Tensor | None, blocks: Tensor | None) -> Tensor:
    if extension.load() is None:
        return reference.blend(images, pattern, weight, slots, blocks)
    return _blend_kernel("blend_cpu", images, pattern, weight, slots, blocks, torch.get_num_threads())


def _blend_cuda(images: Tensor, pattern: Tensor, weight: Tensor, slots: Tensor | None, blocks: Tensor | None) -> Tensor:
    if not extension.has_cuda():
        return reference.blend(images, pattern, weight, slots, blocks)
    stream = torch.cuda.current_stream(images.device)
    return _blend_kernel("blend_cuda", images, pattern, weight, slots, blocks, images.get_device(), stream.cuda_stream)


def _blend_kernel(
    kernel: str,
    images: Tensor,
    pattern: Tensor,
    weight: Tensor,
    slots: Tensor | None,
    blocks: Tensor | None,
    *where: int,
) -> Tensor:
    # `blend` has checked all this; whoever calls the operator itself must not read wild memory either.
    if (
        (images.dtype, pattern.dtype, weight.dtype) != (torch.uint8, torch.uint8, torch.int16)
        or images.dim() != 4
        or not images.shape[1:] == pattern.shape == weight.shape
        or (slots is not None and (slots.dtype != torch.int64 or slots.shape != images.shape[:1]))
        or (blocks is not None and (blocks.dtype != torch.uint8 or blocks.dim() != 3))
        or (slots is None and blocks is not None and len(blocks) != len(images))
    ):
        raise UsageError("torch.ops.bdaudit.blend got tensors outside its contract; call bdaudit.ops.blend")
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    # Held by name until the kernel has run: an address alone keeps nothing alive.
    images, pattern, weight = images.contiguous(), pattern.contiguous(), weight.contiguous()
    slots = None if slots is None else slots.contiguous()
    blocks = None if blocks is None else blocks.contiguous()
    extension.call(
        kernel,
        images.data_ptr(),
        pattern.data_ptr(),
        weight.data_ptr(),
        0 if slots is None else slots.data_ptr(),
        0 if blocks is None else blocks.data_ptr(),
        out.data_ptr(),
        *images.shape,
        *((0, 0, 0) if blocks is None else blocks.shape),
        *where,
    )
    return out


_torch_library.register_fake("bdaudit::blend", _blend_fake, lib=_library)
_library.impl("blend", _blend_cpu, "CPU")
_library.impl("blend", _blend_cuda, "CUDA")
_library.impl("blend", reference.blend, "CompositeExplicitAutograd")
