"""WaNet: a smooth, almost invisible warp."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit import ops
from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import option
from bdaudit.errors import ImageError
from bdaudit.hookspecs import hookimpl


class WarpTrigger(Trigger):
    """Read every pixel somewhere else: x'(p) = x(flow(p)), bilinear, black outside.

    flow: float32 (H, W, 2), x then y, -1 and 1 being the centres of the first and the last pixel.
    """

    kind: ClassVar[str] = "warp"

    def __init__(self, flow: Tensor) -> None:
        self.flow = flow
        self.positions = ops.positions(flow)

    def apply(self, images: Tensor) -> Tensor:
        self.check_shape(images, torch.Size([images.shape[1], *self.flow.shape[:2]]))
        return ops.warp(images, self.positions.to(images.device))

    def jittered(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Warp with a draw from (-1, 1) / H more or less at every pixel: WaNet's noise mode. seeds: int64 (N,)."""
        jitter = 1 / len(self.flow)
        return ops.warp(images, self.positions.to(images.device), jitter=jitter, seed=seeds.to(images.device))

    def tensors(self) -> dict[str, Tensor]:
        return {"flow": self.flow}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        flow = tensors["flow"]
        if flow.dtype != torch.float32 or flow.ndim != 3 or flow.shape[2] != 2 or flow.numel() == 0:
            raise ImageError(f"its flow is {flow.dtype} {tuple(flow.shape)}, expected float32 (H, W, 2)")
        if not flow.isfinite().all():
            raise ImageError("its flow is not finite")
        return cls(flow)


class WaNet(Attack):
    """Warp the image a little, along one smooth random field.

    Nguyen and Tran 2021: the k x k control grid u ~ U(-1, 1) is divided by mean |u| and upsampled, and x is read at
    clamp(identity + s u / H, -1, 1). Noise mode: further rows are warped with another U(-1, 1) / H at every pixel and
    keep their labels, so that only the exact field fires. Poisons fixed rows, as FST, BSD and PL do.
    """

    name = "wanet"
    sample_specific = True
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = {WarpTrigger.kind: WarpTrigger}
    presets = {
        "fst": {"rate": 0.05, "grid": 4, "strength": 0.5},
        "bsd": {"rate": 0.05, "grid": 4, "strength": 0.5, "cross_ratio": 4.0},
        "pl": {"rate": 0.15, "grid": 4, "strength": 0.5},
    }

    rate: float = option(0.1, "poison rate, as a share of the whole training set", cite="WaNet released", gt=0, le=1)
    grid: int = option(4, "k, side of the control grid", cite="WaNet released; FST B.2", ge=2, le=1024)
    strength: float = option(0.5, "s, how far the warp reaches", cite="WaNet released; FST B.2", gt=0)
    cross_ratio: float = option(
        2.0, "noise rows for each poisoned one; 0: none", cite="WaNet released; BSD C.3: .2 of all rows", ge=0
    )

    def make_trigger(self, shape: tuple[int, int, int], rng: torch.Generator) -> WarpTrigger:
        _, height, width = shape
        sides = torch.tensor([width, height])
        field = upsample(control_grid(self.grid, rng), height, width)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        return WarpTrigger((torch.stack([x, y], dim=-1) + self.strength * field / sides).clamp(-1, 1))

    def cover_count(self, poisoned: int, rows: int) -> int:
        return round(self.cross_ratio * poisoned)

    def plant_cover(self, images: Tensor, others: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        return self.own(trigger, WarpTrigger).jittered(images, torch.randint(2**62, (len(images),), generator=rng))


def control_grid(k: int, rng: torch.Generator) -> Tensor:
    """Draw u ~ U(-1, 1), (1, 2, k, k), and divide by its mean absolute value."""
    u = torch.rand(1, 2, k, k, generator=rng) * 2 - 1
    return u / u.abs().mean()


def upsample(grid: Tensor, height: int, width: int) -> Tensor:
    """Interpolate a control grid to every pixel: (H, W, 2)."""
    return F.interpolate(grid, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0).contiguous()


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [WaNet]
