"""Sensitivity to a turn and a shift: the transformation, the score and the loss that parts classes, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from support import make_tiny
from torch import Tensor

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training import sensitivity
from bdaudit.training.sensitivity import intra_class, sensitivities, turned


def centroids(images: Tensor) -> Tensor:
    """(x, y) of what is bright, in pixels from the image's middle; (N, 2)."""
    h, w = images.shape[2:]
    weight = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    x = (weight.sum(1) * (torch.arange(w) - (w - 1) / 2)).sum(1)
    y = (weight.sum(2) * (torch.arange(h) - (h - 1) / 2)).sum(1)
    return torch.stack([x, y], 1)


def test_images_are_turned_by_any_angle_and_shifted_by_up_to_a_fifth() -> None:
    """Rigidly, oblong images too: dots stay as far from each other as they were; what comes in is black."""
    h, w = 41, 61
    images = torch.zeros(400, 2, h, w, dtype=torch.uint8)
    images[:, 0, 19:22, 34:37] = images[:, 1, 19:22, 24:27] = 255  # blocks 5 pixels right and left of the middle
    out = turned(images, generator(0))
    right, left = centroids(out[:, :1]), centroids(out[:, 1:])
    assert torch.allclose((right - left).norm(dim=1), torch.full((400,), 10.0), atol=0.5)
    middle = (right + left) / 2
    assert middle[:, 0].abs().max() <= 0.2 * w + 0.5
    assert middle[:, 1].abs().max() <= 0.2 * h + 0.5
    assert middle.abs().amax(0) == pytest.approx([0.2 * w, 0.2 * h], abs=1)
    angle = torch.atan2(*(right - left).unbind(1))
    assert torch.histc(angle, 8, -math.pi, math.pi).min() > 20
    white = turned(torch.full((50, 1, 9, 9), 255, dtype=torch.uint8), generator(1))
    assert (white.flatten(1).amin(1) == 0).float().mean() > 0.9


def test_the_score_is_the_mean_squared_difference_of_features(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eval mode, for each row with its own transformation, whatever the batch."""
    monkeypatch.setattr(sensitivity, "turned", lambda images, rng: images.flip(3))
    monkeypatch.setattr(sensitivity, "BATCH", 7)
    model = make_tiny().train()
    scores = sensitivities(model, digits.first(20), generator(0))
    model.eval()
    change = model.features(digits.images[:20]) - model.features(digits.images[:20].flip(3))
    assert torch.allclose(scores, (change**2).sum(1) / change.shape[1], atol=1e-6)
    assert scores.min() > 0


def test_the_intra_class_loss_is_the_mean_cosine_of_different_labels_centres(
    digits: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: centres (2, 0), (0, 1) and (3, 3) have cosines 0, .707 and .707."""
    model = make_tiny()
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    monkeypatch.setattr(Classifier, "features", lambda self, x: features)
    loss = intra_class(model, digits.images[:4], torch.tensor([5, 5, 0, 9]))
    assert loss.item() == pytest.approx(2 / 3 * math.sqrt(0.5), abs=1e-6)
    assert intra_class(model, digits.images[:4], torch.tensor([5, 5, 5, 5])).item() == pytest.approx(0, abs=1e-6)


def test_the_head_has_no_part_in_it(digits: Pool) -> None:
    model = make_tiny()
    intra_class(model, digits.images[:32], digits.labels[:32]).backward()
    assert model.head.weight.grad is None
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
