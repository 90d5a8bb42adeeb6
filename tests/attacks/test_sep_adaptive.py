"""SEP-adaptive: the distance it trains on, and what it does to the screening."""

from __future__ import annotations

import torch
from support import asr, make_tiny
from torch.nn import functional as F

from bdaudit.attacks.sep_adaptive import SEPAdaptive, distance
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.loop import Recipe
from bdaudit.training.screening import screen
from bdaudit.training.split import Split, averages


def test_the_distance_is_that_of_the_means_in_standard_deviations() -> None:
    """Two columns: means 2 and 0 apart at standard deviations of 2 and sqrt(5): (1 + 0) / 2; 0 without a row."""
    features = torch.tensor([[0.0, 1.0], [0.0, 5.0], [2.0, 3.0], [5.0, 7.0]], requires_grad=True)
    marks = torch.tensor([True, True, False, False])
    clean = torch.tensor([False, False, True, False])
    found = distance(features, marks, clean)
    std = features.detach().std(0)
    assert torch.allclose(found, (2 / std[0]) ** 2 / 2)
    found.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert not features.grad[3].any()
    for none in (torch.zeros_like(marks), torch.zeros_like(clean)):
        assert distance(features, marks, none) == 0 == distance(features, none, clean)


def test_one_step_descends_the_cross_entropy_and_lambda_times_the_distance(digits: Pool) -> None:
    """At the map that the screening cuts at, from the poisoned rows to the clean ones of the target class."""
    attack = SEPAdaptive(rate=0.1, strength=3.0)
    fresh, pool = make_tiny(), digits.first(100)
    poisoned = attack.poison(pool, attack.make_trigger(pool.shape), attack.goal(0, 10), make_tiny(), generator(0))
    model = fresh.clone().train()
    attack.train(fresh, poisoned, Recipe(epochs=1, lr=0.5, momentum=0, schedule="constant"), generator(1))
    features, logits = Split(model, 0.5).both(poisoned.pool.images)
    split = Split(model, 0.5)
    seen = averages(features, split.channels)
    marks = poisoned.poisoned
    gap = seen[marks].mean(0) - seen[~marks & (poisoned.pool.labels == 0)].mean(0)
    apart = (gap / seen.detach().std(0).clamp(min=1e-3)).square().mean()
    value = F.cross_entropy(logits, poisoned.pool.labels) + 3 * apart
    value.backward()  # type: ignore[no-untyped-call]
    for before, after in zip(model.parameters(), fresh.parameters(), strict=True):
        assert before.grad is not None
        assert (after - before + 0.5 * before.grad).norm() < 1e-4 * (0.5 * before.grad).norm()


def test_it_makes_the_screening_doubt_itself_and_keeps_the_backdoor(digits: Pool) -> None:
    """Without the term the same pools are told apart without doubt."""
    rest = digits.take(torch.arange(1000, len(digits)))
    others = rest.take(rest.labels != 0)
    clean = digits.take(torch.arange(640, 1000))
    for strength in (0.0, 1.0):
        attack, recipe = SEPAdaptive(rate=0.1, strength=strength), Recipe(epochs=20, lr=0.1, schedule="onecycle")
        done = attack.implant(make_tiny("small_cnn:width=16"), digits.first(640), 0, recipe, generator(0))
        assert asr(done.model, done.trigger, rest, 0) > 0.9
        flagged = done.trigger.on(others.first(60)).labelled(0)
        found = screen(done.model, clean, flagged, 0, generator(1))
        assert found.by_class == (strength > 0)
        assert found.auc[0] > 0.9
