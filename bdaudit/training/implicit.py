"""Gradients through the solution of an inner problem, without unrolling the steps that solved it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""The inner variable -> a scalar that may depend on other weights as well."""


def through_solution(
    outer: Objective,
    inner: Objective,
    at: Tensor,
    *,
    steps: int,
    lr: float,
    project: Callable[[Tensor], Tensor] = lambda d: d,
) -> Tensor:
    """Return outer(d), with a gradient in the weights that counts how d = argmin inner moves with them.

    d is a fixed point of phi(d, w) = project(d - lr inner_d), so that it moves by (1 - phi_d)^-1 phi_w: the implicit
    function theorem. The inverse is found by `steps` iterations v <- phi_d' v + outer_d (Grazzi et al., ICML 2020),
    and every product with a second derivative by differentiating twice.
    at: d, the solution. project: onto what d is constrained to; differentiable.
    lr: below 2 over the largest eigenvalue of inner_dd, or the iteration diverges.
    """
    d = at.detach().requires_grad_()
    value = outer(d)
    (direct,) = torch.autograd.grad(value, [d], retain_graph=True)
    (slope,) = torch.autograd.grad(inner(d), [d], create_graph=True)
    moved = project(d - lr * slope)
    v = torch.zeros_like(d)
    for _ in range(steps):
        v = torch.autograd.grad(moved, [d], v, retain_graph=True)[0] + direct
    # Its value is zero, its gradient in the weights that of <v, moved>.
    along = (moved * v).sum()
    return value + along - along.detach()
