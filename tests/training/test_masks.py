"""Masks and noise on BatchNorm's channels: what they change, what they leave alone, and where they are cut."""

from __future__ import annotations

import pytest
import torch
from families import member
from support import make_tiny
from torch import nn

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training import masks
from bdaudit.training.loop import Recipe, tune
from bdaudit.training.masks import Masked, batchnorms, convolutions_before, obstacle, prune, silence
from bdaudit.training.metrics import Rate
from bdaudit.training.progress import progress_shown


def scaled(model: Classifier, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> Classifier:
    """The model with its BatchNorm weights and biases multiplied by hand."""
    out = model.clone()
    with torch.no_grad():
        for layer, w, b in zip(batchnorms(out).values(), weights, biases, strict=True):
            layer.weight.mul_(w)
            layer.bias.mul_(b)
    return out


def drawn(model: Classifier, seed: int) -> list[torch.Tensor]:
    rng = generator(seed)
    return [torch.rand(layer.weight.shape, generator=rng) for layer in batchnorms(model).values()]


def test_masks_and_noise_multiply_weights_and_biases_as_in_anp(suspect: Classifier, digits: Pool) -> None:
    """(m + d) w z + (1 + xi) b, layer by layer; without noise the biases are as they were."""
    x, masked = digits.images[:16], Masked(suspect)
    m, d, xi = (drawn(suspect, seed) for seed in range(3))
    with torch.no_grad():
        assert torch.equal(masked.model(x), suspect(x))
        for mask, value in zip(masked.masks.values(), m, strict=True):
            mask.copy_(value)
        ones = [torch.ones_like(v) for v in m]
        assert torch.allclose(masked.model(x), scaled(suspect, m, ones)(x), atol=1e-4)
        with masked.noisy([n for pair in zip(d, xi, strict=True) for n in pair]):
            noisy = masked.model(x)
        by_hand = scaled(suspect, [a + b for a, b in zip(m, d, strict=True)], [1 + b for b in xi])
        assert torch.allclose(noisy, by_hand(x), atol=1e-4)
        assert torch.allclose(masked.model(x), scaled(suspect, m, ones)(x), atol=1e-4)


def test_only_the_masks_learn_and_the_model_given_stays_as_it_was(digits: Pool) -> None:
    model = make_tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masked = Masked(model)
    tune(masked.model, digits.first(64), Recipe(epochs=1, lr=0.5, batch_size=32), generator(0), after_step=masked.clip)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(masked.masks) == ["body.bn1", "body.bn2", "body.bn3"]
    assert all((mask < 1).any() and mask.min() >= 0 and mask.max() <= 1 for mask in masked.masks.values())
    learnt = {name: mask.detach().clone() for name, mask in masked.masks.items()}
    folded = masked.fold()
    for name, tensor in folded.named_parameters():
        layer, _, what = name.rpartition(".")
        factor = learnt[layer] if layer in learnt and what == "weight" else 1
        assert torch.allclose(tensor, before[name] * factor), name


def test_a_folded_model_is_an_ordinary_one_again(digits: Pool) -> None:
    """Same classes of modules, same names in the same order, same logits."""
    model = make_tiny()
    masked = Masked(model)
    with torch.no_grad():
        for mask in masked.masks.values():
            mask.mul_(0.5)
        expected = masked.model(digits.images[:8])
        folded = masked.fold()
        assert torch.equal(folded(digits.images[:8]), expected)
    assert list(folded.state_dict()) == list(model.state_dict())
    assert [type(m) for m in folded.modules()] == [type(m) for m in model.modules()]


def test_the_floor_may_depend_on_the_layers_number() -> None:
    masked = Masked(make_tiny())
    with torch.no_grad():
        for mask in masked.masks.values():
            mask[0], mask[1] = -1.0, 2.0
    masked.clip(lambda depth: 0.8 / depth)
    assert [mask[:3].tolist() for mask in masked.masks.values()] == [
        pytest.approx([0.8 / depth, 1.0, 1.0]) for depth in (1, 2, 3)
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_a_silenced_channel_gives_its_bias_or_nothing(bias: bool, digits: Pool) -> None:
    model = make_tiny()
    nn.init.constant_(model.body.bn2.bias, 0.5)
    chosen = torch.tensor([True] + [False] * 7)
    silence(model, {"body.bn2": chosen}, bias=bias)
    seen: list[torch.Tensor] = []
    model.body.bn2.register_forward_hook(lambda _, __, out: seen.append(out))
    model(digits.images[:4])
    assert (seen[0][:, 0] == (0.0 if bias else 0.5)).all()
    assert seen[0][:, 1].std() > 0


def test_pruning_takes_the_largest_threshold_that_keeps_the_accuracy(
    digits: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks 0, .5, .8: held-out accuracy .9, with one channel off .8, with two .88, with three .7."""
    model = make_tiny()
    held, found = digits.first(30), {"body.bn1": torch.tensor([0.0, 0.5, 0.8, 1.0])}

    def accuracy(pruned: Classifier, pool: Pool) -> Rate:
        assert pool is held
        off = int((pruned.body.bn1.weight == 0).sum())
        return Rate([90, 80, 88, 70][off], 100)

    monkeypatch.setattr(masks, "accuracy", accuracy)
    with progress_shown():
        pruned = prune(model, found, held, 0.03, "anp")
        kept = prune(model, found, held, 0.01, "anp")
    assert (pruned.body.bn1.weight == 0).tolist() == [True, True, False, False]
    assert (model.body.bn1.weight != 0).all()
    assert (kept.body.bn1.weight != 0).all()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "anp: 2 of 4 channels switched off (masks up to 0.75), held-out accuracy 0.880 (before: 0.900)"
    assert second == "anp: no channel switched off, as any threshold costs more than 0.01 of held-out accuracy"


def test_convolutions_are_paired_with_the_batchnorm_that_takes_their_output() -> None:
    """In a pre-activation network a block's first layer takes a sum, but for the first block, which takes the stem."""
    model = member("preactresnet18")
    pairs = convolutions_before(model)
    names = {conv: name for name, conv in model.named_modules()}
    found = {bn.removeprefix("body."): names[conv].removeprefix("body.") for bn, conv in pairs.items()}
    inner = {f"layer{i}.{j}.bn2": f"layer{i}.{j}.conv1" for i in range(1, 5) for j in range(2)}
    assert found == {"layer1.0.bn1": "conv1", **inner}
    # The stem also goes to the first block's shortcut as it is.
    assert list(convolutions_before(model, alone=True)) == [f"body.{name}" for name in inner]


def test_a_convolution_changed_in_place_before_batchnorm_is_no_pair() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    model = Classifier(body, make_tiny().preprocessing).eval()
    assert convolutions_before(model) == {"body.4": body[3]}


def test_a_model_without_batchnorm_is_said_to_have_none() -> None:
    assert obstacle(member("vit_b_16")) == "masks the channels of BatchNorm layers, and VisionTransformer has none"
    assert obstacle(make_tiny()) == ""
