"""Sharpness-aware minimisation, plain and adaptive, around any optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Sam:
    """Descend by the gradient at the worst point nearby, which leads to flat minima (Foret et al., ICLR 2021).

    rho: radius of the neighbourhood. adaptive: measure it in shares of each weight (ASAM, Kwon et al., ICML 2021).
    """

    rho: float
    adaptive: bool = False

    def perturbation(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Point to where the linearised loss is worst: rho g / ||g||, or rho w^2 g / || |w| g ||.

        The norm is over all weights together.
        """
        # In units of T_w both are rho T_w s / ||s|| with s = T_w g; T_w is 1, or |w|.
        if self.adaptive:
            sizes = [w.abs() for w in weights]
            gradients = [size * g for size, g in zip(sizes, gradients, strict=True)]
        scale = self.rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        steps = [g * scale for g in gradients]
        return [size * step for size, step in zip(sizes, steps, strict=True)] if self.adaptive else steps


class SharpnessAware(torch.optim.Optimizer):
    """Let `base` step from w by the gradient at w + e, where e is the perturbation of `sam` at w.

    Its parameter groups and state are those of `base`: whoever sets a learning rate here sets it there.
    """

    def __init__(self, base: torch.optim.Optimizer, model: nn.Module, sam: Sam) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups
        self.state = base.state
        self.base = base
        self.model = model
        self.sam = sam

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call `closure`, which sets gradients and returns the loss, at w and at w + e; return the loss at w."""
        if closure is None:
            raise TypeError("SharpnessAware.step looks twice: it needs a closure that sets the gradients")
        with torch.enable_grad():
            value = closure()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [w.clone() for w in weights]
        for w, e in zip(weights, self.sam.perturbation(weights, [w.grad for w in weights]), strict=True):
            w.add_(e)
        with torch.enable_grad(), statistics_kept(self.model):
            closure()
        for w, original in zip(weights, before, strict=True):
            w.copy_(original)
        self.base.step()
        return value


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, but leave BatchNorm's running statistics as they are."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
