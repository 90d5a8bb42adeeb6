"""MixMatch: each of its equations, the pools it learns from, and the padding that its crops take."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support import make_tiny
from torch.nn import functional as F

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training import mixmatch
from bdaudit.training.augment import Augment
from bdaudit.training.metrics import accuracy, predict_logits
from bdaudit.training.mixmatch import MixMatch, SemiSupervised, evened, guess, mix, mixmatch_loss, sharpen


def test_sharpening_raises_to_the_inverse_temperature() -> None:
    """Eq. 7, by hand: (.6, .3, .1) at T = .5 are proportional to (.36, .09, .01)."""
    p = sharpen(torch.tensor([[0.6, 0.3, 0.1]]), 0.5)
    assert torch.allclose(p, torch.tensor([[0.36, 0.09, 0.01]]) / 0.46)
    assert torch.allclose(sharpen(p, 1.0), p)


def test_a_guess_is_the_sharpened_mean_over_the_augmentations_of_each_row(digits: Pool) -> None:
    """Eq. 6, with rows kept apart from views; and nothing is learnt through it."""
    model = make_tiny()
    views = [digits.images[:5], digits.images[5:10]]
    guessed = guess(model, views, 0.5)
    mean = (model(views[0]).softmax(1) + model(views[1]).softmax(1)) / 2
    assert torch.allclose(guessed, sharpen(mean, 0.5), atol=1e-6)
    assert not guessed.requires_grad


def test_rows_are_mixed_with_one_another_and_stay_mostly_themselves(rng: torch.Generator) -> None:
    """Eq. 8 to 11: the weight is at least a half, the same for pixels and targets, and Beta(a, a) folded at 1/2."""
    n = 4000
    pixels = torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)
    targets = torch.arange(n).float()[:, None].expand(n, 3)
    mixed, labels = mix(pixels, targets, 0.75, rng)
    assert torch.allclose(mixed[:, 0, 0, 0], labels[:, 0])
    expected = torch.distributions.Beta(0.75, 0.75).sample((200_000,))
    expected = torch.maximum(expected, 1 - expected)
    marks = torch.zeros(n, 1, 1, 1)
    marks[: n // 2] = 1
    ones, _ = mix(marks, marks[:, 0, 0], 0.75, rng)
    share = ones[: n // 2].flatten()
    assert share.min() >= 0.5
    partly = share[share < 1 - 1e-6]  # those mixed with a zero: half of them
    assert len(partly) == pytest.approx(n / 4, rel=0.1)
    assert partly.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
    assert partly.std().item() == pytest.approx(expected.std().item(), abs=0.02)


def test_the_loss_is_cross_entropy_on_labels_and_weighted_squared_error_on_guesses(
    digits: Pool, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """Eq. 2 to 5, without mixing: the squared error is the mean over rows, views and classes."""
    monkeypatch.setattr(mixmatch, "mix", lambda pixels, targets, beta, rng: (pixels, targets))
    model = make_tiny()
    x, y, views = digits.images[:8], digits.labels[:8], [digits.images[8:16], digits.images[16:24]]
    loss = mixmatch_loss(model, x, y, views, MixMatch(), 3.0, rng)
    guessed = guess(model, views, 0.5)
    error = (model(torch.cat(views)).softmax(1) - torch.cat([guessed, guessed])).square().mean()
    assert loss.item() == pytest.approx((F.cross_entropy(model(x), y) + 3 * error).item(), rel=1e-4)
    alone = mixmatch_loss(model, x, y, [], MixMatch(), 3.0, rng)
    assert alone.item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-4)


def test_the_weight_of_guesses_rises_over_the_ramp_and_stays(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[float] = []

    def spy(model: Classifier, x: torch.Tensor, *rest: object) -> torch.Tensor:
        weights.append(rest[3])  # type: ignore[arg-type]
        return model(x).sum()

    monkeypatch.setattr(mixmatch, "mixmatch_loss", spy)
    how = MixMatch(iterations=2, batch_size=4, weight=15.0, ramp=2)
    learner = SemiSupervised(make_tiny(), digits.first(40), how, 3, generator(0))
    for _ in range(3):
        learner.epoch(torch.arange(40) < 20)
    assert weights == [0.0, 3.75, 7.5, 11.25, 15.0, 15.0]


def test_only_labelled_rows_give_their_labels(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every labelled row comes once before any comes again, beside rows of the rest whose labels are never read."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(model: Classifier, x: torch.Tensor, y: torch.Tensor, views: list[torch.Tensor], *_: object) -> torch.Tensor:
        seen.append((y, torch.stack(views)))
        return model(x).sum()

    monkeypatch.setattr(mixmatch, "mixmatch_loss", spy)
    pool = digits.first(40).labelled(torch.arange(40) % 10)
    labelled = pool.labels < 3
    SemiSupervised(make_tiny(), pool, MixMatch(iterations=3, batch_size=4), 1, generator(0)).epoch(labelled)
    assert torch.cat([y for y, _ in seen]).bincount(minlength=3).tolist() == [4, 4, 4]
    rest = {row.numpy().tobytes() for row in pool.images[~labelled]}
    for _, views in seen:
        assert all(row.numpy().tobytes() in rest for row in views.flatten(0, 1))


@pytest.mark.parametrize(("known", "turns"), [(30, 3), (10, 1)])
def test_suspected_rows_are_accompanied_by_as_many_labelled_ones(
    known: int, turns: int, digits: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 30 once and the 10 others three times; or, where those are more, each row once."""
    seen: list[torch.Tensor] = []

    def spy(model: Classifier, x: torch.Tensor, y: torch.Tensor, views: list[torch.Tensor], *_: object) -> torch.Tensor:
        seen.append(views[0])
        return model(x).sum()

    monkeypatch.setattr(mixmatch, "mixmatch_loss", spy)
    pool, others = digits.first(40), 40 - known
    how = MixMatch(iterations=known + turns * others, batch_size=1, accompanied=True)
    SemiSupervised(make_tiny(), pool, how, 1, generator(0)).epoch(torch.arange(40) < known)
    dealt = Counter(row.numpy().tobytes() for row in torch.cat(seen))
    assert [dealt[row.numpy().tobytes()] for row in pool.images] == [1] * known + [turns] * others


def test_classes_with_fewer_labelled_rows_are_dealt_as_often(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of class 0, two of 2, four of 1: a third of what is dealt each; and nothing is dealt that is not in."""
    labels = torch.tensor([0, 2, 1, 1, 2, 1, 1, 1, 0])
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    assert evened(rows, labels).tolist() == [0, 0, 0, 0, 2, 3, 5, 6, 1, 4, 1, 4]
    seen: list[torch.Tensor] = []

    def spy(model: Classifier, x: torch.Tensor, y: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(y)
        return model(x).sum()

    monkeypatch.setattr(mixmatch, "mixmatch_loss", spy)
    how = MixMatch(iterations=3, batch_size=4, even=True)
    SemiSupervised(make_tiny(), digits.first(9).labelled(labels), how, 1, generator(0)).epoch(torch.arange(9) < 7)
    assert torch.cat(seen).bincount(minlength=3).tolist() == [4, 4, 4]


def test_it_learns_from_few_labels_grows_surer_of_the_other_rows_and_repeats(digits: Pool) -> None:
    """Two hundred labels, 700 rows without. Over four draws: 79 to 85%, and .02 to .05 surer than by the labels alone.

    Not more often right: 79 to 88% by the labels alone, in so few epochs.
    """
    train, test = digits.shuffled(generator(0)).split(900)

    def learnt(weight: float, epochs: int = 6) -> Classifier:
        how = MixMatch(iterations=40, batch_size=32, lr=5e-3, augment=Augment(2, reflect=True), ramp=6, weight=weight)
        learner = SemiSupervised(make_tiny(), train, how, epochs, generator(5))
        for _ in range(epochs):
            learner.epoch(torch.arange(900) < 200)
        return learner.training.model.eval()

    def sureness(model: Classifier) -> float:
        return predict_logits(model, train.images[200:]).softmax(1).amax(1).mean().item()

    model = learnt(15.0)
    assert accuracy(model, test).value > 0.75
    assert sureness(model) > sureness(learnt(0.0)) + 0.01
    once, again = (learnt(15.0, epochs=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))


def test_an_empty_clean_pool_is_said_and_a_full_one_is_learnt(digits: Pool) -> None:
    learner = SemiSupervised(make_tiny(), digits.first(20), MixMatch(iterations=1, batch_size=4), 1, generator(0))
    with pytest.raises(UsageError, match="no image is left to learn with its label"):
        learner.epoch(torch.zeros(20, dtype=torch.bool))
    learner.epoch(torch.ones(20, dtype=torch.bool))


def test_reflecting_crops_are_cut_from_the_mirrored_surroundings(digits: Pool, rng: torch.Generator) -> None:
    """Each is one of the windows of the image padded by torch's own reflection; without the draw it is the image."""
    images = digits.images[:20]
    cropped = Augment(pad=3, reflect=True)(images, rng)
    padded = F.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1).flatten(2, 3)
    assert (windows == cropped[:, :, None]).flatten(3).all(3).any(2).all()
    assert not torch.equal(cropped, images)


@pytest.mark.parametrize(("decay", "rates"), [(0.0, [1.0] * 8), (0.5, [1.0] * 5 + [0.75, 0.5, 0.25])])
def test_the_learning_rate_falls_over_the_last_part_of_all_epochs(
    decay: float, rates: list[float], digits: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(mixmatch, "mixmatch_loss", lambda model, x, *_: model(x).sum())
    how = MixMatch(iterations=4, batch_size=4, lr=2.0, decay=decay)
    learner = SemiSupervised(make_tiny(), digits.first(20), how, 2, generator(0))
    step = learner.training.optimizer.step

    def spy(*args: object) -> object:
        seen.append(learner.training.optimizer.param_groups[0]["lr"] / 2.0)
        return step(*args)

    monkeypatch.setattr(learner.training.optimizer, "step", spy)
    for _ in range(2):
        learner.epoch(torch.ones(20, dtype=torch.bool))
    assert seen == pytest.approx(rates)
