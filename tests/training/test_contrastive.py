"""Contrastive learning: its loss by hand, what views do to images, and what a network learns from them."""

from __future__ import annotations

import math

import pytest
import torch
from support import make_tiny
from torch import Tensor
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.contrastive import (
    Contrast,
    Views,
    contrast,
    contrastive_loss,
    hue_turn,
    luminance,
    projecting,
    warm_cosine,
)

QUICK = Contrast(epochs=1, lr=0.1, batch_size=32, temperature=0.5)


def unit(n: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, 5, generator=generator(seed)), dim=1)


class TestLoss:
    def test_two_images_at_right_angles_by_hand(self) -> None:
        """Each view has its own second view at cosine 1 and two others at 0; as positives those two weigh as much."""
        z = torch.eye(2).repeat(2, 1)
        alone = contrastive_loss(z, 1.0)
        assert alone.item() == pytest.approx(math.log(math.e + 2) - 1, abs=1e-6)
        together = contrastive_loss(z, 1.0, torch.ones(2, 2, dtype=torch.bool))
        assert together.item() == pytest.approx(math.log(math.e + 2) - 1 / 3, abs=1e-6)
        sharper = contrastive_loss(z, 0.5)
        assert sharper.item() == pytest.approx(math.log(math.e**2 + 2) - 2, abs=1e-6)

    def test_without_other_positives_it_is_nt_xent(self) -> None:
        """SimCLR, Eq. 1: cross-entropy over all other views, the label being one's own second view."""
        z = unit(12)
        similarity = (z @ z.T / 0.3).fill_diagonal_(-math.inf)
        expected = F.cross_entropy(similarity, (torch.arange(12) + 6) % 12)
        assert contrastive_loss(z, 0.3).item() == pytest.approx(expected.item(), abs=1e-6)
        assert contrastive_loss(z, 0.3, torch.eye(6, dtype=torch.bool)).item() == pytest.approx(expected.item())

    def test_with_labels_it_is_the_mean_over_each_views_positives(self) -> None:
        """SupCon, Eq. 2, view by view and pair by pair."""
        z, labels = unit(10), torch.tensor([0, 1, 0, 2, 0] * 2)
        total = 0.0
        for i in range(10):
            others = [a for a in range(10) if a != i]
            denominator = sum(math.exp(float(z[i] @ z[a]) / 0.2) for a in others)
            positive = [p for p in others if labels[p] == labels[i]]
            total -= sum(math.log(math.exp(float(z[i] @ z[p]) / 0.2) / denominator) for p in positive) / len(positive)
        loss = contrastive_loss(z, 0.2, labels[:5, None] == labels[None, :5])
        assert loss.item() == pytest.approx(total / 10, abs=1e-5)

    def test_gradients_are_finite_and_draw_views_together(self) -> None:
        z = unit(8).requires_grad_()
        (gradient,) = torch.autograd.grad(contrastive_loss(z, 0.1), [z])
        assert gradient.isfinite().all()
        with torch.no_grad():
            moved = F.normalize(z - 0.01 * gradient, dim=1)
        assert contrastive_loss(moved, 0.1) < contrastive_loss(z, 0.1)


class TestViews:
    def test_a_view_is_a_window_of_the_image_at_the_least_a_fifth_of_it(self, rng: torch.Generator) -> None:
        """On ramps along both axes the slopes are the window's sides; mirrored ones fall."""
        ramp = torch.linspace(0, 255, 64)
        images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).byte()
        images = images.expand(400, 3, 64, 64)
        view = Views(jitter=0, flip=True)(images, rng)
        width = (view[:, 0, 32, 48] - view[:, 0, 32, 16]) * 2
        height = (view[:, 1, 48, 32] - view[:, 1, 16, 32]) * 2
        area = (width * height).abs()
        assert area.min() >= 0.2 - 0.01
        assert area.max() <= 1.04
        assert area.mean().item() == pytest.approx(0.58, abs=0.05)
        assert (height > 0).all()
        assert (width < 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
        unmirrored = Views(jitter=0)(images, rng)[:, 0, 32]
        assert (unmirrored[:, 48] > unmirrored[:, 16]).all()

    def test_colours_are_jittered_in_four_of_five_images_and_one_of_five_loses_them(self, rng: torch.Generator) -> None:
        images = torch.tensor([180, 60, 90], dtype=torch.uint8)[None, :, None, None].expand(2000, 3, 8, 8)
        view = Views(grey=0.2)(images, rng)[:, :, 4, 4] * 255
        drained = (view.amax(1) - view.amin(1)) < 1e-3
        assert drained.float().mean().item() == pytest.approx(0.2, abs=0.04)
        same = (view[~drained] - torch.tensor([180.0, 60, 90])).abs().amax(1) < 1e-3
        assert same.float().mean().item() == pytest.approx(0.2, abs=0.04)
        assert view.min() >= 0
        assert view.max() <= 255

    def test_brightness_moves_by_no_more_than_the_jitter(self, rng: torch.Generator) -> None:
        """An image of one colour has no contrast, so that brightness alone changes it."""
        view = Views(grey=0)(torch.full((500, 1, 8, 8), 100, dtype=torch.uint8), rng) * 255
        levels = view.mean((1, 2, 3))
        assert levels.min() == pytest.approx(60, abs=2)
        assert levels.max() == pytest.approx(140, abs=2)

    def test_turning_hues_moves_no_grey_and_no_luminance(self) -> None:
        turn = hue_turn(torch.tensor([0.0, 0.5, 2 * math.pi, math.pi]))
        grey, red = torch.full((3,), 0.4), torch.tensor([0.8, 0.1, 0.2])
        assert torch.allclose(turn @ grey, grey.expand(4, 3), atol=1e-3)
        turned = turn @ red
        assert torch.allclose(turned[0], red, atol=1e-4)
        assert torch.allclose(turned[2], red, atol=1e-4)
        assert torch.allclose(luminance(turned[..., None, None]), luminance(red[None, :, None, None]), atol=1e-4)
        assert turned[3, 0] < turned[3, 1:].min()  # half way round red is the least

    def test_a_blur_spreads_a_dot_evenly_and_leaves_the_other_half_alone(self, rng: torch.Generator) -> None:
        dot = torch.zeros(600, 1, 9, 9)
        dot[:, :, 4, 4] = 1
        out = Views(blurred=0.5)._blurred(dot, rng)
        assert torch.allclose(out.sum((1, 2, 3)), torch.ones(600), atol=1e-5)
        assert torch.allclose(out, out.mT, atol=1e-6)
        assert torch.allclose(out, out.flip(2, 3), atol=1e-6)
        blurred = out[:, 0, 4, 3] > 1e-3
        assert blurred.float().mean().item() == pytest.approx(0.45, abs=0.06)  # sigmas below .27 do not show
        assert torch.allclose(out[~blurred], dot[~blurred], atol=5e-3)

    def test_an_image_has_two_different_views(self, digits: Pool, rng: torch.Generator) -> None:
        one, other = (Views()(digits.images[:50], rng) for _ in range(2))
        assert one.shape == digits.images[:50].shape
        assert one.dtype == torch.float32
        assert ((one - other).abs().amax((1, 2, 3)) > 0.05).all()


def learn(pool: Pool, how: Contrast = QUICK) -> Classifier:
    return contrast(make_tiny("small_cnn:width=4"), pool, how, generator(0), what="contrast")


class TestTraining:
    def test_a_projection_stands_in_for_the_head_and_goes_again(self, digits: Pool) -> None:
        model = make_tiny("resnet18:width=4")
        head, before = model.head, model.head.weight.clone()
        with projecting(model, 7) as projected:
            assert projected(digits.images[:3]).shape == (3, 7)
            assert {id(p) for p in model.body.conv1.parameters()} <= {id(p) for p in projected.parameters()}
        assert model.head is head
        contrast(model, digits.first(64), QUICK, generator(0), what="contrast")
        assert model.head is head
        assert torch.equal(head.weight, before)
        assert model(digits.images[:3]).shape == (3, 10)
        assert not model.training

    def test_labels_are_compared_and_nothing_else(self, digits: Pool) -> None:
        """So that any number may stand for a class, and one that comes but once for none."""
        pool = digits.first(96)
        weights = {
            name: torch.cat([p.flatten() for p in learn(pool.labelled(labels)).parameters()])
            for name, labels in {
                "labels": pool.labels,
                "others": -7 * pool.labels - 3,
                "own": torch.arange(96),
                "own, others": -1 - torch.arange(96),
            }.items()
        }
        assert torch.equal(weights["labels"], weights["others"])
        assert torch.equal(weights["own"], weights["own, others"])
        assert not torch.equal(weights["labels"], weights["own"])

    def test_views_of_one_image_come_to_lie_closer_than_others(self, digits: Pool) -> None:
        """On images that it has not seen, without a label."""
        train, test = digits.shuffled(generator(3)).first(700).split(600)
        how = Contrast(epochs=4, lr=0.1, batch_size=64, temperature=0.1)
        losses = []
        for model in (make_tiny("small_cnn:width=4"), learn(train.labelled(torch.arange(600)), how)):
            views = [how.views(test.images, generator(s)) for s in (1, 2)]
            with torch.no_grad():
                z = F.normalize(model.features(torch.cat(views)), dim=1)
            losses.append(contrastive_loss(z, 0.1).item())
        assert losses[1] < losses[0] - 0.3

    def test_the_learning_rate_rises_to_the_cosine_and_follows_it(self) -> None:
        cosine, warm = warm_cosine(0.0), warm_cosine(0.1)
        assert [cosine(d) for d in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
        assert warm(0) == 0
        assert warm(0.05) == pytest.approx(cosine(0.1) / 2)
        assert [warm(d) for d in (0.1, 0.6)] == pytest.approx([cosine(0.1), cosine(0.6)])
