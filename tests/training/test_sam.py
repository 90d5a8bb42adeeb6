"""Sharpness-aware minimisation: its own equations, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import make_tiny
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.loop import Recipe, cross_entropy, tune
from bdaudit.training.sam import Sam, SharpnessAware, statistics_kept


def drawn(*shapes: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rng = generator(0)
    return [torch.randn(s, generator=rng) for s in shapes], [torch.randn(s, generator=rng) for s in shapes]


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


class TestPerturbation:
    """Foret et al. 2021, Eq. 2; Kwon et al. 2021, Eq. 7 with T_w = |w|."""

    def test_plain_is_the_gradient_at_length_rho_over_all_weights_together(self) -> None:
        weights, gradients = drawn((3, 4), (5,))
        e = flat(Sam(0.7).perturbation(weights, gradients))
        assert e.norm().item() == pytest.approx(0.7)
        assert F.cosine_similarity(e, flat(gradients), dim=0).item() == pytest.approx(1)

    def test_adaptive_has_length_rho_in_shares_of_each_weight_and_is_the_worst_such_point(self) -> None:
        weights, gradients = drawn((3, 4), (5,))
        w, g = flat(weights), flat(gradients)
        e = flat(Sam(0.7, adaptive=True).perturbation(weights, gradients))
        assert (e / w.abs()).norm().item() == pytest.approx(0.7)
        # max <g, e> over ||e / |w|| <= rho is rho || |w| g ||
        assert (g @ e).item() == pytest.approx(0.7 * (w.abs() * g).norm().item())
        assert torch.allclose(e, 0.7 * w**2 * g / (w.abs() * g).norm())

    @pytest.mark.parametrize("adaptive", [False, True])
    def test_where_the_gradient_is_zero_it_stays(self, adaptive: bool) -> None:
        weights, _ = drawn((3, 4))
        [e] = Sam(0.7, adaptive).perturbation(weights, [torch.zeros(3, 4)])
        assert torch.equal(e, torch.zeros(3, 4))


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_step_descends_by_the_gradient_at_w_plus_e(digits: Pool, adaptive: bool) -> None:
    """w1 = w - lr dL/dw (w + e): w itself is restored before the step."""
    model, x, y = make_tiny().train(), digits.images[:64], digits.labels[:64]
    weights = list(model.parameters())
    there = model.clone()
    gradients = torch.autograd.grad(cross_entropy(there, x, y), list(there.parameters()))
    sam = Sam(0.5, adaptive)
    with torch.no_grad():
        for p, e in zip(there.parameters(), sam.perturbation(weights, gradients), strict=True):
            p.add_(e)
    expected = torch.autograd.grad(cross_entropy(there, x, y), list(there.parameters()))
    start = [w.detach().clone() for w in weights]
    optimizer = SharpnessAware(torch.optim.SGD(weights, lr=0.1), model, sam)
    value = optimizer.step(closure_of(model, optimizer, x, y))
    assert value.item() == pytest.approx(cross_entropy(make_tiny().train(), x, y).item())
    for w, w0, g in zip(weights, start, expected, strict=True):
        assert torch.allclose(w, w0 - 0.1 * g, atol=1e-6)
    assert any((g - g0).abs().max() > 0.01 for g, g0 in zip(expected, gradients, strict=True))


def closure_of(model: Classifier, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> Any:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = cross_entropy(model, x, y)
        value.backward()
        return value.detach()

    return closure


def test_weights_come_back_to_the_last_bit(digits: Pool) -> None:
    """With a base that does not move, a step of any radius changes no parameter."""
    model = make_tiny().train()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.0), model, Sam(3.0, adaptive=True))
    optimizer.step(closure_of(model, optimizer, digits.images[:32], digits.labels[:32]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True))


def test_batchnorm_statistics_move_once_a_step_and_by_the_first_look(digits: Pool) -> None:
    x, y = digits.images[:64], digits.labels[:64]
    once, model = make_tiny().train(), make_tiny().train()
    once(x)
    optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), model, Sam(2.0, adaptive=True))
    optimizer.step(closure_of(model, optimizer, x, y))
    moved = dict(model.named_buffers())
    assert sum(name.endswith("num_batches_tracked") for name in moved) > 0
    for name, buffer in once.named_buffers():
        assert torch.equal(moved[name], buffer), name


def test_statistics_are_kept_and_the_batch_still_normalises(digits: Pool) -> None:
    """Inside the block the logits are those of train mode, and what was tracked before is tracked again after it."""
    model, x = make_tiny().train(), digits.images[:32]
    before = {n: b.clone() for n, b in model.named_buffers()}
    with statistics_kept(model):
        inside = model(x)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert torch.equal(inside, model(x))
    assert not all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_the_loops_learning_rate_reaches_the_base_optimiser(digits: Pool) -> None:
    """A schedule that is zero throughout moves nothing; momentum and the wrapper's groups are the base's own."""

    class Still(Recipe):
        def factor(self, step: int, steps: int) -> float:
            return 0.0

    model = make_tiny()
    tuned = tune(model.clone(), digits.first(64), Still(epochs=1, lr=0.1, sam=Sam(1.0)), generator(0))
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), model.parameters(), strict=True))


def test_frozen_parameters_are_not_perturbed(digits: Pool) -> None:
    """The radius is spent on what is trained: the head alone here."""
    model = make_tiny().requires_grad_(False)
    model.head.requires_grad_(True)
    seen = []

    def loss(model: Classifier, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        return cross_entropy(model, x, y)

    tune(model, digits.first(64), Recipe(epochs=1, lr=0.1, sam=Sam(0.3)), generator(0), loss=loss)
    first, second = seen
    moved = [(a - b).norm().item() for a, b in zip(first, second, strict=True)]
    assert sum(m > 0 for m in moved) == 2
    assert torch.tensor(moved).norm().item() == pytest.approx(0.3, rel=1e-4)


def test_a_step_without_a_closure_is_refused() -> None:
    model = make_tiny()
    with pytest.raises(TypeError, match="needs a closure"):
        SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), model, Sam(1.0)).step()


def test_it_finds_a_flatter_minimum_than_plain_descent() -> None:
    """On (uv - 1)^2, whose minima are sharper the more unequal u and v are, only SAM evens them out."""

    def imbalance(rho: float) -> float:
        u, v = (torch.nn.Parameter(torch.tensor(start)) for start in (3.0, 0.2))
        optimizer = SharpnessAware(torch.optim.SGD([u, v], lr=0.05), torch.nn.ParameterList([u, v]), Sam(rho))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            value = (u * v - 1) ** 2
            value.backward()
            return value.detach()

        for _ in range(500):
            optimizer.step(closure)
        return abs((u / v).item())

    assert imbalance(0.0) > 5
    assert imbalance(0.3) < 2
