"""VaB: AttentionMix, entropy and suppression by hand, and what it does to a real backdoor."""

from __future__ import annotations

import pytest
import torch
from support import asr, make_tiny, poisoned
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.defenses import vab
from bdaudit.defenses.vab import VaB, attention, attention_mix, scaled, soft_cross_entropy
from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.ops import SampleLosses
from bdaudit.runtime import generator
from bdaudit.training.augment import Augment
from bdaudit.training.loop import Recipe, Training
from bdaudit.training.metrics import accuracy, predict
from bdaudit.training.stages import find_stages

SWAP = torch.tensor([1, 0])


class TestAttentionMix:
    """Zhu et al. 2023 (cards 3.5)."""

    def test_attention_is_the_scaled_sum_of_squares_at_the_images_size(self) -> None:
        """By hand: channels (0, 3) and (1, 1), (2, 0) and (0, 2) have sums 9, 2, 4 and 4."""
        features = torch.tensor([[[0.0, 1.0, 2.0, 0.0], [3.0, 1.0, 0.0, 2.0]]])
        maps = attention(features, torch.zeros(1, 1, 4, 4))
        low = torch.tensor([[7.0, 0.0], [2.0, 2.0]]) / 7
        assert torch.allclose(maps[0, 0], low.repeat_interleave(2, 0).repeat_interleave(2, 1))

    def test_oblong_maps_and_class_tokens_find_their_places(self) -> None:
        wide = attention(torch.arange(8.0).reshape(1, 1, 8), torch.zeros(1, 1, 4, 8))
        assert (wide[0, 0, :, 1:] >= wide[0, 0, :, :-1]).all()
        assert wide[0, 0, 3, 7] == 1
        tokens = torch.tensor([[[100.0, 0, 1, 2, 3]]])  # one for the class before four places
        assert attention(tokens, torch.zeros(1, 1, 2, 2)).flatten().tolist() == pytest.approx([0, 1 / 9, 4 / 9, 1])

    def test_images_are_mixed_where_attention_is_and_labels_by_its_shares(self) -> None:
        """By hand: both masks are the left half, where .9 of the first image's attention is and .95 of the second's."""
        maps = torch.tensor([[[[0.8, 0.05], [0.1, 0.05]]], [[[0.1, 0.05], [0.85, 0.0]]]])
        pixels = torch.stack([torch.full((1, 2, 2), 1.0), torch.zeros(1, 2, 2)])
        mixed, labels = attention_mix(pixels, maps, torch.eye(2), 0.1, SWAP)
        masses = [(0.9, 0.95), (0.95, 0.9)]
        for row, (own, other) in enumerate(masses):
            share = own / (own + other)
            inside, outside = mixed[row, 0, :, 0], mixed[row, 0, :, 1]
            here = 1.0 - row
            assert inside.tolist() == pytest.approx([here * share + (1 - here) * (1 - share)] * 2)
            assert outside.tolist() == [here] * 2
            kept = 1 - own + own**2 / (own + other)
            assert labels[row, row].item() == pytest.approx(kept)
            assert labels[row].sum().item() == pytest.approx(1)

    def test_without_attention_an_image_stays_as_it_is(self) -> None:
        pixels = torch.rand(2, 3, 4, 4, generator=generator(0))
        mixed, labels = attention_mix(pixels, torch.zeros(2, 1, 4, 4), torch.eye(2), 0.1, SWAP)
        assert torch.equal(mixed, pixels)
        assert torch.equal(labels, torch.eye(2))

    def test_soft_labels_have_the_cross_entropy_of_hard_ones_where_they_are_hard(self) -> None:
        logits, y = torch.randn(6, 4, generator=generator(1)), torch.tensor([0, 1, 2, 3, 0, 1])
        assert torch.allclose(soft_cross_entropy(logits, F.one_hot(y).float()), F.cross_entropy(logits, y))
        half = soft_cross_entropy(logits, F.one_hot(y).float() / 2)
        assert half.item() == pytest.approx(F.cross_entropy(logits, y).item() / 2)


class TestLosses:
    def test_two_views_of_credible_rows_are_mixed_with_all_of_the_batch(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With their own labels for both views, and less what the victim says if there is one, never below zero."""
        model, victim, seen = make_tiny(), make_tiny(seed=3), []

        def look(pixels: Tensor, maps: Tensor, targets: Tensor, least: float, order: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((pixels, maps, targets, least))
            return pixels, targets

        monkeypatch.setattr(vab, "attention_mix", look)
        x, y = digits.images[:8], digits.labels[:8]
        stages = find_stages(model, most=1)
        for who in (None, victim):
            VaB()._mixed(stages, Augment(pad=2, reflect=True), generator(0), who)(model, x, y)
        pixels, maps, targets, least = seen[0]
        assert pixels.shape == (16, 1, 16, 16)
        assert not torch.equal(pixels[:8], pixels[8:])
        assert maps.shape == (16, 1, 16, 16)
        assert torch.equal(targets, F.one_hot(y, 10).float().repeat(2, 1))
        assert least == 0.1
        cut = (F.one_hot(y, 10) - (victim(x) / 3).softmax(1)).clamp(0, 1)
        assert torch.allclose(seen[1][2], cut.repeat(2, 1), atol=1e-6)
        assert (seen[1][2] == 0).any()

    def test_suspicious_rows_are_learnt_by_the_class_that_both_views_are_given(self, digits: Pool) -> None:
        model, victim = make_tiny(), make_tiny(seed=3)
        torch.nn.init.normal_(model.head.weight, generator=generator(2))
        train = digits.first(40)
        recipe = Recipe(1, 0.1, 10)
        loss = VaB()._guessed(victim, train, torch.arange(40) >= 36, recipe, generator(0))
        x = train.images[36:]  # one a step, of four steps; without augmentation both views are the row itself
        values = [loss(model, train.images[:0], train.labels[:0]).item() for _ in range(4)]
        logits = model(x)
        targets = F.one_hot(logits.argmax(1), 10).float() - (victim(x) / 3).softmax(1)
        by_row = [soft_cross_entropy(logits[i : i + 1], targets[i : i + 1].clamp(min=0)).item() for i in range(4)]
        assert sorted(values) == pytest.approx(sorted(by_row), abs=1e-4)


class TestVictim:
    def test_entropies_are_smoothed_and_suspicious_rows_learnt_by_falling_thresholds(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All rows once, then those up to .6 of the way from the least entropy to the largest, then those up to .2."""
        found = iter([torch.arange(11.0), torch.arange(11.0).flip(0), torch.zeros(11)])
        zeros, sizes = torch.zeros(11), []

        def losses(*args: object) -> SampleLosses:
            return SampleLosses(zeros, zeros, next(found), zeros, zeros.long(), torch.tensor(0))

        monkeypatch.setattr(vab, "losses_of", losses)
        monkeypatch.setattr(Training, "epoch", lambda self, dealt, *args: sizes.append(sum(len(x) for x, _ in dealt)))
        victim = Training(make_tiny(), Recipe(1, 0.1, 20), 1)
        entropy = VaB(victim_steps=1)._warm_victim(victim, digits.first(11), generator(0))
        second = 0.75 * torch.arange(11.0).flip(0) + 0.25 * torch.arange(11.0)
        assert sizes == [11, 7, int((scaled(second) <= 0.2).sum())]
        assert torch.allclose(entropy, 0.25 * second)

    def test_scaling_goes_from_the_least_to_the_largest(self) -> None:
        assert scaled(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
        assert scaled(torch.full((3,), 2.0)).tolist() == [0, 0, 0]

    def test_poisoned_rows_alone_come_to_be_suspicious(self, parts: tuple[Pool, Pool]) -> None:
        """The victim learns what it is surest of, and so becomes surer of it than of anything else."""
        rows, _ = poisoned(parts[0], 3)
        defense = VaB(rounds=4, batch_size=32)
        recipe = defense._recipe(1e-3, optimizer="adam", schedule="constant")
        victim = Training(make_tiny("small_cnn:width=8"), recipe, 1)
        suspicious = scaled(defense._warm_victim(victim, rows.pool, generator(0))) <= 0.2
        assert rows.poisoned[suspicious].float().mean() > 0.95
        assert suspicious[rows.poisoned].float().mean() > 0.95


class TestVaB:
    def test_it_trains_a_model_without_the_backdoor(self, parts: tuple[Pool, Pool]) -> None:
        (rows, trigger), test = poisoned(parts[0], 3), parts[1]
        defense = VaB(rounds=4, victim_steps=32, epochs=6, batch_size=32, min_steps=16)
        model, division = defense.divide(make_tiny("small_cnn:width=8"), rows.pool, generator(0))
        anyway = (predict(model, test.images)[test.labels != 3] == 3).float().mean().item()
        assert asr(model, trigger, test, 3) < anyway + 0.1
        assert accuracy(model, test).value > 0.6
        assert len(division.history) == 6
        assert rows.poisoned[division.clean].float().mean() < 0.01
        assert rows.poisoned[division.flagged].float().mean() > 0.9
        assert division.target == 3

    def test_the_phases_follow_one_another(self, digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half of the epochs on credible rows alone, then suppression with two weights; the victim learns along."""
        said: list[str] = []
        mixed = VaB._mixed

        def mixing(self: VaB, stages: object, augment: Augment, rng: object, victim: object) -> object:
            said.append("mixed" if victim is None else "suppressed")
            return mixed(self, stages, augment, rng, victim)  # type: ignore[arg-type]

        def refreshed(self: VaB, victim: object, train: Pool, entropy: Tensor, *args: object) -> Tensor:
            said.append("victim")
            return entropy

        monkeypatch.setattr(VaB, "_mixed", mixing)
        monkeypatch.setattr(VaB, "_refreshed", refreshed)
        weights: list[float] = []
        monkeypatch.setattr(vab, "weighted_sum", lambda loss, weight, other: weights.append(weight) or loss)
        defense = VaB(epochs=8, every=3, min_steps=1, rounds=0)
        defense.divide(make_tiny("small_cnn:width=2"), digits.first(40), generator(0))
        assert said == ["mixed"] * 3 + ["victim", "mixed"] + ["suppressed", "victim"] * 3 + ["suppressed"]
        assert weights == [0.1, 0.1, 0.5, 0.5]

    def test_the_scores_that_are_kept_are_those_that_chose_the_pool(self, digits: Pool) -> None:
        defense = VaB(epochs=4, min_steps=1, victim_steps=1, rounds=0, threshold=0.5)
        _, division = defense.divide(make_tiny(), digits.first(40), generator(0))
        assert torch.equal(scaled(next(iter(division.scores.values()))) > 0.5, division.clean)

    def test_a_victim_that_is_as_sure_of_everything_is_an_error(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(VaB, "_warm_victim", lambda *args: torch.ones(40))
        with pytest.raises(UsageError, match="no image is credible"):
            VaB.parse(VaB.quick_options).divide(make_tiny(), digits.first(40), generator(0))

    def test_a_network_without_maps_is_refused_before_any_work(self) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 10))
        plain = Preprocessing(channels=1, height=16, width=16, mean=(0.5,), std=(0.5,))
        with pytest.raises(UsageError, match="vab mixes images by maps of features, and Sequential has no maps"):
            VaB().check_model(Classifier(body, plain))

    def test_the_paper_preset_is_the_released_schedule(self) -> None:
        chosen = VaB(preset="paper")
        assert (chosen.epochs, chosen.every, chosen.lr, chosen.victim_lr, chosen.batch_size) == (200, 5, 0.1, 1e-3, 128)
        assert (chosen.smoothing, chosen.threshold, chosen.rounds, chosen.softening) == (0.75, 0.2, 2, 3.0)
        assert (chosen.victim_steps, chosen.min_steps) == (1, 1)
