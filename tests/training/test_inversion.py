"""Trigger inversion: the search's equations, and that it finds a real backdoor and none where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import make_tiny
from torch.nn import functional as F

from bdaudit import api
from bdaudit.attacks.triggers import BlendTrigger
from bdaudit.errors import UsageError
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training import inversion
from bdaudit.training.inversion import Costs, Inversion, Search, anomaly_index, invert, squash
from bdaudit.training.metrics import Rate, attack_rates

QUICK = Search(steps=150, batch_size=12)


def searched(model: Classifier, run: Run, search: Search = QUICK) -> tuple[Inversion, Pool]:
    """An inversion on the run's clean rows, and the rows that were held out."""
    held_out, rows = run.pool("clean").shuffled(generator(0)).split(50)
    return invert(model, rows, held_out, generator(1), search), held_out


@pytest.fixture(scope="module")
def found(suspect: Classifier, run: Run) -> tuple[Inversion, Pool]:
    return searched(suspect, run)


def test_it_finds_the_target_of_a_backdoored_model(found: tuple[Inversion, Pool]) -> None:
    """The run's target is class 0, whose 3 x 3 patch is far smaller than any other class's mask."""
    result, _ = found
    assert result.target == 0
    assert result.index[0] > 3
    assert result.l1[0] < 9
    assert result.l1[1:].min() > 1.3 * result.l1[0]
    assert result.success[0].value >= 0.8


def test_it_flags_no_class_of_the_clean_twin(run: Run) -> None:
    assert run.reference_path is not None
    result, _ = searched(api.load(run.reference_path, device="cpu").classifier, run)
    assert result.target is None
    assert result.index.max() < 2


def test_success_is_counted_on_held_out_images_of_other_classes(
    found: tuple[Inversion, Pool], suspect: Classifier
) -> None:
    """The trigger made of a class's row does exactly what the inversion says of it."""
    result, held_out = found
    for c in (0, 7):
        trigger = BlendTrigger(result.patterns[c], result.masks[c])
        assert attack_rates(suspect, trigger.on(held_out), Goal(c, 10))[0] == result.success[c]
        assert result.success[c].n == int((held_out.labels != c).sum())


def test_the_search_leaves_the_model_as_it_was(found: tuple[Inversion, Pool], suspect: Classifier) -> None:
    assert all(p.requires_grad and p.grad is None for p in suspect.parameters())


@given(st.floats(-1e30, 1e30))
def test_squashed_values_stay_in_the_unit_interval(value: float) -> None:
    assert 0 <= squash(torch.tensor(value)) <= 1


def test_masks_and_patterns_are_what_a_trigger_accepts(found: tuple[Inversion, Pool]) -> None:
    result, _ = found
    assert result.masks.min() >= 0
    assert result.masks.max() <= 1
    for c in range(10):
        BlendTrigger.from_tensors(BlendTrigger(result.patterns[c], result.masks[c]).tensors())
    assert torch.allclose(result.l1, result.masks.flatten(1).sum(1))


def test_the_anomaly_index_is_the_papers() -> None:
    """(median - l1) / (1.4826 MAD), on sizes or on their logarithms; positive where a mask is too small."""
    l1 = torch.tensor([2.0, 20.0, 24.0, 30.0, 26.0])  # median 24, deviations 22, 4, 0, 6, 2: MAD 4
    by_hand = torch.tensor([22.0, 4.0, 0.0, -6.0, -2.0]) / (1.4826 * 4)
    assert torch.allclose(anomaly_index(l1, "linear"), by_hand, atol=1e-5)
    assert torch.allclose(anomaly_index(l1.exp(), "log"), by_hand, atol=1e-5)
    assert (anomaly_index(l1) > 2).tolist() == [True, False, False, False, False]
    assert anomaly_index(torch.full((5,), 7.0)).tolist() == [0.0] * 5


def test_a_tenth_of_the_median_can_stand_out_only_on_the_log_scale() -> None:
    """On the linear scale nothing lies more than median / (1.4826 MAD) below the median."""
    l1 = torch.tensor([1.0, 5.0, 8.0, 12.0, 20.0, 40.0, 10.0, 25.0, 6.0, 15.0])
    assert anomaly_index(l1, "linear").max() < 2 < anomaly_index(l1, "log").max()


def test_a_class_that_never_reached_the_threshold_is_not_flagged(found: tuple[Inversion, Pool]) -> None:
    result, _ = found
    assert replace(result, reached=torch.zeros(10, dtype=torch.bool)).target is None


def test_ordinary_classes_are_those_nearest_to_the_median() -> None:
    index = torch.tensor([3.0, 0.4, -0.1, 0.2, -2.5, 2.2])
    rates = (Rate(1, 1),) * 6
    made = Inversion(torch.zeros(6, 1, 1), torch.zeros(6, 1, 1, 1), index, index > -9, rates, index, anomaly=2.0)
    assert made.flagged == (0, 5)
    assert made.ordinary(3, besides=0) == [2, 3, 1]
    assert made.ordinary(2, besides=2) == [3, 1]


def test_the_price_of_a_mask_follows_its_success() -> None:
    """Doubled after `patience` successes in a row, divided by 2^1.5 after as many failures."""
    costs = Costs(3, Search(cost=1.0, patience=2))
    for works in ([True, True, False], [True, False, False], [True, True, True], [True, True, False]):
        costs.update(torch.tensor(works))
    assert costs.price.tolist() == pytest.approx([4.0, 2.0, 2**-1.5])


def test_one_step_is_the_papers_gradient(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """x' = (1 - m) x + m p in pixels; Adam's first step goes against the sign of d(CE + cost |m|)."""
    model, row = make_tiny().eval(), digits.first(1)
    rows = Pool.concat([row.labelled(4), row.labelled(5)])  # one image, whatever is drawn
    steps: list[torch.Tensor] = []
    real = inversion.squash
    monkeypatch.setattr(inversion, "squash", lambda free: steps.append(free.detach().clone()) or real(free))
    search = Search(steps=1, batch_size=4, check=1, cost=0.01, threshold=2.0)
    invert(model, rows, rows, generator(0), search)
    _, start, after = steps  # before the first step, in it, and at the check behind it
    free = start.clone().requires_grad_()
    pixels = row.images.float() / 255
    mask, pattern = (torch.tanh(free) / 2 + 0.5).split([1, 1], dim=1)
    logits = model((1 - mask) * pixels + mask * pattern)
    loss = F.cross_entropy(logits, torch.arange(10), reduction="sum") + 0.01 * mask.sum()
    (gradient,) = torch.autograd.grad(loss, free)
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.5
    assert torch.allclose((start - after)[clear], 0.1 * gradient.sign()[clear], rtol=0.01)


def test_few_images_at_a_time_change_no_class(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that do not fit into one forward pass are searched in groups, and all of them are."""
    passes: list[int] = []
    model = make_tiny()
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    monkeypatch.setattr(inversion, "MOST_IMAGES", 12)
    result = invert(model, digits.first(40), digits.first(20), generator(0), Search(steps=2, batch_size=4))
    assert result.masks.shape == (10, 16, 16)
    assert passes[:8] == [12, 12, 12, 12, 12, 12, 4, 4]


def test_images_of_one_class_alone_are_refused(digits: Pool) -> None:
    rows = digits.take(digits.labels == 4)
    with pytest.raises(UsageError, match="images of other classes than 4"):
        invert(make_tiny(), rows, digits, generator(0), Search(steps=1))
