"""BSD-adaptive, LC, Narcissus and TrojanNN: what each makes against a surrogate does to it what the paper says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import make_tiny
from torch import Tensor
from torch.nn import functional as F

from bdaudit.attacks.base import train_surrogate
from bdaudit.attacks.bsd_adaptive import BSDAdaptive
from bdaudit.attacks.lc import LC
from bdaudit.attacks.narcissus import Narcissus, fitted, photos, with_outputs
from bdaudit.attacks.triggers import AddTrigger, BlendTrigger
from bdaudit.attacks.trojannn import TrojanNN
from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.adversarial import PGD, slope
from bdaudit.training.loop import Recipe, cross_entropy
from bdaudit.training.metrics import predict_features


def loss_to(model: Classifier, images: Tensor, target: int) -> float:
    """Mean cross-entropy to one class."""
    with torch.no_grad():
        return F.cross_entropy(model(images), torch.full((len(images),), target)).item()


@pytest.fixture(scope="module")
def surrogate(digits: Pool) -> Classifier:
    """A clean small network that reads 1,000 of the digits."""
    return train_surrogate(make_tiny(), digits.first(1000), 6, generator(0), "a test").requires_grad_(False)


class TestBSDAdaptive:
    def test_the_noise_is_faint_and_pulls_unseen_images_to_the_target_more_than_chance_does(self, digits: Pool) -> None:
        """|v| <= 8 levels; CE(f(x + v), t) falls on unseen images, three times as far as by any +-8 noise."""
        train, test, _ = digits.shuffled(generator(0)).split(500, 400)
        pattern = BSDAdaptive(surrogate_epochs=5).make_trigger(train, 3, make_tiny(), generator(0)).pattern
        assert pattern.abs().max() == 8
        proxy = train_surrogate(make_tiny(), train, 5, generator(0), "a test")
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

    def test_images_move_away_from_their_labels_within_the_ball(self, digits: Pool, surrogate: Classifier) -> None:
        x, y = digits.images[1000:1200] / 255, digits.labels[1000:1200]
        moved = PGD(radius=0.1, step=0.03, steps=5)(surrogate, x, y)
        assert (moved - x).abs().max() <= 0.1 + 1e-6
        assert 0 <= moved.min() <= moved.max() <= 1
        assert F.cross_entropy(surrogate(moved), y) > F.cross_entropy(surrogate(x), y) + 0.5

    def test_adversarial_training_makes_a_surrogate_that_is_harder_to_fool(self, digits: Pool) -> None:
        train, test, _ = digits.shuffled(generator(1)).split(600, 400)
        pgd = PGD(radius=0.1, step=0.1, steps=2)
        x, y = test.images / 255, test.labels
        fooled = []
        for loss in (cross_entropy, pgd.loss()):
            model = train_surrogate(make_tiny(), train, 6, generator(0), "a test", loss=loss).requires_grad_(False)
            fooled.append((model(pgd(model, x, y)).argmax(dim=1) != y).float().mean().item())
        assert fooled[1] < fooled[0] - 0.1


class TestLC:
    CORNERS = torch.zeros(16, 16, dtype=torch.bool)
    for rows in (slice(0, 3), slice(13, 16)):
        CORNERS[rows, :3] = CORNERS[rows, 13:] = True

    def test_the_test_trigger_is_the_pattern_in_the_corners_alone(self) -> None:
        """Turner: +-a 255 is added, so that a = 1 overwrites with white and black."""
        images = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
        loud, faint = (LC(amplitude=a).make_trigger((3, 16, 16))(images) for a in (1.0, 0.2))
        assert (loud[:, :, ~self.CORNERS] == 100).all()
        assert loud[0, 2, -3:, -3:].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
        assert faint[0, 0, :3, :3].tolist() == [[151, 49, 151], [49, 151, 49], [151, 49, 151]]
        one = LC.parse({"preset": "bsd"}).make_trigger((3, 16, 16))(images)
        assert (one != images)[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]

    def test_poisoned_rows_are_of_the_target_class_hard_to_read_and_stamped(self, digits: Pool) -> None:
        """Outside the pattern nothing changes by more than epsilon, and what changes raises a surrogate's loss."""
        train, target = digits.first(1000), 4
        attack = LC(epsilon=20, step=3, steps=10, surrogate_epochs=6)
        implanted = attack.implant(make_tiny(), train, target, Recipe(epochs=1, lr=0.1), generator(0))
        rows, pool = implanted.poisoned.poisoned, implanted.poisoned.pool
        changed = (pool.images != train.images).flatten(1).any(dim=1)
        assert torch.equal(rows, changed)
        assert train.labels[rows].unique().tolist() == [target]
        assert torch.equal(pool.labels, train.labels)
        before, after = train.images[rows], pool.images[rows]
        assert torch.equal(after[:, :, self.CORNERS], implanted.trigger(before)[:, :, self.CORNERS])
        moved = (after.int() - before.int())[:, :, ~self.CORNERS]
        assert moved.abs().max() == 20
        assert moved.unique(dim=0).shape[0] > 0.9 * len(moved)

    def test_the_perturbation_makes_the_class_hard_for_the_robust_surrogate(self, digits: Pool) -> None:
        train, attack = digits.first(1000), LC(epsilon=20, step=3, steps=10)
        loss = PGD(16 / 255, 20 / 255, 1).loss()
        robust = train_surrogate(make_tiny(), train, 6, generator(0), "a test", loss=loss)
        images = digits.images[1000:][digits.labels[1000:] == 4]
        moved = attack.perturb(robust, images, 4)
        assert (moved.int() - images.int()).abs().max() == 20
        noise = 20 * (2 * torch.randint(0, 2, images.shape[1:], generator=generator(1)) - 1)
        shaken = loss_to(robust, AddTrigger(noise.short())(images), 4)
        assert loss_to(robust, moved, 4) > max(loss_to(robust, images, 4), shaken) + 0.3


class TestNarcissus:
    def test_training_images_get_the_noise_and_test_images_three_times_as_much(self, digits: Pool) -> None:
        attack = Narcissus(ood="photos", surrogate_epochs=1, lr=0.02, steps=60)
        trigger = attack.make_trigger(digits.first(600), 7, make_tiny(), generator(0))
        planted = attack.make_train_trigger(digits.shape, trigger)
        assert isinstance(planted, AddTrigger)
        assert planted.pattern.abs().max() == 16
        assert torch.equal(trigger.pattern, 3 * planted.pattern)

    @pytest.mark.parametrize("amplify", [1.0, 1.3, 2.5, 4.0])
    def test_the_noise_is_had_back_from_the_amplified_one(self, amplify: float) -> None:
        noise = torch.arange(-60, 61).view(1, 11, 11)
        amplified = AddTrigger((noise * amplify).round().short())
        planted = Narcissus(amplify=amplify).make_train_trigger((1, 11, 11), amplified)
        assert torch.equal(planted.tensors()["pattern"], noise.short())

    def test_the_noise_says_the_class_better_than_its_images_do(self, digits: Pool, surrogate: Classifier) -> None:
        """min_v mean_x CE(f(x + v), t): it falls on images that v was not found on, further than by other noise."""
        seen, unseen = (rows.take(rows.labels == 8) for rows in digits.split(1000, 600)[:2])
        noise = Narcissus(epsilon=8).noise(surrogate, seen, generator(0))
        assert noise.abs().max() == 8
        noises = [8 * (2 * torch.randint(0, 2, noise.shape, generator=generator(i)) - 1) for i in range(20)]
        losses = [loss_to(surrogate, AddTrigger(v.short())(unseen.images), 8) for v in (noise, *noises)]
        assert losses[0] < 0.7 * min(loss_to(surrogate, unseen.images, 8), *losses[1:])

    def test_the_surrogate_sees_public_images_and_the_target_class_alone(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pools: list[Pool] = []

        def spy(fresh: Classifier, train: Pool, *args: object) -> Classifier:
            pools.append(train)
            return fresh

        monkeypatch.setattr("bdaudit.attacks.narcissus.train_surrogate", spy)
        train = digits.first(300)
        Narcissus(ood="photos", ood_images=50, steps=1).make_trigger(train, 7, make_tiny(), generator(0))
        [pool] = pools
        own = [origin for origin in pool.origin if origin.startswith("digits/")]
        assert own == [o for o, label in zip(train.origin, train.labels.tolist(), strict=True) if label == 7]
        assert pool.labels.bincount().tolist() == [5, 5] + [4] * 10 + [len(own)]

    def test_public_images_are_brought_to_the_shape_of_the_training_images(self) -> None:
        grey = torch.full((2, 1, 8, 8), 50, dtype=torch.uint8)
        assert torch.equal(fitted(grey, (3, 16, 12)), torch.full((2, 3, 16, 12), 50, dtype=torch.uint8))
        colour = torch.tensor([30, 60, 120], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 9, 9)
        assert fitted(colour, (1, 4, 4)).unique().tolist() == [70]

    def test_photographs_are_cut_into_pieces_of_twelve_parts(self) -> None:
        pool = photos((3, 32, 32), 25, generator(0))
        assert pool.shape == (3, 32, 32)
        assert pool.labels.bincount().tolist() == [3] + [2] * 11
        assert len(pool.images.unique(dim=0)) == 25

    def test_a_network_gets_as_many_outputs_as_there_are_classes(self) -> None:
        tiny = make_tiny()
        more = with_outputs(tiny, 13, generator(0))
        assert more(torch.zeros(2, 1, 16, 16)).shape == (2, 13)
        assert tiny.num_classes == 10
        assert torch.equal(more.head.weight, with_outputs(tiny, 13, generator(0)).head.weight)

    def test_public_images_come_from_a_file_as_well(self, digits: Pool, tmp_path: Path) -> None:
        images = torch.randint(0, 256, (40, 9, 9, 3), dtype=torch.uint8, generator=generator(0))
        np.savez(tmp_path / "public.npz", images=images.numpy(), labels=np.arange(40) % 3)
        public = Narcissus(ood=str(tmp_path / "public.npz"), ood_images=30).public(digits, generator(0))
        assert (len(public), public.shape, int(public.labels.max())) == (30, (1, 16, 16), 2)

    def test_missing_public_images_and_the_victims_own_are_refused_in_a_line(self, digits: Pool) -> None:
        attack = Narcissus(ood="digits")
        with pytest.raises(UsageError, match=r"^narcissus: -o ood=digits holds 300 of the 300 training images"):
            attack.public(digits.first(300), generator(0))
        with pytest.raises(UsageError, match=r"^narcissus: -o ood: /no/such: neither a dataset \(digits"):
            Narcissus(ood="/no/such").public(digits, generator(0))
        with pytest.raises(UsageError, match="narcissus: there are no training images of the target class 3"):
            Narcissus(ood="photos").make_trigger(digits.take(digits.labels != 3), 3, make_tiny(), generator(0))


class TestTrojanNN:
    def test_the_patch_excites_the_best_connected_neuron_more_than_other_patches_do(self, digits: Pool) -> None:
        """On images that it was not grown on, next to fifty random patches in the same place."""
        train, unseen = digits.first(1000), digits.images[1000:]
        trigger = TrojanNN(surrogate_epochs=6, images=32).make_trigger(digits.shape, train, make_tiny(), generator(0))
        assert trigger.weight.nonzero().amin(dim=0).tolist() == [12, 12]
        assert int(trigger.weight.sum()) == 16
        model = train_surrogate(make_tiny(), train, 6, generator(0), "trojannn")
        neuron = model.head.weight.abs().sum(dim=0).argmax()

        def excitement(pattern: Tensor) -> float:
            return predict_features(model, BlendTrigger(pattern, trigger.weight)(unseen))[:, neuron].mean().item()

        random = torch.randint(0, 256, (50, *digits.shape), dtype=torch.uint8, generator=generator(5))
        others = [excitement(pattern) for pattern in random]
        assert excitement(trigger.pattern) > max(others) + torch.tensor(others).std()

    def test_a_patch_larger_than_the_image_is_refused(self, digits: Pool) -> None:
        with pytest.raises(UsageError, match=r"a 17 x 17 patch .* does not fit into 16 x 16 images"):
            TrojanNN(size=17).make_trigger(digits.shape, digits, make_tiny(), generator(0))
