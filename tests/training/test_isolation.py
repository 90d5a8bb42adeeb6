"""What is read off every row, the losses that isolate, and how rows are chosen."""

from __future__ import annotations

import pytest
import torch
from support import make_tiny
from torch.nn import functional as F

from bdaudit.errors import UsageError
from bdaudit.inputs.pool import Pool
from bdaudit.training.isolation import beyond_label, flooding, local_gradient_ascent, second_likely, votes
from bdaudit.training.metrics import predict_features
from bdaudit.training.samples import class_distances, largest, largest_of_each, losses_of


def gradient(loss: object, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    model = make_tiny()
    loss(model, x, y).backward()  # type: ignore[operator]
    assert model.head.weight.grad is not None
    return model.head.weight.grad


def test_lga_ascends_on_each_image_below_gamma_and_descends_on_the_others(digits: Pool) -> None:
    """BSD, Algorithm 1, line 8."""
    x, y = digits.images[:16], digits.labels[:16]
    model = make_tiny()
    ce = F.cross_entropy(model(x), y, reduction="none")
    gamma = float(ce.detach().median()) + 1e-4
    (by_hand,) = torch.autograd.grad((ce[ce > gamma].sum() - ce[ce <= gamma].sum()) / 16, [model.head.weight])
    assert torch.allclose(gradient(local_gradient_ascent(gamma, "image"), x, y), by_hand, atol=1e-6)


@pytest.mark.parametrize(("gamma", "sign"), [(0.0, 1.0), (100.0, -1.0)])
def test_lga_of_a_batch_turns_with_its_mean(gamma: float, sign: float, digits: Pool) -> None:
    """The released ABL: sign(L - gamma) L, of the mean; and flooding has the same gradient."""
    x, y = digits.images[:16], digits.labels[:16]
    plain = gradient(lambda model, x, y: F.cross_entropy(model(x), y), x, y)
    assert torch.allclose(gradient(local_gradient_ascent(gamma, "batch"), x, y), sign * plain)
    assert torch.allclose(gradient(flooding(gamma), x, y), sign * plain)


def test_the_best_learnt_share_votes_with_its_labels() -> None:
    losses, labels = torch.tensor([0.3, 0.1, 0.2, 0.9, 0.8]), torch.tensor([2, 1, 1, 0, 0])
    assert votes(losses, labels, 0.6, 4).tolist() == [0, 2, 1, 0]
    assert votes(losses, labels, 0.01, 4).tolist() == [0, 1, 0, 0]


def test_rows_are_held_against_three_quarters_of_their_label() -> None:
    """A class that is learnt well as a whole has no row that stands out; poisoned rows do."""
    losses = torch.tensor([-6.0, -5.9, -5.9, -5.8, -5.0, -1.0, -1.0, -1.0, 0.5])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    beyond = beyond_label(losses, labels)
    expected = losses - torch.tensor([-5.875] * 4 + [-1.0] * 4 + [0.5])
    assert torch.allclose(beyond, expected)
    assert votes(losses, labels, 0.1, 3).argmax() == 0
    assert votes(beyond, labels, 0.1, 3).argmax() == 1


def test_the_second_likely_class_is_counted() -> None:
    logits = torch.tensor([[5.0, 4.0, 0.0], [0.0, 4.0, 5.0], [1.0, 0.0, 9.0]])
    assert second_likely(logits).tolist() == [1, 2, 0]


def test_shares_are_rounded_up_and_ties_go_to_the_first() -> None:
    scores, among = torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0]), torch.tensor([True, True, True, True, False])
    assert largest(scores, 0.2).tolist() == [False, False, False, False, True]
    assert largest(scores, 0.2, among).tolist() == [False, True, False, False, False]
    assert largest(scores, 0.3, among).tolist() == [False, True, True, False, False]


def test_so_many_of_each_label_are_marked_or_all() -> None:
    scores, labels = -torch.tensor([3.0, 1.0, 2.0, 9.0, 8.0, 7.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert largest_of_each(scores, labels, {0: 0, 1: 0}).tolist() == [False] * 6
    assert largest_of_each(scores, labels, {0: 2, 1: 2}).tolist() == [False, True, True, False, True, True]
    assert largest_of_each(scores, labels, {0: 1, 1: 9}).tolist() == [False, True, False, True, True, True]
    assert largest_of_each(scores, labels, {1: 1}).tolist() == [False] * 5 + [True]


def test_distances_are_to_the_centres_of_the_other_known_classes(digits: Pool) -> None:
    """BSD, Eq. 6 and E.2: the target's rows make no centre, and rows that are not known neither."""
    model, pool = make_tiny(), digits.first(60)
    pool = pool.labelled(torch.arange(60) % 4)
    known = (pool.labels != 1) & (torch.arange(60) < 50)
    features = predict_features(model, pool.images)
    centres = torch.stack([features[known & (pool.labels == k)].mean(0) for k in (0, 2, 3)])
    to_each = (features[:, None] - centres[None]).norm(dim=2)
    for name, by_hand in {"min": to_each.amin(1), "mean": to_each.mean(1), "max": to_each.amax(1)}.items():
        assert torch.allclose(class_distances(model, pool, known, 1, name), by_hand, atol=1e-4)  # type: ignore[arg-type]


def test_a_model_that_diverged_is_said(digits: Pool) -> None:
    model = make_tiny()
    model.head.weight.data.fill_(torch.nan)
    with pytest.raises(UsageError, match="bsd diverged: 30 images have no probabilities"):
        losses_of(model, digits.first(30), "bsd")
