"""BSD-adaptive, LC, Narcissus and TrojanNN: what each makes against a surrogate does to it what the paper says."""

from __future__ import annotations

import torch
from support import make_tiny
from torch import Tensor
from torch.nn import functional as F

from bdaudit.attacks.base import train_surrogate
from bdaudit.attacks.bsd_adaptive import BSDAdaptive
from bdaudit.attacks.triggers import AddTrigger
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.adversarial import PGD, slope
from bdaudit.training.loop import cross_entropy


def loss_to(model: Classifier, images: Tensor, target: int) -> float:
    """Mean cross-entropy to one class."""
    with torch.no_grad():
        return F.cross_entropy(model(images), torch.full((len(images),), target)).item()


class TestBSDAdaptive:
    def test_the_noise_is_faint_and_pulls_unseen_images_to_the_target_more_than_chance_does(self, digits: Pool) -> None:
        """|v| <= 8 levels; CE(f(x + v), t) falls on images that v was not found on, and three times as far as by any +-8 noise."""
        train, test, _ = digits.shuffled(generator(0)).split(800, 400)
        pattern = BSDAdaptive(surrogate_epochs=6).make_trigger(train, 3, make_tiny(), generator(0)).pattern
        assert pattern.abs().max() == 8
        proxy = train_surrogate(make_tiny(), train, 6, generator(0), "")
        others = test.images[test.labels != 3]
        noises = [8 * (2 * torch.randint(0, 2, pattern.shape, generator=generator(i)) - 1) for i in range(20)]
        before = loss_to(proxy, others, 3)
        falls = [before - loss_to(proxy, AddTrigger(noise.short())(others), 3) for noise in (pattern, *noises)]
        assert falls[0] > max(0.1, 3 * max(falls[1:]))

    def test_a_step_goes_along_the_mean_over_images_of_other_classes(self, digits: Pool) -> None:
        """The first step is -1.5 times the sign of the mean gradient, whatever the images are cut into."""
        attack, proxy = BSDAdaptive(steps=1, images=200), make_tiny()
        others = digits.take(digits.labels != 5).first(200)
        x = (others.images / 255).requires_grad_()
        F.cross_entropy(proxy(x), torch.full((200,), 5)).backward()
        assert x.grad is not None
        towards = attack.direction(proxy, others, 5, torch.zeros(digits.shape))
        assert (towards == x.grad.mean(dim=0).sign()).float().mean() > 0.99


class TestPGD:
    def test_slopes_are_each_images_own(self, digits: Pool) -> None:
        model, x, y = make_tiny(), digits.images[:9] / 255, digits.labels[:9]
        alone = torch.cat([slope(model, x[i : i + 1], y[i : i + 1]) for i in range(9)])
        assert torch.allclose(slope(model, x, y), alone, atol=1e-6)

    def test_images_move_away_from_their_labels_within_the_ball(self, digits: Pool) -> None:
        train = digits.first(600)
        model = train_surrogate(make_tiny(), train, 3, generator(0), "").requires_grad_(False)
        x, y = digits.images[600:800] / 255, digits.labels[600:800]
        moved = PGD(radius=0.1, step=0.03, steps=5)(model, x, y)
        assert (moved - x).abs().max() <= 0.1 + 1e-6
        assert 0 <= moved.min() <= moved.max() <= 1
        assert F.cross_entropy(model(moved), y) > F.cross_entropy(model(x), y) + 0.5

    def test_adversarial_training_makes_a_surrogate_that_is_harder_to_fool(self, digits: Pool) -> None:
        train, test, _ = digits.shuffled(generator(1)).split(1000, 400)
        pgd = PGD(radius=0.1, step=0.05, steps=3)
        x, y = test.images / 255, test.labels
        fooled = []
        for loss in (cross_entropy, pgd.loss()):
            model = train_surrogate(make_tiny(), train, 6, generator(0), "", loss=loss).requires_grad_(False)
            fooled.append((model(pgd(model, x, y)).argmax(dim=1) != y).float().mean().item())
        assert fooled[1] < fooled[0] - 0.1
