"""Folded models: the same function, frozen."""

from __future__ import annotations

import pytest
import torch
from support import make_tiny
from torch import Tensor, nn

from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import generator
from bdaudit.training.folded import folded


def batchnorms(model: Classifier) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.fixture
def trained() -> Classifier:
    """A model whose BatchNorm statistics and scales are not those it began with."""
    model = make_tiny("resnet18:width=4")
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                for tensor in (m.weight, m.bias, m.running_var, m.running_mean):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator(1)) + 0.5)
    return model


def test_it_computes_the_same_without_batchnorm(trained: Classifier) -> None:
    """Logits, and gradients to the pixels, agree to rounding; the model itself stays as it was."""
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    made = folded(trained)
    x = torch.rand(5, *trained.preprocessing.shape, generator=generator(2))

    def gradient(model: Classifier) -> tuple[Tensor, Tensor]:
        pixels = x.clone().requires_grad_()
        logits = model(pixels)
        return logits.detach(), torch.autograd.grad(logits.square().sum(), pixels)[0]

    for got, expected in zip(gradient(made), gradient(trained), strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert batchnorms(trained) > 0
    assert batchnorms(made) == 0
    assert not any(p.requires_grad for p in made.parameters())
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())


class Branching(nn.Module):
    """A network that does one thing to single images and another to batches: tracing cannot follow it."""

    def __init__(self, error: bool) -> None:
        super().__init__()
        self.linear, self.error = nn.Linear(256, 10), error

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.error and bool(flat.sum() > 0):
            flat = flat * 2
        # A constant after tracing, which is done without images.
        return self.linear(flat) * (1.0 if isinstance(x, torch.fx.Proxy) else 2.0)


@pytest.mark.parametrize("error", [True, False])
def test_a_network_that_tracing_cannot_follow_or_follows_wrongly_is_left_alone(error: bool) -> None:
    model = Classifier(Branching(error), make_tiny().preprocessing).eval()
    x = torch.rand(2, *model.preprocessing.shape, generator=generator(0))
    assert torch.equal(folded(model)(x), model(x))
