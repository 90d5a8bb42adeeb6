"""Guessing the labels of images that share a trigger."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from families import FAMILIES, member
from torch import Tensor, nn

from bdaudit.defenses.sep import SEP
from bdaudit.flow.run import Run
from bdaudit.flow.suspect import load
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator, seeded
from bdaudit.training.metrics import predict_logits
from bdaudit.training.relabel import as_the_second_half, best_but, companions, logits_like, relabelled

TARGET = 0


def classifier(*layers: nn.Module) -> Classifier:
    grey = Preprocessing(channels=1, height=8, width=8, mean=(0.0,), std=(1.0,))
    return Classifier(nn.Sequential(*layers), grey).eval()


def test_the_best_class_is_never_the_target() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0], [0.0, 1.0, 2.0]])
    assert best_but(logits, 0).tolist() == [2, 1, 2]


@pytest.mark.parametrize(("shape", "channel"), [((12, 3, 5, 5), 1), ((12, 7, 3), -1), ((12, 3), 1)])
def test_each_channel_of_the_first_half_gets_the_others_mean_and_deviation(
    shape: tuple[int, ...], channel: int
) -> None:
    h = torch.randn(shape, generator=generator(0))
    h[:6] = h[:6] * 3 + 2
    matched = as_the_second_half(h, channel)
    ours, theirs = matched.movedim(channel, 1).chunk(2)
    over = [d for d in range(ours.ndim) if d != 1]
    torch.testing.assert_close(ours.mean(over), theirs.mean(over), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.std(over, correction=0), theirs.std(over, correction=0), atol=1e-4, rtol=0)
    assert torch.equal(matched[6:], h[6:])


def test_brightness_and_contrast_that_all_share_are_gone() -> None:
    """Of a linear layer and a normalisation, images a x + b give what x gives."""
    with seeded(generator(0)):
        norm = nn.BatchNorm2d(4)
        model = classifier(nn.Conv2d(1, 4, 1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        norm.running_mean, norm.running_var = torch.rand(4), torch.rand(4) + 0.5
    x = torch.rand(20, 1, 8, 8, generator=generator(1))
    expected, shifted = predict_logits(model, x), 0.5 * x + 0.3
    assert not torch.allclose(predict_logits(model, shifted), expected, atol=0.05)
    torch.testing.assert_close(logits_like(model, shifted, x), expected, atol=0.02, rtol=0.02)


def test_without_normalisations_the_head_is_matched() -> None:
    with seeded(generator(0)):
        model = classifier(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(20, 1, 8, 8, generator=generator(1))
    torch.testing.assert_close(logits_like(model, 0.5 * x + 0.3, x), predict_logits(model, x), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_beside_themselves_images_keep_their_logits(family: str) -> None:
    """In every family, in parts that do not fill a batch; and nothing is left in the network."""
    model = member(family)
    x = torch.randint(256, (130, 3, 32, 32), generator=generator(0), dtype=torch.uint8)
    before = predict_logits(model, x)
    like = logits_like(model, x, x)
    assert like.shape == before.shape
    spread = before.std()
    assert (like - before).abs().median() <= 0.02 * spread
    assert torch.equal(predict_logits(model, x), before)


def test_companions_have_the_labels_asked_for(digits: Pool) -> None:
    labels = torch.tensor([3, 3, 7, 0])
    assert torch.equal(companions(digits, labels, generator(0)).labels, labels)
    few = digits.take(digits.labels == 3)
    assert companions(few, labels, generator(0)).labels.tolist() == [3, 3, 3, 3]


def brighter(pool: Pool) -> Pool:
    """A quarter of white over every image."""
    return pool.with_images((0.75 * pool.images + 64).round().to(torch.uint8))


@pytest.fixture(scope="module")
def reference(run: Run) -> Classifier:
    assert run.reference_path is not None
    return load(run.reference_path, device="cpu").classifier


@pytest.mark.parametrize("classes", [range(1, 10), (2, 5, 7)])
def test_what_all_share_no_longer_misleads(reference: Classifier, run: Run, classes: Sequence[int]) -> None:
    """With images of all classes or of few: the companions keep the classes from being taken for what is shared."""
    test = run.pool("test")
    shared = brighter(test.take(torch.isin(test.labels, torch.tensor(list(classes)))))

    def right(labels: Tensor) -> float:
        return (labels == shared.labels).float().mean().item()

    blind = shared.labelled(TARGET)
    own, matched = (
        relabelled(reference, blind, run.pool("clean"), TARGET, rounds, generator(0)).labels
        for rounds in (0, SEP().rounds)
    )
    assert (matched != TARGET).all()
    assert right(matched) >= right(own) + 0.3
    assert right(matched) >= 0.9
