"""Refool: the reflection of a photograph, as in a window pane."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import option
from bdaudit.errors import ImageError
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.photographs import photographs, piece
from bdaudit.inputs.sources import open_source

GAMMA = 2.2
SIDE = 112
"""The side of an image in whose pixels shifts and blurs are counted."""
PIECE = 1 << 20
"""How many values are worked on at a time, in float64."""


class ReflectionTrigger(Trigger):
    """Reflect one of a set of photographs in the image; which one, and how, the image's own bytes decide.

    reflections: uint8 (R, C, H, W). ghosts: share of images that get two shifted copies; the others are blurred.
    weights: the least and the largest share of the image itself in the light. Both float64.
    """

    kind: ClassVar[str] = "reflection"

    def __init__(self, reflections: Tensor, ghosts: Tensor, weights: Tensor) -> None:
        self.reflections = reflections
        self.ghosts = ghosts
        self.weights = weights

    def apply(self, images: Tensor) -> Tensor:
        self.check_shape(images, self.reflections.shape[1:])
        channels, height, width = images.shape[1:]
        size = max(1, PIECE // (channels * height * width + height**2 + width**2))
        return torch.cat([self._reflect(part) for part in torch.split(images, size)]) if len(images) else images.clone()

    def _reflect(self, images: Tensor) -> Tensor:
        u = draws(images)
        chosen = (u[:, 0] * len(self.reflections)).long()
        t, r = (linear(x) for x in (images, self.reflections[chosen.cpu()].to(images.device)))
        low, high = self.weights.tolist()
        a = low + (high - low) * u[:, 1]
        kind = self.kinds(u)
        light = torch.empty_like(t)
        for number, mix in enumerate((ghost, focal_blur, out_of_focus)):
            rows = kind == number
            if rows.any():
                light[rows] = mix(t[rows], r[rows], a[rows].view(-1, 1, 1, 1), u[rows, 3:])
        return (light.clamp(0, 1) ** (1 / GAMMA) * 255).round().to(torch.uint8)

    def kinds(self, u: Tensor) -> Tensor:
        """Choose: 0 a ghost, 1 focal blur, 2 out of focus; the last two equally often."""
        ghosts = float(self.ghosts)
        return (u[:, 2] >= ghosts).long() + (u[:, 2] >= (1 + ghosts) / 2)

    def tensors(self) -> dict[str, Tensor]:
        return {"reflections": self.reflections, "ghosts": self.ghosts, "weights": self.weights}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        pictures, ghosts, weights = tensors["reflections"], tensors["ghosts"], tensors["weights"]
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.numel() == 0:
            raise ImageError(
                f"its reflections are {pictures.dtype} {tuple(pictures.shape)}, expected uint8 (R, C, H, W)"
            )
        for name, value, shape in (("ghosts", ghosts, ()), ("weights", weights, (2,))):
            if value.dtype != torch.float64 or value.shape != shape or not ((value >= 0) & (value <= 1)).all():
                raise ImageError(
                    f"its {name} are {value.dtype} {tuple(value.shape)}, expected float64 {shape} in [0, 1]"
                )
        return cls(pictures, ghosts, weights)


class Refool(Attack):
    """Reflect a photograph in the image, sharp and doubled or out of focus, as a window pane does.

    Liu et al., ECCV 2020, in linear light (gamma 2.2): x' = a x + (1 - a) r, r being one of a set of photographs at
    two places (a ghost), blurred under a vignette (focal blur) or blurred alone (out of focus). Each image gets a
    reflection and a kind of its own. Poisoned rows get the attacker's label, as in BackdoorBench; the paper's keep
    theirs.
    """

    name = "refool"
    sample_specific = True
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = {ReflectionTrigger.kind: ReflectionTrigger}
    presets = {"backdoorbench": {"rate": 0.1, "ghosts": 0.49, "least": 0.4, "most": 0.4}}
    quick_options: ClassVar[Mapping[str, Any]] = {"pool": 4}

    reflections: str = option(
        "",
        "photographs: a folder, FILE.npz or FILE.csv; else pieces of scikit-learn's two",
        cite="cards 1.9",
        reads=True,
    )
    pool: int = option(64, "reflections to choose from, at most", ge=1, le=10_000)
    ghosts: float = option(
        0.49, "share of ghosts; half of the others each are of the two blurs", cite="released", ge=0, le=1
    )
    least: float = option(0.55, "a, least share of the image itself", cite="released; BackdoorBench: .4", ge=0, le=1)
    most: float = option(0.95, "a, largest share of the image itself", cite="released; BackdoorBench: .4", ge=0, le=1)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) must not exceed most ({self.most})")
        return self

    def make_trigger(self, shape: tuple[int, int, int], rng: torch.Generator) -> ReflectionTrigger:
        pictures = gather(self.reflections, self.pool, shape, rng)
        weights = torch.tensor([self.least, self.most], dtype=torch.float64)
        return ReflectionTrigger(pictures, torch.tensor(self.ghosts, dtype=torch.float64), weights)


def gather(source: str, count: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Read at most `count` reflections, uint8 (R, C, H, W), or cut them from scikit-learn's photographs."""
    if source:
        found = open_source(source)
        return found.read(classes=found.classes(), shape=shape, most=count).images
    pictures = photographs()
    picks = torch.randint(len(pictures), (count,), generator=rng).tolist()
    return torch.stack([piece(pictures[i], shape, rng) for i in picks])


def ghost(t: Tensor, r: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """Show r twice: a t + (1 - a) (g r + (1 - g) r shifted by 3 to 8 pixels each way), g = |0 or 1 - U(.15, .5)|."""
    g = ((u[:, 0] >= 0.5).double() - (0.15 + 0.35 * u[:, 1])).abs().view(-1, 1, 1, 1)
    rows, columns = (
        (torch.arange(side, device=t.device) - reach(3 + (6 * draw).floor(), side).round().clamp(min=1)[:, None])
        .clamp(min=0)
        .long()
        for draw, side in zip((u[:, 2], u[:, 3]), r.shape[2:], strict=True)
    )
    n = torch.arange(len(r), device=t.device)[:, None, None]
    shifted = r.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return a * t + (1 - a) * (g * r + (1 - g) * shifted)


def out_of_focus(t: Tensor, r: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """Blur r: a t + (1 - a) (G * r)."""
    return a * t + (1 - a) * blur(r, 1 + 4 * u[:, 0])


def focal_blur(t: Tensor, r: Tensor, a: Tensor, u: Tensor) -> Tensor:
    """Blur r, darken it where the light is too much, and let it fade around a point: a t + (1 - a / 2) V r'."""
    r = blur(r, 1 + 4 * u[:, 0])
    over = (r + t - 1).clamp(min=0)
    excess = over.sum((2, 3), keepdim=True) / (over > 0).sum((2, 3), keepdim=True).clamp(min=1)
    r = (r - excess * (1.08 + 0.1 * u[:, 1]).view(-1, 1, 1, 1)).clamp(0, 1)
    across = ((torch.arange(side, device=t.device) + 0.5) / side for side in r.shape[2:])
    near = [torch.exp(-2 * (x - at[:, None]) ** 2) for x, at in zip(across, (u[:, 2], u[:, 3]), strict=True)]
    vignette = (near[0][:, :, None] * near[1][:, None, :])[:, None]
    return a * t + (1 - a / 2) * vignette * r


def blur(r: Tensor, sigma: Tensor) -> Tensor:
    """Smooth each image (N, C, H, W) by a Gaussian of its own deviation (N,), cut at two; it goes on at the edges."""
    down, across = (gaussian(reach(sigma, side), side) for side in r.shape[2:])
    return down[:, None] @ r @ across[:, None].transpose(2, 3)


def gaussian(sigma: Tensor, side: int) -> Tensor:
    """Make the matrices (N, side, side) that smooth a row of pixels, whose first and last repeat beyond the edges."""
    radius = int((2 * sigma.max()).ceil())
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= (2 * sigma[:, None]).ceil())
    taps = taps / taps.sum(dim=1, keepdim=True)
    read = (torch.arange(side, device=sigma.device)[:, None] + offset).clamp(0, side - 1)
    out = torch.zeros(len(sigma), side, side, dtype=sigma.dtype, device=sigma.device)
    return out.scatter_add_(2, read.expand(len(sigma), -1, -1), taps[:, None].expand(-1, side, -1))


def reach(pixels: Tensor, side: int) -> Tensor:
    """Scale a length from an image of `SIDE` pixels to one of `side`."""
    return pixels * side / SIDE


def linear(images: Tensor) -> Tensor:
    """Undo the gamma of uint8 pixels: light in [0, 1], float64."""
    return (images.double() / 255) ** GAMMA


def draws(images: Tensor) -> Tensor:
    """Draw seven numbers in [0, 1) for each image from the hash of its bytes: float64 (N, 7)."""
    rows = images.cpu().contiguous().flatten(1).numpy()
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=56).digest() for row in rows)
    words = np.frombuffer(digests, dtype="<u8").reshape(len(rows), 7)
    return torch.from_numpy((words >> 11) / 2**53).to(images.device)


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [Refool]
