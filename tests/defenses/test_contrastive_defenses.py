"""D-ST, D-BR and DBD: each equation on constructed tensors, and what they do to real backdoors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from support import asr, make_tiny, poisoned
from torch import Tensor
from torch.nn import functional as F

from bdaudit import ops
from bdaudit.attacks.base import Poisoned
from bdaudit.attacks.triggers import Trigger
from bdaudit.defenses import d_st, dbd
from bdaudit.defenses.d_br import DBR
from bdaudit.defenses.d_st import DST, mixed_cross_entropy
from bdaudit.defenses.dbd import DBD, symmetric_cross_entropy
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.contrastive import Views
from bdaudit.training.division import Division
from bdaudit.training.loop import Loss, Recipe, Training, tune
from bdaudit.training.metrics import accuracy, predict
from bdaudit.training.samples import losses_of

TARGET = 3


def random_model() -> Classifier:
    """With logits that differ from image to image."""
    model = make_tiny()
    torch.nn.init.normal_(model.head.weight, generator=generator(2))
    return model


def state(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def backdoored(parts: tuple[Pool, Pool]) -> tuple[Poisoned, Trigger]:
    """1,000 digits, a tenth of them with BadNets."""
    return poisoned(parts[0], TARGET)


@pytest.fixture(scope="module")
def division(backdoored: tuple[Poisoned, Trigger]) -> Division:
    """What D-ST and D-BR tell apart there, in a shorter training."""
    options = {"trigger_epochs": 4, "parting_epochs": 6, "parting_lr": 0.05, "min_steps": 16}
    return DST.parse(options).divide(make_tiny("small_cnn:width=8"), backdoored[0].pool, generator(0))[1]


def anyway(model: Classifier, test: Pool) -> float:
    """How often clean images of other classes are given the target."""
    return (predict(model, test.images)[test.labels != TARGET] == TARGET).float().mean().item()


class TestDistinguishing:
    """The module that D-ST and D-BR share (Chen et al. 2022)."""

    def test_poisoned_rows_are_the_sensitive_ones(
        self, division: Division, backdoored: tuple[Poisoned, Trigger]
    ) -> None:
        """On a real attack: nearly all flagged rows are poisoned, nearly none of those taken for clean."""
        rows, _ = backdoored
        assert rows.poisoned[division.flagged].float().mean() >= 0.9
        assert rows.poisoned[division.clean].float().mean() <= 0.02
        stability = division.scores["stability"]
        assert stability[rows.poisoned].max() < stability[~rows.poisoned].median()
        assert (int(division.flagged.sum()), int(division.clean.sum())) == (50, 200)
        assert division.target == TARGET
        assert division.doubt == ""

    def test_classes_are_parted_after_the_trigger_was_learnt(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two epochs of cross-entropy, then ten of the intra-class loss on a head that stays; without augmentation."""
        from bdaudit.defenses import splitting
        from bdaudit.training.loop import cross_entropy
        from bdaudit.training.sensitivity import intra_class

        seen = []

        def learn(model: Classifier, pool: Pool, recipe: Recipe, *args: object, loss: object, **rest: object) -> None:
            seen.append((loss, recipe.epochs, recipe.lr, recipe.augment.pad, recipe.augment.flip))

        monkeypatch.setattr(splitting, "tune", learn)
        scores = torch.arange(100.0)
        monkeypatch.setattr(splitting, "sensitivities", lambda *args: scores)
        _, division = DBR(flip=True).divide(make_tiny(), digits.first(100), generator(0))
        assert seen == [(cross_entropy, 2, 0.01, 0, False), (intra_class, 10, 0.01, 0, False)]
        assert division.flagged.tolist() == [False] * 95 + [True] * 5
        assert division.clean.tolist() == [True] * 20 + [False] * 80
        assert torch.equal(division.scores["stability"], -scores)


class TestDST:
    def test_clean_rows_have_their_labels_for_positives_and_all_others_none(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Pool] = []
        monkeypatch.setattr(d_st, "contrast", lambda model, pool, *args, **kwargs: seen.append(pool))
        train = digits.first(100)
        defense = DST.parse(DST.quick_options)
        _, division = defense.divide(make_tiny(), train, generator(0))
        monkeypatch.setattr(DST, "divide", lambda *args: (None, division))
        defense.purify(make_tiny(), train, generator(0))
        given, clean = seen[0].labels, division.clean
        assert torch.equal(given[clean], train.labels[clean])
        others = given[~clean]
        assert len(others.unique()) == len(others)
        assert not set(others.tolist()) & set(given[clean].tolist())

    def test_the_heads_loss_descends_on_clean_rows_and_ascends_on_poisoned_ones(self, digits: Pool) -> None:
        """CE(clean) - lambda CE(poisoned), each a mean over its own rows, whichever a batch has."""
        model, x, y = random_model(), digits.images[:6], torch.tensor([4, 7, 1, 0, 2, 3])
        rows = torch.tensor([False, True, False, False, True, False])
        views = Views()
        loss = mixed_cross_entropy(0.3, views, generator(5))
        given = torch.where(rows, -1 - y, y)
        ce = F.cross_entropy(model(views(x, generator(5))), y, reduction="none")
        assert loss(model, x, given).item() == pytest.approx(
            (ce[~rows].mean() - 0.3 * ce[rows].mean()).item(), abs=1e-5
        )
        alone = mixed_cross_entropy(0.3, views, generator(5))(model, x, y)
        assert alone.item() == pytest.approx(ce.mean().item(), abs=1e-5)

    def test_the_head_learns_on_frozen_features_from_told_rows_alone(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """BatchNorm's statistics stay too; and a row that was told from nothing is not looked at."""
        model, train = random_model(), digits.first(90)
        seen: list[Pool] = []

        def learn(model: Classifier, pool: Pool, *args: object, **kwargs: object) -> Classifier:
            seen.append(pool)
            return tune(model, pool, *args, **kwargs)

        monkeypatch.setattr(d_st, "tune", learn)
        clean, flagged = torch.arange(90) < 30, torch.arange(90) >= 80
        before = state(model)
        DST(head_epochs=1)._with_head(model, train, Division(clean, flagged, {}), generator(0))
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {f"body.{model.head_name}.weight", f"body.{model.head_name}.bias"}
        assert seen[0].origin == train.take(clean | flagged).origin
        assert torch.equal(seen[0].labels, torch.cat([train.labels[:30], -1 - train.labels[80:]]))

    def test_it_trains_a_model_without_the_backdoor(
        self,
        parts: tuple[Pool, Pool],
        backdoored: tuple[Poisoned, Trigger],
        division: Division,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The trigger makes it give the target hardly more often than it gives it anyway."""
        (rows, trigger), test = backdoored, parts[1]
        monkeypatch.setattr(DST, "divide", lambda *args: (None, division))
        defense = DST(contrast_epochs=10, contrast_batch=64, min_steps=8)
        model = defense.run({"fresh": make_tiny("small_cnn:width=8"), "train": rows.pool, "rng": generator(0)})
        assert asr(model, trigger, test, TARGET) < anyway(model, test) + 0.1
        assert accuracy(model, test).value > 0.5

    def test_the_paper_preset_is_the_papers_schedule(self) -> None:
        chosen = DST(preset="paper")
        assert (chosen.trigger_epochs, chosen.parting_epochs, chosen.parting_lr) == (2, 10, 0.01)
        assert (chosen.contrast_epochs, chosen.contrast_lr, chosen.contrast_batch) == (200, 0.5, 512)
        assert (chosen.temperature, chosen.head_epochs, chosen.head_lr, chosen.head_batch) == (0.1, 10, 5.0, 512)
        assert (chosen.clean_share, chosen.poison_share, chosen.unlearning) == (0.2, 0.05, 0.001)


class TestDBR:
    def test_each_epoch_ascends_on_flagged_rows_then_descends_on_clean_ones(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So many steps, or as many as a pass takes; the loss has the opposite sign, however large it is."""
        model, train = random_model(), digits.first(60)
        clean, flagged = torch.arange(60) < 30, torch.arange(60) >= 50
        seen = []

        def look(self: Training, dealt: Iterable[tuple[Tensor, Tensor]], loss: Loss, **rest: object) -> None:
            steps = list(dealt)
            x, y = steps[0]
            ratio = loss(model, x, y).item() / F.cross_entropy(model(x), y).item()
            seen.append((len(steps), len(x), round(ratio, 3)))
            rows = torch.cat([step[0] for step in steps]).flatten(1).unique(dim=0)
            own = train.images[flagged if ratio < 0 else clean].flatten(1).unique(dim=0)
            assert torch.equal(rows, own)

        monkeypatch.setattr(Training, "epoch", look)
        defense = DBR(removal_epochs=2, batch_size=10, unlearning_steps=2, relearning_steps=1)
        defense._remove(model, train, Division(clean, flagged, {}), generator(0))
        assert seen == [(2, 10, -1), (3, 10, 1)] * 2

    def test_it_trains_a_model_with_the_backdoor_and_removes_it(
        self,
        parts: tuple[Pool, Pool],
        backdoored: tuple[Poisoned, Trigger],
        division: Division,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (rows, trigger), test = backdoored, parts[1]
        remove, before = DBR._remove, []

        def look(self: DBR, model: Classifier, *args: Any) -> None:
            before.extend([asr(model, trigger, test, TARGET), accuracy(model, test).value])
            remove(self, model, *args)

        monkeypatch.setattr(DBR, "divide", lambda *args: (None, division))
        monkeypatch.setattr(DBR, "_remove", look)
        defense = DBR(batch_size=32, relearning_steps=40)
        model = defense.run({"fresh": make_tiny("small_cnn:width=8"), "train": rows.pool, "rng": generator(0)})
        assert before[0] > 0.9
        assert asr(model, trigger, test, TARGET) < 0.1
        assert accuracy(model, test).value > before[1] - 0.1
        assert losses_of(model, rows.pool, "d-br").ce[division.flagged].mean() > 2

    def test_the_paper_preset_is_the_papers_schedule(self) -> None:
        chosen = DBR(preset="paper")
        assert (chosen.training_epochs, chosen.lr, chosen.batch_size, chosen.min_steps) == (200, 0.01, 128, 1)
        assert (chosen.removal_epochs, chosen.removal_lr) == (20, 1e-4)
        assert (chosen.unlearning_steps, chosen.relearning_steps) == (1, 1)


class TestDBD:
    """Huang et al. 2022."""

    def test_symmetric_cross_entropy_is_that_of_the_ops_and_has_a_gradient(self, digits: Pool) -> None:
        model, x, y = random_model(), digits.images[:40], digits.labels[:40]
        loss = symmetric_cross_entropy(model, x, y)
        assert loss.item() == pytest.approx(
            ops.sample_losses(model(x).detach(), y).symmetric_ce.mean().item(), rel=1e-4
        )
        logits = torch.tensor([[0.0, math.log(3)]])
        by_hand = 0.1 * math.log(4) + math.log(1e4) * 0.75
        assert symmetric_cross_entropy(lambda x: logits, x, torch.tensor([0])).item() == pytest.approx(
            by_hand, rel=1e-5
        )  # type: ignore[arg-type]
        loss.backward()
        assert model.head.weight.grad.abs().sum() > 0  # type: ignore[union-attr]

    def test_features_are_learnt_without_labels(self, digits: Pool) -> None:
        """Whatever the labels say, those of the extractor come out the same; then the head alone learns them."""
        defense = DBD.parse(DBD.quick_options)
        bodies, heads = [], []

        def stop(self: DBD, model: Classifier, *args: object) -> tuple[Classifier, Division]:
            return model, Division(torch.ones(90) > 0, torch.ones(90) < 0, {})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DBD, "_finish", stop)
            for train in (digits.first(90), digits.first(90).labelled(torch.arange(90) % 10)):
                model, _ = defense.divide(make_tiny(), train, generator(0))
                heads.append(model.head.weight.detach())
                bodies.append([p for name, p in model.body.named_parameters() if not name.startswith(model.head_name)])
        assert all(torch.equal(a, b) for a, b in zip(*bodies, strict=True))
        assert not torch.equal(*heads)
        assert all(p.requires_grad for p in model.parameters())

    def test_the_better_fitted_half_of_the_rows_is_learnt_with_labels(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ranked anew in each epoch; what stays out is flagged if the model contradicts its label."""
        ranks = iter([torch.arange(60.0), -torch.arange(60.0), torch.zeros(60)])

        def ranked(model: Classifier, train: Pool, what: str) -> ops.SampleLosses:
            return losses_of(model, train, what)._replace(symmetric_ce=next(ranks))

        monkeypatch.setattr(dbd, "losses_of", ranked)
        train = digits.first(60)
        options = {**DBD.quick_options, "epochs": 2}
        model, division = DBD.parse(options).divide(make_tiny("small_cnn:width=2"), train, generator(0))
        assert [pool.tolist() for pool in division.history.values()] == [
            [True] * 30 + [False] * 30,
            [False] * 30 + [True] * 30,
        ]
        contradicted = losses_of(model, train, "dbd").prediction != train.labels
        assert torch.equal(division.flagged, contradicted & (torch.arange(60) < 30))

    def test_it_trains_a_model_without_the_backdoor(self, parts: tuple[Pool, Pool]) -> None:
        """And poisoned rows leave its pool."""
        (train, test), target = parts, TARGET
        rows, trigger = poisoned(train.first(600), target)
        options = {"contrast_epochs": 8, "contrast_lr": 0.1, "head_lr": 0.05, "min_steps": 12}
        defense = DBD.parse({**options, "epochs": 4, "iterations": 25, "batch_size": 32})
        model, division = defense.divide(make_tiny("small_cnn:width=8"), rows.pool, generator(0))
        assert asr(model, trigger, test, target) < anyway(model, test) + 0.1
        assert accuracy(model, test).value > 0.4
        assert rows.poisoned[division.clean].float().mean() < 0.03

    def test_the_paper_preset_is_the_papers_schedule(self) -> None:
        chosen = DBD(preset="paper")
        assert (chosen.contrast_epochs, chosen.contrast_lr, chosen.contrast_batch) == (1000, 0.4, 512)
        assert (chosen.contrast_temperature, chosen.head_epochs, chosen.lr) == (0.5, 10, 0.002)
        assert (chosen.epochs, chosen.iterations, chosen.batch_size, chosen.share) == (190, 1024, 64, 0.5)
