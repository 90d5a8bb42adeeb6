"""K-FAC: the natural gradient of a classification layer, from the Kronecker factors of its Fisher information.

Martens and Grosse, ICML 2015, with the scales of George et al., NeurIPS 2018 (EK-FAC).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EMPTY = 1e-10
"""Eigenvalues below this are rounding."""


@dataclass(frozen=True, kw_only=True)
class Kfac:
    """How to precondition.

    damping: added to the Fisher's eigenvalues. decay: of the running means, which start from the identity.
    kl_clip: how far a step may change the predictions (squared length of the step in the Fisher's metric).
    observe_every, decompose_every: steps between two looks at the statistics, and two eigendecompositions.
    """

    damping: float = 1e-3
    decay: float = 0.95
    kl_clip: float = 1e-2
    observe_every: int = 10
    decompose_every: int = 100


class Factors:
    """The Fisher of a layer z = W [a, 1] under softmax, A (x) G: A = E[a a^T], G = E[diag(p) - p p^T].

    G is the exact expectation of g g^T, g = dCE/dz, over labels drawn from the model's own predictions p.
    """

    def __init__(self, layer: nn.Linear, decay: float) -> None:
        inputs = layer.in_features + (layer.bias is not None)
        like = layer.weight.detach().float()
        self.A = torch.eye(inputs, device=like.device)
        self.G = torch.eye(layer.out_features, device=like.device)
        self.decay = decay

    def observe(self, a: Tensor, z: Tensor) -> None:
        """Follow a batch: inputs a (N, D, with the column of ones if there is a bias) and logits z (N, K)."""
        p = z.softmax(1)
        self.A.lerp_(a.T @ a / len(a), 1 - self.decay)
        self.G.lerp_(p.mean(0).diag() - p.T @ p / len(p), 1 - self.decay)

    def decompose(self) -> None:
        """Find the eigenbasis of A (x) G, and its eigenvalues as the scales (K, D) along it."""
        (of_a, self.Q_a), (of_g, self.Q_g) = (torch.linalg.eigh(m) for m in (self.A, self.G))
        self.scales = torch.outer(*(torch.where(e > EMPTY, e, 0) for e in (of_g, of_a)))

    def rescale(self, a: Tensor, z: Tensor) -> None:
        """Follow the second moments of the gradients along the eigenbasis: EK-FAC's scales."""
        p = z.softmax(1)
        of_g = p @ self.Q_g.square() - (p @ self.Q_g).square()  # E[(g Q)^2] over the model's own labels
        self.scales.lerp_(of_g.T @ (a @ self.Q_a).square() / len(a), 1 - self.decay)

    def natural(self, gradient: Tensor, damping: float) -> Tensor:
        """Divide a gradient (K, D) by the damped Fisher."""
        along = self.Q_g.T @ gradient @ self.Q_a
        natural: Tensor = self.Q_g @ (along / (self.scales + damping)) @ self.Q_a.T
        return natural


class NaturalGradient(torch.optim.Optimizer):
    """Let `base` step by the natural gradient in one layer, whose outputs are logits, and as ever in the others.

    Its parameter groups and state are those of `base`: whoever sets a learning rate here sets it there.
    """

    def __init__(self, base: torch.optim.Optimizer, layer: nn.Linear, kfac: Kfac) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups
        self.state = base.state
        self.base = base
        self.layer = layer
        self.kfac = kfac
        self.factors = Factors(layer, kfac.decay)
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call `closure`, which runs the network once, sets gradients and returns the loss; return the loss."""
        if closure is None:
            raise TypeError("NaturalGradient.step looks at the layer: it needs a closure that runs the network")
        seen: list[tuple[Tensor, Tensor]] = []
        hook = self.layer.register_forward_hook(lambda _, args, z: seen.append((args[0].detach(), z.detach())))
        try:
            with torch.enable_grad():
                value = closure()
        finally:
            hook.remove()
        self._follow(*seen[-1])
        self._precondition()
        self.base.step()
        self.steps += 1
        return value

    def _follow(self, a: Tensor, z: Tensor) -> None:
        a, z = a.float(), z.float()
        if self.layer.bias is not None:
            a = torch.cat([a, a.new_ones(len(a), 1)], 1)
        observed = self.steps % self.kfac.observe_every == 0
        if observed:
            self.factors.observe(a, z)
        if self.steps % self.kfac.decompose_every == 0:
            self.factors.decompose()
        if observed and self.steps:
            self.factors.rescale(a, z)

    def _precondition(self) -> None:
        parameters = [p for p in (self.layer.weight, self.layer.bias) if p is not None]
        gradient = torch.cat([p.grad.reshape(self.layer.out_features, -1) for p in parameters], 1)  # type: ignore[union-attr]
        natural = self.factors.natural(gradient, self.kfac.damping)
        length = self.param_groups[0]["lr"] ** 2 * (natural * gradient).sum()
        natural *= (self.kfac.kl_clip / length.clamp(min=EMPTY)).sqrt().clamp(max=1)
        parts = torch.split(natural, [p[0].numel() for p in parameters], 1)
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.reshape(p.shape)
