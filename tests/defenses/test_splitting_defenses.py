"""Defenses that train on a poisoned set: each equation on constructed tensors, and what they do to real backdoors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import asr, make_tiny, poisoned
from torch import Tensor
from torch.nn import functional as F

from bdaudit import plugins
from bdaudit.defenses import bsd
from bdaudit.defenses.abl import ABL, drops
from bdaudit.defenses.asd import ASD, balanced, lower_half
from bdaudit.defenses.bsd import BSD
from bdaudit.defenses.d_br import DBR
from bdaudit.defenses.d_st import DST
from bdaudit.defenses.splitting import Splitting
from bdaudit.errors import ImageError, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.ops import SampleLosses
from bdaudit.runtime import generator
from bdaudit.training.clean_pool import alpha_at, completed, discrepancy, selectively_dropped
from bdaudit.training.division import Division
from bdaudit.training.isolation import ascent
from bdaudit.training.loop import Recipe, in_steps, tune
from bdaudit.training.metrics import accuracy, predict
from bdaudit.training.mixmatch import SemiSupervised
from bdaudit.training.samples import largest, losses_of

SHORT_BSD = {
    "altruistic_epochs": 6,
    "altruistic_steps": 32,
    "warm_up": 5,
    "settling": 1,
    "completing": 6,
    "dropping": 2,
    "iterations": 40,
    "batch_size": 32,
}


class TestEquations:
    """BSD, section 4 and Algorithm 1."""

    def test_oss_keeps_other_labels_and_the_farthest_of_the_targets(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Eq. 4 and 5: beta of the target's rows, by distance; centres come from the other labels alone."""
        distances, seen = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 4.0]), []

        def measured(model: object, train: Pool, known: torch.Tensor, target: int, distance: str) -> torch.Tensor:
            seen.append((known.tolist(), target, distance))
            return distances

        monkeypatch.setattr(bsd, "class_distances", measured)
        train = digits.first(6).labelled(torch.tensor([3, 3, 3, 1, 0, 3]))
        clean, scores = BSD(beta=0.5, distance="mean")._oss(make_tiny(), train, 3)
        assert clean.tolist() == [False, True, False, True, True, True]
        assert scores is distances
        assert seen == [([False, False, False, True, True, False], 3, "mean")]

    def test_als_keeps_the_share_that_the_altruistic_model_finds_hardest(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Eq. 7, by symmetric cross-entropy."""
        monkeypatch.setattr(bsd, "losses_of", lambda *args: losses([5.0, 1.0, 4.0, 2.0, 3.0]))
        assert BSD(alpha=0.4)._als(make_tiny(), digits.first(5)).tolist() == [True, False, True, False, False]

    @pytest.mark.parametrize(
        ("init", "expected"),
        [("both", [1, 0, 0, 0]), ("oss", [1, 1, 0, 0]), ("als", [1, 0, 1, 0]), ("either", [1, 1, 1, 0])],
    )
    def test_the_first_pool_is_the_intersection_unless_asked_otherwise(self, init: str, expected: list[int]) -> None:
        """Eq. 3; and a random one is as large."""
        oss, als = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
        assert BSD.parse({"init": init})._first(oss, als, generator(0)).int().tolist() == expected
        drawn = {tuple(BSD(init="random")._first(oss, als, generator(s)).tolist()) for s in range(20)}
        assert len(drawn) == 4
        assert all(sum(rows) == 1 for rows in drawn)

    def test_the_clean_share_grows_from_beta_to_alpha_on_half_a_cosine(self) -> None:
        """Eq. 11: the paper's T' / T2 is the part of the time between."""
        for t in range(30, 90):
            t_prime = (t - 20 - 10) / (90 - 20 - 10) * 90
            expected = 0.2 + (0.6 - 0.2) * (1 - torch.cos(torch.tensor(torch.pi * t_prime / 90)).item()) / 2
            assert alpha_at((t - 30) / 60, 0.6, 0.2) == pytest.approx(expected, abs=1e-6)
        assert alpha_at(0, 0.6, 0.2) == pytest.approx(0.2)
        assert alpha_at(1.1, 0.6, 0.2) == pytest.approx(0.6)

    def test_the_class_with_the_fewest_rows_is_completed(self) -> None:
        """Eq. 8: with its own best, as many as the share of its rows but no more than the second fewest has."""
        labels = torch.tensor([0] * 6 + [1] * 6 + [2] * 6)
        indicator = torch.cat([torch.arange(20.0, 26), torch.arange(10.0, 16), torch.arange(0.0, 6)])
        half = largest(indicator, 0.5)
        assert labels[half].bincount(minlength=3).tolist() == [6, 3, 0]
        full = completed(half, indicator, labels, 0.5)
        assert labels[full].bincount(minlength=3).tolist() == [6, 3, 3]
        assert full[15:].tolist() == [True] * 3
        narrow = completed(largest(indicator, 0.4), indicator, labels, 0.4)
        assert labels[narrow].bincount(minlength=3).tolist() == [6, 2, 2]  # .4 of 6 rows, rounded down

    def test_completion_is_bounded_by_the_second_fewest(self) -> None:
        labels = torch.tensor([0] * 8 + [1] * 8 + [2] * 8)
        indicator = torch.cat([torch.arange(30.0, 38), torch.tensor([29.0] + [0.0] * 7), torch.arange(-9.0, -1)])
        chosen = completed(largest(indicator, 9 / 24), indicator, labels, 9 / 24)
        assert labels[chosen].bincount(minlength=3).tolist() == [8, 1, 1]

    def test_the_share_is_of_the_targets_class_or_of_each_or_of_all(self) -> None:
        """The target's class is completed (Eq. 8), others are clean; a share of all rows may lie in one class."""
        labels = torch.tensor([0] * 8 + [1] * 8 + [2] * 8)
        indicator = torch.arange(24.0, 0, -1)

        def counts(defense: BSD, ratio: float, target: int | None, doubt: str = "") -> list[int]:
            return labels[defense._split(indicator, labels, ratio, target, doubt)].bincount(minlength=3).tolist()

        assert counts(BSD(), 0.5, 2) == [8, 8, 4]
        assert BSD()._split(indicator, labels, 0.5, 2, "")[16:20].all(), "the best of its own"
        assert counts(BSD(completion=False), 0.5, 2) == [8, 8, 0]
        assert counts(BSD(share_of="class"), 0.5, 2) == [4, 4, 4]
        assert counts(BSD(share_of="class", completion=False), 0.5, 2) == [4, 4, 0]
        assert counts(BSD(share_of="all"), 8 / 24, 2) == [8, 0, 0]
        assert counts(BSD(), 0.5, None) == [4, 4, 4], "all-to-all"
        assert counts(BSD(), 0.5, 2, "few votes") == [4, 4, 4]

    def test_rows_that_both_models_give_the_target_are_dropped_whatever_their_label(self) -> None:
        """Eq. 10; and the indicator is SCE(g) - SCE(f) (Eq. 9)."""
        on_f = losses([0.0, 0.0, 0.0, 0.0, 9.0], [3, 3, 1, 3, 3])
        on_g = losses([4.0, 3.0, 2.0, 1.0, 5.0], [3, 0, 3, 3, 3])
        assert discrepancy(on_f, on_g).tolist() == [4.0, 3.0, 2.0, 1.0, -4.0]
        clean = torch.tensor([True, True, True, False, False])
        assert selectively_dropped(clean, on_f, on_g, 3).tolist() == [False, True, True, False, False]
        target = torch.full((5,), 3)
        both = (said._replace(prediction=target) for said in (on_f, on_g))
        assert selectively_dropped(clean, *both, 3).tolist() == clean.tolist()  # nothing would be left to learn

    def test_flagged_is_what_only_the_altruistic_model_learnt(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Labelled with the target, which g gives and f does not; rows of other labels only if there is no target."""
        f, g = make_tiny(), make_tiny()
        said = {
            id(f): losses([0.0, 9.0, 9.0, 0.0, 9.0, 0.0], [0, 2, 2, 3, 2, 1]),
            id(g): losses([5.0, 0.0, 0.0, 4.0, 5.0, 5.0], [0, 3, 1, 3, 0, 1]),
        }
        monkeypatch.setattr(bsd, "losses_of", lambda model, *args: said[id(model)])
        train = digits.first(6).labelled(torch.tensor([0, 3, 1, 3, 3, 1]))
        keep = {"distances": torch.zeros(6), "history": torch.zeros(2, 6, dtype=torch.bool)}
        division = BSD(alpha=0.5, share_of="all", completion=False)._division(f, g, train, 3, keep, "")
        assert division.clean.tolist() == [True, False, False, True, False, True]
        assert division.flagged.tolist() == [False, True, False, False, False, False]
        assert list(division.history) == [1, 2]
        sure, doubtful = (BSD(alpha=0.5)._division(f, g, train, 3, keep, doubt) for doubt in ("", "few votes"))
        assert sure.clean.tolist() == [True, False, True, True, False, True], "all of other labels, the best of its own"
        assert doubtful.clean.tolist() == [True, False, False, True, True, True], "the best of each"
        everywhere = BSD(alpha=0.5, share_of="all", completion=False)._division(f, g, train, None, keep, "")
        assert everywhere.flagged.tolist() == [False, True, True, False, False, False]
        assert "distance" not in everywhere.scores


def losses(sce: list[float], prediction: list[int] | None = None) -> SampleLosses:
    zeros = torch.zeros(len(sce))
    given = torch.tensor(prediction) if prediction else zeros.long()
    return SampleLosses(torch.tensor(sce), torch.tensor(sce), zeros, zeros, given, torch.tensor(0))


class TestBSD:
    @pytest.mark.parametrize("target", [0, 3, 8])
    def test_the_best_learnt_rows_give_the_target_away(self, target: int, parts: tuple[Pool, Pool]) -> None:
        """BSD 4.1.1: local gradient ascent keeps clean rows from being learnt best."""
        rows, _ = poisoned(parts[0], target)
        defense = BSD(altruistic_epochs=6, altruistic_steps=32)
        _, found, doubt = defense._warm_altruistic(make_tiny("small_cnn:width=8"), rows.pool, generator(0))
        assert found == target
        assert doubt == ""

    def test_it_trains_a_clean_model_where_plain_training_does_not(self, parts: tuple[Pool, Pool]) -> None:
        """On the same poisoned set, from the same weights; and its pools part clean rows from poisoned ones."""
        (train, test), target = parts, 3
        rows, trigger = poisoned(train, target)
        recipe = Recipe(12, 0.1, 32, weight_decay=5e-4, schedule="onecycle")
        plain = tune(make_tiny("small_cnn:width=8"), rows.pool, recipe, generator(0))
        assert asr(plain, trigger, test, target) > 0.9
        model, division = BSD.parse(SHORT_BSD).divide(make_tiny("small_cnn:width=8"), rows.pool, generator(0))
        assert division.target == target
        assert asr(model, trigger, test, target) < 0.05
        assert accuracy(model, test).value > 0.9
        assert accuracy(model, test.take(test.labels == target)).value > 0.8, "the class that it is warmed up without"
        base = rows.poisoned.float().mean()
        assert rows.poisoned[division.clean].float().mean() < base / 5
        assert rows.poisoned[division.flagged].float().mean() > 0.5
        assert division.flagged[rows.poisoned].float().mean() > 0.8
        assert not (division.clean & division.flagged).any()

    def test_a_class_taken_for_the_target_where_nothing_is_poisoned_is_learnt_like_the_others(
        self, parts: tuple[Pool, Pool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Table 14. With guessed labels in the warm-up, that it is of the others, the class stayed at a fifth."""
        (train, test), accused = parts, 8
        monkeypatch.setattr(BSD, "_votes", lambda *args: F.one_hot(torch.tensor(accused), 10))
        options = {**SHORT_BSD, "dropping": 0}
        model, division = BSD.parse(options).divide(make_tiny("small_cnn:width=8"), train, generator(0))
        assert (division.target, division.doubt) == (accused, "")
        assert accuracy(model, test).value > 0.9
        assert accuracy(model, test.take(test.labels == accused)).value > 0.8

    @pytest.mark.parametrize("guesses", [False, True])
    def test_the_warm_up_sees_nothing_of_the_target(
        self, guesses: bool, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """BSD 4.1.1: what is of the target's class stays unknown, unless asked otherwise; later all rows are seen."""
        seen: list[tuple[Tensor, Tensor | None]] = []
        old = SemiSupervised.epoch

        def look(self: SemiSupervised, labelled: Tensor, *args: Any, others: Tensor | None = None, **kw: Any) -> None:
            seen.append((labelled, others))
            old(self, labelled, *args, others=others, **kw)

        monkeypatch.setattr(SemiSupervised, "epoch", look)
        train = digits.first(100)
        defense = BSD.parse({**BSD.quick_options, "warm_up": 2, "warm_up_guesses": guesses})
        _, division = defense.divide(make_tiny(), train, generator(0))
        for labelled, others in seen[:2]:
            assert torch.equal(labelled, train.labels != division.target)
            assert others is not None
            assert torch.equal(others, ~labelled & guesses)
        assert [others for _, others in seen[2:]] == [None] * 3

    def test_all_to_all_takes_every_class_for_the_target_in_turn(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A.5: the intersection over all classes; and no dropping stage."""
        defense = BSD.parse({**BSD.quick_options, "all2all": True, "dropping": 5})
        seen: list[int] = []

        def by_one(self: BSD, model: Classifier, train: Pool, target: int) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(target)
            return torch.arange(len(train)) != target, torch.zeros(len(train))

        monkeypatch.setattr(BSD, "_oss", by_one)
        monkeypatch.setattr(BSD, "_als", lambda self, model, train: torch.ones(len(train), dtype=torch.bool))
        _, division = defense.divide(make_tiny("small_cnn:width=2"), digits.first(40), generator(0))
        assert seen == list(range(10))
        assert division.target is None
        assert list(division.history) == [2, 3]  # settling and completing, after the warm-up
        assert division.history[2].tolist() == [False] * 10 + [True] * 30

    def test_the_paper_preset_is_the_papers_schedule(self) -> None:
        chosen = BSD(preset="paper")
        t1 = chosen.warm_up
        t2 = t1 + chosen.settling + chosen.completing
        assert (chosen.altruistic_epochs, t1, chosen.settling, t2, t2 + chosen.dropping) == (25, 20, 10, 90, 120)
        assert (chosen.iterations, chosen.batch_size, chosen.lr, chosen.unlabelled) == (1024, 64, 0.002, 15.0)
        assert (chosen.share_of, chosen.decay) == ("all", 0)


class TestABL:
    @pytest.mark.parametrize("isolate_by", ["lga", "flooding"])
    def test_it_isolates_poison_far_above_the_base_rate(self, isolate_by: str, parts: tuple[Pool, Pool]) -> None:
        rows, _ = poisoned(parts[0], 4)
        defense = ABL.parse({"isolation_epochs": 6, "isolate_by": isolate_by})
        _, division = defense.divide(make_tiny("small_cnn:width=8"), rows.pool, generator(0))
        assert int(division.flagged.sum()) == 10
        assert rows.poisoned[division.flagged].float().mean() >= 0.8
        assert rows.poisoned[division.clean].float().mean() < 0.05
        assert division.target == 4
        assert division.doubt == ""

    def test_it_removes_most_of_the_backdoor(self, parts: tuple[Pool, Pool]) -> None:
        (train, test), target = parts, 4
        rows, trigger = poisoned(train, target)
        inputs = {"fresh": make_tiny("small_cnn:width=8"), "train": rows.pool, "rng": generator(0)}
        # Fifty rows: the unlearning takes BatchNorm's statistics of what is isolated, and ten rows have hardly any.
        model = ABL(isolation_epochs=6, tuning_epochs=8, share=0.05).run(inputs)
        assert asr(model, trigger, test, target) < 0.5
        assert accuracy(model, test).value > 0.6

    def test_isolated_rows_are_unlearnt_and_never_tuned_on(self, digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        from bdaudit.defenses import abl

        pools: list[Pool] = []
        monkeypatch.setattr(abl, "tune", lambda model, pool, *args, **kwargs: pools.append(pool) or model)
        ABL(share=0.1).run({"fresh": make_tiny(), "train": digits.first(50), "rng": generator(0)})
        everything, others, isolated = (set(pool.origin) for pool in pools)
        assert len(isolated) == 5
        assert isolated | others == everything
        assert not isolated & others

    def test_ascent_stops_at_the_loss_of_a_model_that_knows_nothing(self, digits: Pool) -> None:
        model = make_tiny()
        model.head.bias.data[3] = 20.0
        x = digits.images[:8]
        for label, moved in ((3, True), (4, False)):
            model.zero_grad()
            ascent(cap=True)(model, x, torch.full((8,), label)).backward()
            assert bool(model.head.weight.grad.abs().sum() > 0) == moved  # type: ignore[union-attr]
        model.zero_grad()
        ascent(cap=False)(model, x, torch.full((8,), 4)).backward()
        assert model.head.weight.grad.abs().sum() > 0  # type: ignore[union-attr]

    def test_the_learning_rate_falls_after_40_and_60_of_70_epochs(self) -> None:
        paper, released, short = (in_steps(*drops(n)) for n in (70, 60, 7))
        assert [paper(e / 70) for e in (0, 39, 40, 59, 60, 69)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
        assert [released(e / 60) for e in (39, 40, 59)] == [1.0, 0.1, 0.1]
        assert [short(e / 7) for e in (3, 4, 5, 6)] == [1.0, 0.1, 0.1, 0.01]


class TestASD:
    """Gao et al. 2023 (cards 3.3)."""

    def test_seeds_are_drawn_evenly_from_the_classes(self, digits: Pool) -> None:
        clean = digits.first(100).labelled((torch.arange(100) > 95).long() + 2)
        assert balanced(clean, 10, generator(0)).labels.bincount().tolist() == [0, 0, 10, 4]

    def test_the_copy_learns_in_its_upper_half_alone(self) -> None:
        """Of a ResNet: in its last two stages and the head, as in the released code."""
        model = make_tiny("resnet18:width=4")
        held = {id(p) for p in lower_half(model)}
        free = {name.split(".")[0] for name, p in model.body.named_parameters() if id(p) not in held}
        assert free == {"layer3", "layer4", "linear"}

    def test_poisoned_rows_fall_fastest_when_everything_is_learnt(self, parts: tuple[Pool, Pool]) -> None:
        """Meta-split, on a model that has seen clean rows alone; and that model is left as it was."""
        rows, _ = poisoned(parts[0], 3)
        clean = rows.pool.take(~rows.poisoned).first(400)
        model = tune(make_tiny("small_cnn:width=8"), clean, Recipe(12, 0.05, 32), generator(0))
        before = {name: t.clone() for name, t in model.state_dict().items()}
        loss = losses_of(model, rows.pool, "asd").symmetric_ce
        fall = loss - ASD()._virtual(model, rows.pool, generator(0))
        assert fall[rows.poisoned].median() > fall[~rows.poisoned].median() + 1
        assert rows.poisoned[largest(-fall, 0.5)].float().mean() < 0.05
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    def test_stages_follow_one_another(self, digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seeds alone, then more of each class, half by loss, half by meta-split; contradicted others flagged."""
        monkeypatch.setattr(ASD, "_virtual", lambda self, model, train, rng: -100.0 * torch.arange(80))
        options = {**ASD.quick_options, "growing": 3, "growth": 2}
        train, clean = digits.first(80).labelled(torch.arange(80) % 10), digits.take(range(80, 300))
        model = make_tiny("small_cnn:width=2")
        _, division = ASD.parse(options).divide(model, train, clean, generator(0))
        sizes = [int(pool.sum()) for pool in division.history.values()]
        assert sizes == [0, 20, 40, 40, 40]
        assert division.history[5].tolist() == [True] * 40 + [False] * 40  # those that fell least
        contradicted = predict(model, train.images) != train.labels
        assert torch.equal(division.flagged, contradicted & (torch.arange(80) >= 40))

    def test_it_trains_a_clean_model(self, parts: tuple[Pool, Pool]) -> None:
        """From ten seeds a class, where plain training on the same set learns the backdoor (above)."""
        (train, test), target = parts, 3
        rows, trigger = poisoned(train, target)
        seeds, test = test.split(200)
        options = {"growing": 6, "halving": 3, "meta": 3, "iterations": 40, "batch_size": 32}
        model, division = ASD.parse(options).divide(make_tiny("small_cnn:width=8"), rows.pool, seeds, generator(0))
        assert asr(model, trigger, test, target) < 0.1
        assert accuracy(model, test).value > 0.8
        assert rows.poisoned[division.clean].float().mean() < rows.poisoned.float().mean() / 5
        assert division.flagged[rows.poisoned].float().mean() > 0.8


def one_class(digits: Pool) -> Pool:
    return digits.first(50).labelled(3)


def labels_of_another_model(digits: Pool) -> Pool:
    return digits.first(50).labelled(torch.arange(50) % 11)


SPLITTERS = [f.cls for f in plugins.registry().of_kind("defense").values() if issubclass(f.cls, Splitting)]


def divided(cls: type[Splitting], train: Pool, clean: Pool, **options: object) -> Division:
    defense = cls.parse({**cls.quick_options, **options})
    inputs = {"fresh": make_tiny("small_cnn:width=2"), "train": train, "clean": clean, "rng": generator(0)}
    return defense.divide(**defense.grant(inputs))[1]


@pytest.mark.parametrize("cls", SPLITTERS, ids=lambda c: c.name)
class TestEverySplitter:
    """What `bdaudit split` counts on, of whatever divides a training set."""

    def test_a_division_is_of_all_rows_and_disjoint(self, cls: type[Splitting], digits: Pool) -> None:
        """With finite scores of every row, and pools by epoch where there are any."""
        division = divided(cls, digits.first(120), digits.take(range(200, 300)))
        for rows in (division.clean, division.flagged, *division.history.values()):
            assert rows.shape == (120,)
            assert rows.dtype == torch.bool
            assert rows.device.type == "cpu"
        assert division.clean.any()
        assert not (division.clean & division.flagged).any()
        assert division.scores
        assert all(s.shape == (120,) and s.isfinite().all() for s in division.scores.values())
        assert division.target is None or 0 <= division.target < 10

    def test_the_division_comes_with_the_model(self, cls: type[Splitting], digits: Pool) -> None:
        clean = digits.take(range(200, 300))
        inputs = {
            "fresh": make_tiny("small_cnn:width=2"),
            "train": digits.first(60),
            "clean": clean,
            "rng": generator(0),
        }
        made = cls.parse(cls.quick_options).conduct(inputs)
        assert made.division is not None
        assert made.division.clean.shape == made.division.flagged.shape == (60,)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (one_class, UsageError, "holds label 3 alone, so nothing tells clean rows from poisoned ones"),
            (labels_of_another_model, ImageError, "4 labels are outside the model's 10 classes"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_what_cannot_be_split_is_refused_in_one_line(
        self, make: Callable[[Pool], Pool], error: type[Exception], message: str, cls: type[Splitting], digits: Pool
    ) -> None:
        """All images poisoned means one label, so that is what it says."""
        inputs = {"fresh": make_tiny(), "train": make(digits), "clean": digits.first(50), "rng": generator(0)}
        with pytest.raises(error, match=message) as raised:
            cls.parse(cls.quick_options).run(inputs)
        assert "\n" not in str(raised.value)

    def test_a_class_with_one_image_is_no_obstacle(self, cls: type[Splitting], digits: Pool) -> None:
        labels = torch.arange(60) % 9
        labels[0] = 9
        division = divided(cls, digits.first(60).labelled(labels), digits.take(range(200, 300)))
        assert all(scores.isfinite().all() for scores in division.scores.values())


@pytest.mark.parametrize(
    ("cls", "share"),
    [(BSD, "isolated"), (ABL, "share"), (DST, "poison_share"), (DBR, "poison_share")],
    ids=lambda value: getattr(value, "name", None),
)
def test_votes_without_a_majority_make_the_result_doubtful(
    cls: type[Splitting], share: str, digits: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clean rows of ten classes vote; the model is returned with the reason."""
    inputs: dict[str, Any] = {"fresh": make_tiny("small_cnn:width=2"), "train": digits.first(50), "rng": generator(0)}
    [note] = cls.parse({**cls.quick_options, share: 0.9}).conduct(inputs).found.notes
    assert note.startswith(f"warning: {cls.name}: ")
    assert "no more than" in note
    assert note in capsys.readouterr().err
