"""Triggers: pure, serialisable functions from images to triggered images."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from bdaudit import ops
from bdaudit.errors import CheckpointError, ImageError, UsageError, one_line
from bdaudit.inputs.checkpoint_read import open_checkpoint
from bdaudit.inputs.images import read_image
from bdaudit.inputs.pool import Pool


class Trigger(ABC):
    """uint8 images in, uint8 images out: no randomness, no state, rebuilt exactly from what `tensors` holds.

    What an image becomes does not depend on the images beside it: large pools are triggered piece by piece.
    """

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Trigger a batch: uint8 (N, C, H, W) -> the same shape, a new tensor."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that defines the trigger, to be saved."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        """Rebuild the trigger from what `tensors` returned."""

    def __call__(self, images: Tensor) -> Tensor:
        """Trigger a batch, and check that what comes out is a batch of the same kind."""
        out = self.apply(images)
        if out.dtype != torch.uint8 or out.shape != images.shape:
            raise ImageError(f"trigger {self.kind} turned {tuple(images.shape)} into {out.dtype} {tuple(out.shape)}")
        return out

    def check_shape(self, images: Tensor, shape: torch.Size) -> None:
        """Refuse images of another shape (C, H, W) than the trigger was made for."""
        if images.shape[1:] != shape:
            raise ImageError(f"the trigger was made for images {tuple(shape)}, got {tuple(images.shape[1:])}")

    def on(self, pool: Pool) -> Pool:
        """Trigger every image of a pool and keep its labels (the true ones, if they were)."""
        return pool.map(self)

    def digest(self) -> str:
        """Hash the defining tensors (hex), for provenance."""
        total = hashlib.sha256(self.kind.encode())
        for name, tensor in sorted(self.tensors().items()):
            total.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return total.hexdigest()


class BlendTrigger(Trigger):
    """Mix a fixed pattern into the image: x' = x (1 - m) + p m, with a weight per pixel.

    pattern: uint8 (C, H, W). weight: float (H, W) or (C, H, W) in [0, 1]; 1 overwrites.
    Patches, checkerboards and blended noise are all of this kind (BadNets, Blended).
    """

    kind: ClassVar[str] = "blend"

    def __init__(self, pattern: Tensor, weight: Tensor) -> None:
        self.pattern = pattern
        self.weight = weight

    def apply(self, images: Tensor) -> Tensor:
        self.check_shape(images, self.pattern.shape)
        return ops.blend(images, self.pattern.to(images.device), self.weight.to(images.device))

    def tensors(self) -> dict[str, Tensor]:
        return {"pattern": self.pattern, "weight": self.weight}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        pattern, weight = tensors["pattern"], tensors["weight"]
        if pattern.dtype != torch.uint8 or pattern.ndim != 3 or pattern.numel() == 0:
            raise ImageError(f"its pattern is {pattern.dtype} {tuple(pattern.shape)}, expected uint8 (C, H, W)")
        if weight.dtype != torch.float32 or weight.shape not in (pattern.shape, pattern.shape[1:]):
            raise ImageError(f"its weight is {weight.dtype} {tuple(weight.shape)}, expected float32 (H, W)")
        if not ((weight >= 0) & (weight <= 1)).all():  # NaN is neither
            raise ImageError("its weight is not between 0 and 1")
        return cls(pattern, weight)


class AddTrigger(Trigger):
    """Add a fixed signed pattern to the image: x' = x + v, clipped to [0, 255].

    pattern: int16 (C, H, W) in [-255, 255]. Superimposed signals and universal noise are of this kind (SIG, LF).
    """

    kind: ClassVar[str] = "add"

    def __init__(self, pattern: Tensor) -> None:
        self.pattern = pattern

    def apply(self, images: Tensor) -> Tensor:
        self.check_shape(images, self.pattern.shape)
        return (images + self.pattern.to(images.device)).clamp_(0, 255).to(torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        return {"pattern": self.pattern}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        pattern = tensors["pattern"]
        if pattern.dtype != torch.int16 or pattern.ndim != 3 or pattern.numel() == 0:
            raise ImageError(f"its pattern is {pattern.dtype} {tuple(pattern.shape)}, expected int16 (C, H, W)")
        if pattern.min() < -255 or pattern.max() > 255:
            raise ImageError("its pattern is not between -255 and 255")
        return cls(pattern)


KINDS: dict[str, type[Trigger]] = {cls.kind: cls for cls in (BlendTrigger, AddTrigger)}
"""Triggers that any attack may use; an attack with one of its own names it in `Attack.trigger_kinds`."""


def save_trigger(trigger: Trigger, path: Path, **header: Any) -> None:
    """Write the trigger's tensors with its kind in the header (safetensors)."""
    from safetensors.torch import save_file

    tensors = {k: v.cpu().contiguous() for k, v in trigger.tensors().items()}
    save_file(tensors, path, metadata={"bdaudit_trigger": json.dumps({"kind": trigger.kind, **header})})
    path.chmod(0o644)  # safetensors writes for the owner alone; a run folder is made to be handed on


def load_trigger(path: Path, kinds: dict[str, type[Trigger]]) -> Trigger:
    """Read a trigger back; `kinds` maps the names that may occur to their classes."""
    if not path.is_file():
        raise ImageError(f"{one_line(path)}: no such trigger file")
    try:
        content = open_checkpoint(path)
        header = json.loads(content.metadata["bdaudit_trigger"])
        return kinds[header["kind"]].from_tensors(dict(content.document))  # type: ignore[call-overload]
    except (CheckpointError, ImageError, LookupError, ValueError, TypeError, RuntimeError) as e:
        raise ImageError(f"{one_line(path)}: not a trigger file of a known kind ({one_line(e, 120)})") from e


# The builders below are shared by the attacks and by the audit's null triggers.


def patch(shape: tuple[int, int, int], tile: Tensor, top: int, left: int, *, opacity: float = 1.0) -> BlendTrigger:
    """Put a tile (uint8 (h, w), grey, on every channel) over one place; it overwrites unless it is less than opaque."""
    _, height, width = shape
    h, w = tile.shape
    if h > height or w > width or top < 0 or left < 0 or top + h > height or left + w > width:
        raise UsageError(f"a {h} x {w} patch at row {top}, column {left} does not fit into {height} x {width} images")
    pattern = torch.zeros(shape, dtype=torch.uint8)
    weight = torch.zeros(height, width)
    pattern[:, top : top + h, left : left + w] = tile
    weight[top : top + h, left : left + w] = opacity
    return BlendTrigger(pattern, weight)


Corner = Literal["lower-right", "lower-left", "upper-right", "upper-left"]


def in_corner(
    shape: tuple[int, int, int], tile: Tensor, corner: Corner, *, margin: int = 0, opacity: float = 1.0
) -> BlendTrigger:
    """Put a tile into a corner of the image, so many pixels from its edges."""
    vertical, horizontal = corner.split("-")
    top = margin if vertical == "upper" else shape[1] - tile.shape[0] - margin
    left = margin if horizontal == "left" else shape[2] - tile.shape[1] - margin
    return patch(shape, tile, top, left, opacity=opacity)


Tile = Literal["checkerboard", "square"]


def tile(style: Tile, size: int) -> Tensor:
    """Draw a white tile, or one of alternating pixels, white in its corners."""
    if style == "square":
        return torch.full((size, size), 255, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y + x) % 2 == 0).to(torch.uint8) * 255


Picture = Literal["gaussian", "uniform", "image"]


def picture(
    shape: tuple[int, int, int], ratio: float, rng: torch.Generator, kind: Picture, image: str = ""
) -> BlendTrigger:
    """Blend one image into the whole image: noise, or a picture from the file `image`."""
    if kind != "image":
        return noise(shape, ratio, rng, gaussian=kind == "gaussian")
    if not image:
        raise UsageError("-o pattern=image needs the image: give -o image=FILE")
    return BlendTrigger(read_image(Path(image), shape), torch.full(shape[1:], ratio))


def noise(shape: tuple[int, int, int], ratio: float, rng: torch.Generator, *, gaussian: bool = False) -> BlendTrigger:
    """Blend one fixed noise image into the whole image: uniform in [0, 255], or N(127.5, 63.75) clipped."""
    values = torch.randn(shape, generator=rng) * 63.75 + 127.5 if gaussian else torch.rand(shape, generator=rng) * 255
    return BlendTrigger(values.clamp(0, 255).round().to(torch.uint8), torch.full(shape[1:], ratio))


def sinusoid(size: int, frequency: float) -> Tensor:
    """Sample sin(2 pi f i / size) at i = 0 .. size - 1."""
    return torch.sin(2 * torch.pi * frequency * torch.arange(size) / size)


def stripes(shape: tuple[int, int, int], ratio: float, frequency: float, *, upright: bool = False) -> BlendTrigger:
    """Blend bands into the whole image: a sinusoid of the row or, where `upright`, of the column."""
    _, height, width = shape
    wave = sinusoid(width, frequency) if upright else sinusoid(height, frequency)[:, None]
    pattern = (127.5 * (1 + wave)).round().to(torch.uint8).expand(shape).contiguous()
    return BlendTrigger(pattern, torch.full(shape[1:], ratio))
