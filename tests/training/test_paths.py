"""Straight lines through two models: their ends, what lies between, and BatchNorm's statistics on the way."""

from __future__ import annotations

import pytest
import torch
from support import make_tiny
from torch import nn

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.loop import Recipe, tune
from bdaudit.training.metrics import predict_logits
from bdaudit.training.paths import between, has_batchnorm, obstacle

TWO = Preprocessing(channels=1, height=1, width=2, mean=(0.0,), std=(1.0,))


class Buffered(nn.Linear):
    """A linear layer that keeps an integer, a mask and a variance of its own."""

    def __init__(self, steps: int, variance: float) -> None:
        super().__init__(2, 2)
        self.register_buffer("steps", torch.tensor(steps))
        self.register_buffer("mask", torch.tensor([steps > 5, True]))
        self.register_buffer("running_var", torch.tensor([variance]))


def linear(weight: list[list[float]], bias: list[float], steps: int = 0, variance: float = 1.0) -> Classifier:
    layer = Buffered(steps, variance)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return Classifier(nn.Sequential(nn.Flatten(), layer), TWO).eval()


@pytest.fixture(scope="module")
def ends(digits: Pool) -> tuple[Classifier, Classifier]:
    """Two trained states of a network with BatchNorm: the second lies on from the first."""
    start = tune(make_tiny(), digits.first(300), Recipe(epochs=2, lr=0.05), generator(0))
    return start, tune(start.clone(), digits.take(range(300, 600)), Recipe(epochs=3, lr=0.05), generator(1))


def test_the_ends_of_a_line_are_the_two_models(ends: tuple[Classifier, Classifier], digits: Pool) -> None:
    start, end = ends
    images = digits.images[:64]
    for t, model in ((0.0, start), (1.0, end)):
        made = between(start, end, t, generator(0))
        assert torch.equal(predict_logits(made, images), predict_logits(model, images))
        assert all(torch.equal(w, model.state_dict()[name]) for name, w in made.state_dict().items())
    assert not torch.equal(predict_logits(start, images), predict_logits(end, images))


def test_weights_lie_between_by_hand() -> None:
    """W(t) = (1 - t) W0 + t W1; what is no floating-point number comes from the nearer end."""
    a = linear([[1.0, 0.0], [2.0, -2.0]], [0.0, 4.0], steps=3)
    b = linear([[5.0, 8.0], [0.0, 2.0]], [2.0, 0.0], steps=9, variance=3.0)
    quarter, half, twice = (between(a, b, t, generator(0)).body[1] for t in (0.25, 0.5, 2.0))
    assert quarter.weight.tolist() == [[2.0, 2.0], [1.5, -1.0]]
    assert quarter.bias.tolist() == [0.5, 3.0]
    assert quarter.running_var.tolist() == [1.5]
    assert (quarter.steps.item(), quarter.mask.tolist()) == (3, [False, True])
    assert half.weight.tolist() == [[3.0, 4.0], [1.0, 0.0]]
    assert (half.steps.item(), half.mask.tolist()) == (9, [True, True])
    assert twice.weight.tolist() == [[9.0, 16.0], [-2.0, 6.0]]


def test_no_variance_falls_below_zero() -> None:
    """Not even one that no BatchNorm of torch's keeps, and that nothing can re-estimate."""
    a, b = (
        linear([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], variance=1.0),
        linear([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], variance=0.25),
    )
    assert between(a, b, 2.0, generator(0)).body[1].running_var.tolist() == [0.0]


def test_beyond_the_ends_batchnorm_is_measured_anew(ends: tuple[Classifier, Classifier], digits: Pool) -> None:
    """On the line itself a variance falls below zero; re-estimated ones are those of the images, in one plain mean."""
    start, end = ends[0].clone(), ends[1].clone()
    norms = [m for m in start.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_var.mul_(100)
    images = digits.images[:200]
    made = between(start, end, 2.0, generator(0), reestimate_on=images)
    names = [n for n in made.state_dict() if n.endswith("running_var")]
    assert len(names) == len(norms) > 0
    on_the_line = {n: 2 * end.state_dict()[n] - start.state_dict()[n] for n in names}
    assert min(v.min() for v in on_the_line.values()) < 0
    assert all((made.state_dict()[n] > 0).all() for n in names)
    assert predict_logits(made, images).isfinite().all()
    assert not made.training

    # By hand, the first layer's: what reaches it in two parts of a hundred, each counting the same.
    first = next(m for m in made.modules() if isinstance(m, nn.BatchNorm2d))
    inputs: list[torch.Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    predict_logits(made, images, batch_size=100)
    hook.remove()
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs])
    assert torch.allclose(first.running_var, variances.mean(0), rtol=1e-3)
    assert first.momentum == norms[0].momentum


def test_statistics_are_never_extrapolated(ends: tuple[Classifier, Classifier], digits: Pool) -> None:
    assert has_batchnorm(ends[0])
    for t in (-0.1, 1.1):
        with pytest.raises(UsageError, match="give clean images to re-estimate"):
            between(*ends, t, generator(0))
    with pytest.raises(UsageError, match="at least 2 clean images, got 1"):
        between(*ends, 2.0, generator(0), reestimate_on=digits.images[:1])


def test_the_two_models_stay_as_they_were(ends: tuple[Classifier, Classifier], digits: Pool) -> None:
    before = [{n: w.clone() for n, w in m.state_dict().items()} for m in ends]
    between(*ends, 1.5, generator(0), reestimate_on=digits.images[:100])
    for model, kept in zip(ends, before, strict=True):
        assert all(torch.equal(w, kept[n]) for n, w in model.state_dict().items())


def test_models_that_no_line_joins_are_told_apart() -> None:
    """By the shape of a weight, by one that is missing, by what is done to the pixels."""
    tiny = make_tiny()
    assert obstacle(tiny, make_tiny(seed=1)) == ""
    wide, other = make_tiny("small_cnn:width=8"), make_tiny("resnet18:width=4")
    assert "is (4, 1, 3, 3) and (8, 1, 3, 3)" in obstacle(tiny, wide)
    assert "missing" in obstacle(tiny, other)
    assert "missing" in obstacle(other, tiny)
    shifted = Preprocessing(channels=1, height=16, width=16, mean=(0.3,), std=(0.2,))
    assert obstacle(tiny, tiny.clone().preprocessed(shifted)) == "their preprocessing differs"
    with pytest.raises(UsageError, match="no straight line joins the two models: their architectures differ"):
        between(tiny, wide, 0.5, generator(0))
