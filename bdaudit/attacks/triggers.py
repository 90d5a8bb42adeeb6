"""Triggers: pure, serialisable functions from images to triggered images."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bdaudit import ops
from bdaudit.errors import CheckpointError, ImageError, UsageError, one_line
from bdaudit.inputs.checkpoint_read import open_checkpoint
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
        if images.shape[1:] != self.pattern.shape:
            raise ImageError(
                f"the trigger was made for images {tuple(self.pattern.shape)}, got {tuple(images.shape[1:])}"
            )
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


KINDS: dict[str, type[Trigger]] = {BlendTrigger.kind: BlendTrigger}
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


def patch(shape: tuple[int, int, int], tile: Tensor, top: int, left: int) -> BlendTrigger:
    """Overwrite one place with a tile (uint8 (h, w), grey, on every channel)."""
    _, height, width = shape
    h, w = tile.shape
    if h > height or w > width or top < 0 or left < 0 or top + h > height or left + w > width:
        raise UsageError(f"a {h} x {w} patch at row {top}, column {left} does not fit into {height} x {width} images")
    pattern = torch.zeros(shape, dtype=torch.uint8)
    weight = torch.zeros(height, width)
    pattern[:, top : top + h, left : left + w] = tile
    weight[top : top + h, left : left + w] = 1
    return BlendTrigger(pattern, weight)


def noise(shape: tuple[int, int, int], ratio: float, rng: torch.Generator, *, gaussian: bool = False) -> BlendTrigger:
    """Blend one fixed noise image into the whole image: uniform in [0, 255], or N(127.5, 63.75) clipped."""
    values = torch.randn(shape, generator=rng) * 63.75 + 127.5 if gaussian else torch.rand(shape, generator=rng) * 255
    return BlendTrigger(values.clamp(0, 255).round().to(torch.uint8), torch.full(shape[1:], ratio))


def stripes(shape: tuple[int, int, int], ratio: float, frequency: float) -> BlendTrigger:
    """Blend horizontal bands, a sinusoid of the row, into the whole image."""
    _, height, _ = shape
    wave = 127.5 * (1 + torch.sin(2 * torch.pi * frequency * torch.arange(height) / height))
    pattern = wave.round().to(torch.uint8).reshape(1, height, 1).expand(shape).contiguous()
    return BlendTrigger(pattern, torch.full(shape[1:], ratio))
