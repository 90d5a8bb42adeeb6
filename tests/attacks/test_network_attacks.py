"""SSBA and Input-aware: triggers that are networks, each with the property that its paper claims."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from support import make_tiny

from bdaudit import plugins
from bdaudit.attacks.base import Attack, Implanted
from bdaudit.attacks.input_aware import InputAware, InputAwareTrigger, MaskedPattern, alike
from bdaudit.attacks.networks import NetworkTrigger
from bdaudit.attacks.ssba import SSBA, Schedule, Stamp, StampTrigger
from bdaudit.attacks.triggers import BlendTrigger, Trigger, load_trigger, patch, save_trigger
from bdaudit.errors import ImageError, OptionError, PluginError, UsageError
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator, spawn
from bdaudit.testing.soundness import bookkeeping
from bdaudit.training.loop import Recipe
from bdaudit.training.metrics import accuracy, attack_rates

STAMP_LAYOUT, PATTERN_LAYOUT = (3, 12, 10, 2, 5), (3, 12, 10, 2)


@cache
def split_digits() -> tuple[Pool, Pool]:
    train, test, _ = load_dataset("digits").train.shuffled(generator(0)).split(1200, 300)
    return train, test


@cache
def stamp() -> StampTrigger:
    # The default learning rate: at twice that, whether the bits are read at all depends on the seed and the processor.
    attack = SSBA(bits=8, width=4, steps=250, batch_size=24, hold=5, ramp=60)
    return attack.make_trigger(split_digits()[0], make_tiny(), generator(0))


class TestSSBA:
    def test_held_out_images_decode_to_the_secret_and_clean_ones_do_not(self) -> None:
        """The decoder reads most bits from triggered bytes; from clean ones about half."""
        trigger, images = stamp(), split_digits()[1].images
        assert trigger.agreement(trigger(images)).mean() > 0.9
        assert trigger.agreement(images).mean() < 0.8
        assert 0 < trigger.network.secret.float().mean() < 1

    def test_any_secret_can_be_written(self) -> None:
        """The encoder learnt to write random bits, not one message."""
        network, x = stamp().network, split_digits()[1].images[:100] / 255
        bits = torch.rand(100, 8, generator=generator(5)) < 0.5
        with torch.no_grad():
            read = network.read(network.write(x, bits).clamp(0, 1)) > 0
        assert (read == bits).float().mean() > 0.85

    def test_every_image_is_changed_in_its_own_way_and_not_by_much(self) -> None:
        """Residuals differ before anything is clipped: a static pattern's would be one. Without w, |x' - x|^2 is .4."""
        x = split_digits()[1].images[:100] / 255
        with torch.no_grad():
            residual = stamp().network(x) - x
        own = residual - residual.mean(dim=0)
        assert own.square().mean() > 0.03 * residual.square().mean()
        assert residual.square().mean() < 0.1

    def test_the_image_loss_waits_for_the_bits_then_holds_then_ramps(self) -> None:
        """w is 0 until nine tenths of the bits are read, for `hold` more steps, and rises over `ramp` steps."""
        schedule = Schedule(10.0, hold=2, ramp=4)
        accuracies = [0.5, 0.9, 0.91, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
        assert [schedule.after(a) for a in accuracies] == [0, 0, 0, 0, 0, 2.5, 5, 7.5, 10, 10]


def train_input_aware(pool: Pool, **options: float) -> Implanted:
    attack = InputAware(width=6, mask_steps=40, **options)  # type: ignore[arg-type]
    # At 12 epochs two seeds of three are at the bounds.
    recipe = Recipe(epochs=20, lr=0.1, schedule="onecycle", batch_size=64)
    return attack.implant(make_tiny("small_cnn:width=8"), pool, 0, recipe, generator(0))


@cache
def input_aware() -> Implanted:
    return train_input_aware(split_digits()[0])


class TestInputAware:
    def test_an_images_own_trigger_fires_and_anothers_does_not(self) -> None:
        made, test = input_aware(), split_digits()[1]
        victims = test.take(made.goal.counted(test.labels))
        trigger = made.trigger
        assert isinstance(trigger, InputAwareTrigger)
        own, _ = attack_rates(made.model, trigger.on(victims), made.goal)
        cross, kept = attack_rates(
            made.model, victims.with_images(trigger.crossed(victims.images, victims.images.roll(1, 0))), made.goal
        )
        assert accuracy(made.model, test).value > 0.85
        assert own.value > 0.6
        assert cross.value < 0.3
        assert kept.value > 0.6

    def test_masks_shrink_towards_the_stated_share(self) -> None:
        """What exceeds the density, pixel by pixel, is drawn back; the diversity alone would have half of the image."""
        train, test = split_digits()
        bounded, free = (
            InputAware(width=3, mask_steps=steps, density=0.03, norm_weight=weight)
            .make_trigger(train.first(512), make_tiny(), generator(0))
            .network.masks(test.images / 255)
            .mean()
            for weight, steps in ((100.0, 80), (0.0, 20))
        )
        assert 0.005 < bounded < 0.1
        assert free > 0.25

    def test_masks_are_done_when_the_model_starts(self) -> None:
        """Only the pattern learns with the model."""
        made, (train, _) = input_aware(), split_digits()
        rng = generator(0)
        start = InputAware(width=6, mask_steps=40).make_trigger(train, make_tiny("small_cnn:width=8"), spawn(rng))
        before, after = start.tensors(), made.trigger.tensors()
        assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("mask."))
        assert not torch.equal(before["pattern.0.out.weight"], after["pattern.0.out.weight"])

    def test_recorded_rows_have_the_final_triggers(self) -> None:
        """Poisoned rows have their own trigger and the target; cross rows another's and their label."""
        made, (train, _) = input_aware(), split_digits()
        rows, trigger = made.poisoned, made.trigger
        assert isinstance(trigger, InputAwareTrigger)
        assert bookkeeping(InputAware(), rows, train, made.goal) == ""
        assert (int(rows.poisoned.sum()), int(rows.cover.sum())) == (120, 120)
        assert torch.equal(rows.pool.images[rows.poisoned], trigger(train.images[rows.poisoned]))
        for row in rows.cover.nonzero().flatten()[:2]:
            by_donor = trigger.run(train.images[row].expand_as(train.images), train.images)
            donors = (by_donor == rows.pool.images[row]).flatten(1).all(dim=1).nonzero().flatten().tolist()
            assert set(donors) - {int(row)}
        assert made.train_trigger is trigger

    def test_the_generators_gradients_are_zeroed_at_every_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The released code lets them add up (docs/deviations.md)."""
        sizes: list[float] = []

        def watch(self: InputAware, network: torch.nn.Module) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(network.parameters(), 0.0)
            last = list(network.parameters())[-1]
            optimizer.register_step_pre_hook(lambda *_: sizes.append(float(last.grad.norm())))  # type: ignore[union-attr]
            return optimizer

        monkeypatch.setattr(InputAware, "optimizer", watch)
        recipe = Recipe(epochs=20, lr=1e-9, batch_size=64)
        InputAware(width=2, mask_steps=1, rate=0.3).implant(
            make_tiny(), split_digits()[0].first(64), 0, recipe, generator(0)
        )
        # One batch again and again, with a generator and a model that stand still: sums would grow twentyfold.
        steps = torch.tensor(sizes[1:])
        assert steps.max() < 3 * steps.mean()
        assert steps[-5:].mean() < 3 * steps[:5].mean()

    def test_batches_without_a_poisoned_row_are_trained_on_as_they_are(self) -> None:
        """A hundredth of 16 images is one row in six batches, drawn at random."""
        attack = InputAware(width=2, mask_steps=1, rate=0.01, cross_ratio=0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = torch.tensor([attack.draw(16) for _ in range(600)])
        assert set(drawn[:, 0].tolist()) == {0, 1}
        assert drawn[:, 0].float().mean().item() == pytest.approx(0.16, abs=0.04)
        assert not drawn[:, 1].any()
        recipe = Recipe(epochs=1, lr=0.1, batch_size=16)
        made = attack.implant(make_tiny(), split_digits()[0].first(64), 0, recipe, generator(0))
        assert all(p.isfinite().all() for p in (*made.model.parameters(), *made.trigger.tensors().values()))

    def test_patterns_that_are_alike_cost_more(self) -> None:
        """The mean of |x - x'| / |p - p'|."""
        x, made = torch.rand(2, 1, 4, 4, generator=generator(0)), torch.rand(2, 1, 4, 4, generator=generator(1))
        rmse = [(t[0] - t[1]).square().mean().sqrt() for t in (x, made)]
        assert alike(x, made).item() == pytest.approx((rmse[0] / rmse[1]).item(), rel=1e-4)
        assert alike(x, made / 2) > alike(x, made)
        assert alike(x, 0 * made).isfinite()

    def test_plain_training_is_not_offered(self) -> None:
        assert InputAware.traits() == {"trigger": "sample-specific", "trained by": "attacker"}
        assert SSBA.traits() == {"trigger": "sample-specific", "trained by": "victim"}
        with pytest.raises(OptionError, match="flat_rho: this attack trains in its own way"):
            InputAware.parse({"flat_rho": 1})
        with pytest.raises(PluginError, match="trains with its own kind of trigger, got blend"):
            images = split_digits()[0].images
            InputAware().plant_cover(images, images, patch((1, 16, 16), torch.zeros(2, 2), 0, 0), generator(0))


class Learning(Attack):
    """Its trigger changes while it trains."""

    name = "learning"

    def make_trigger(self) -> BlendTrigger:
        return patch((1, 16, 16), torch.full((2, 2), 10, dtype=torch.uint8), 0, 0)

    def train_both(self, fresh, train, trigger, goal, recipe, rng):  # type: ignore[no-untyped-def]
        assert trigger.pattern.max() == 10
        return fresh, patch((1, 16, 16), torch.full((2, 2), 20, dtype=torch.uint8), 0, 0)


class TestTrainingBoth:
    def test_rows_are_planted_with_the_trigger_that_was_learnt(self, digits: Pool) -> None:
        made = Learning().implant(make_tiny(), digits, 0, Recipe(epochs=1, lr=0.1), generator(0))
        marked = (made.poisoned.pool.images[:, 0, :2, :2] == 20).all(dim=(1, 2))
        assert torch.equal(marked, made.poisoned.poisoned)
        assert int(marked.sum()) == 90
        assert made.trigger.tensors()["pattern"].max() == 20
        assert bookkeeping(Learning(), made.poisoned, digits, made.goal) == ""

    def test_such_an_attack_cannot_train_with_sam(self) -> None:
        assert Learning.traits()["trained by"] == "attacker"
        with pytest.raises(OptionError, match="flat_rho"):
            Learning.parse({"flat_rho": 1})

    def test_an_impossible_rate_is_said_before_any_work(self, digits: Pool) -> None:
        class Slow(Learning):
            """Must not be asked."""

            def make_trigger(self) -> BlendTrigger:
                raise AssertionError("made a trigger")

        with pytest.raises(UsageError, match="selects no row out of 5 training images"):
            Slow().implant(make_tiny(), digits.first(5), 0, Recipe(epochs=1, lr=0.1), generator(0))


KINDS = {**SSBA.trigger_kinds, **InputAware.trigger_kinds}


@cache
def made_of(kind: str) -> NetworkTrigger:
    """A trigger with weights as they were drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "stamp":
            return StampTrigger(Stamp(*STAMP_LAYOUT), STAMP_LAYOUT)
        return InputAwareTrigger(MaskedPattern(*PATTERN_LAYOUT), PATTERN_LAYOUT)


@pytest.mark.parametrize("kind", KINDS)
class TestNetworkTriggers:
    def test_the_batch_changes_no_pixel(self, kind: str) -> None:
        trigger = stamp() if kind == "stamp" else input_aware().trigger
        images = split_digits()[1].images[:150]
        whole = trigger(images)
        assert torch.equal(whole, torch.cat([trigger(part) for part in images.split(7)]))
        assert torch.equal(whole.flip(0), trigger(images.flip(0)))
        assert trigger(images[:0]).shape == (0, 1, 16, 16)

    def test_it_comes_back_from_a_file(self, kind: str, tmp_path: Path) -> None:
        trigger = made_of(kind)
        save_trigger(trigger, tmp_path / "t.safetensors")
        back = load_trigger(tmp_path / "t.safetensors", KINDS)
        assert back.digest() == trigger.digest()
        images = torch.randint(0, 256, (9, 3, 12, 10), dtype=torch.uint8, generator=generator(0))
        assert torch.equal(back(images), trigger(images))
        with pytest.raises(ImageError, match=r"made for images \(3, 12, 10\), got \(3, 10, 12\)"):
            back(images.transpose(2, 3))

    def test_its_kind_belongs_to_the_attack(self, kind: str) -> None:
        assert any(kind in found.cls.trigger_kinds for found in plugins.registry().of_kind("attack").values())


LAYOUT_OF = {"stamp": STAMP_LAYOUT, "input-aware": PATTERN_LAYOUT}
WEIGHT = {"stamp": "project.weight", "input-aware": "pattern.0.out.weight"}
HOSTILE = {
    "no layout": (lambda t, w: t.pop("layout"), "layout"),
    "a layout of floats": (lambda t, w: t.update(layout=t["layout"].float()), "expected int64: channels, height"),
    "a short layout": (lambda t, w: t.update(layout=t["layout"][:2].clone()), "expected int64: channels, height"),
    "two channels": (lambda t, w: t["layout"].__setitem__(0, 2), "no network of a usable size"),
    "no height": (lambda t, w: t["layout"].__setitem__(1, 0), "no network of a usable size"),
    "a huge side": (lambda t, w: t["layout"].__setitem__(2, 2**40), "no network of a usable size"),
    "a huge width": (lambda t, w: t["layout"].__setitem__(3, 10**9), "no network of a usable size"),
    "too much at once": (lambda t, w: t["layout"][1:4].copy_(torch.tensor([4096, 4096, 256])), "usable size"),
    "another width": (lambda t, w: t["layout"].__setitem__(3, 4), "expected torch.float32"),
    "a weight too few": (lambda t, w: t.pop(w), "not those of such a network"),
    "a weight too many": (lambda t, w: t.update(code=torch.zeros(1)), "not those of such a network: code"),
    "halves": (lambda t, w: t.update({w: t[w].half()}), "float16"),
    "a wrong shape": (lambda t, w: t.update({w: t[w][:1].clone()}), "expected torch.float32"),
    "not a number": (lambda t, w: t[w].fill_(torch.nan), "not finite"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_trigger_file_is_refused(case: str, kind: str, tmp_path: Path) -> None:
    change, why = HOSTILE[case]
    tensors = {name: tensor.clone() for name, tensor in made_of(kind).tensors().items()}
    change(tensors, WEIGHT[kind])  # type: ignore[no-untyped-call]
    made: Trigger = object.__new__(KINDS[kind])
    made.tensors = lambda: tensors  # type: ignore[method-assign]
    save_trigger(made, tmp_path / "t.safetensors")
    with pytest.raises(ImageError, match=why):
        load_trigger(tmp_path / "t.safetensors", KINDS)


def test_a_network_that_overflows_is_refused_when_it_is_used() -> None:
    tensors = {name: tensor.clone() for name, tensor in made_of("input-aware").tensors().items()}
    tensors["pattern.1.running_var"].fill_(-1.0)
    trigger = InputAwareTrigger.from_tensors(tensors)
    with pytest.raises(ImageError, match="gives infinite pixels"):
        trigger(torch.zeros(1, 3, 12, 10, dtype=torch.uint8))
