"""The one tuning loop, batched augmentation, metrics."""

from __future__ import annotations

import math

import pytest
import torch
from families import member
from hypothesis import given
from hypothesis import strategies as st
from support import make_tiny

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, generator, pick_device, seeded, spawn
from bdaudit.training.augment import Augment
from bdaudit.training.loop import Recipe, batches, endless, tune
from bdaudit.training.metrics import Rate, accuracy, attack_rates, der, predict_logits


def test_augment_crops_a_padded_image_and_mirrors_it(rng: torch.Generator) -> None:
    """Every output is a window of the zero-padded input, mirrored or not, one draw an image."""
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(40, 1, 8, 8)
    out = Augment(pad=2, flip=True)(images, rng)
    padded = torch.nn.functional.pad(images[0, 0], (2, 2, 2, 2))
    windows = [padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    mirrored = [w.flip(1) for w in windows]
    kinds = set()
    for image in out[:, 0]:
        plain = [i for i, w in enumerate(windows) if torch.equal(image, w)]
        flipped = [i for i, w in enumerate(mirrored) if torch.equal(image, w)]
        assert plain or flipped
        kinds.add(("plain", plain[0]) if plain else ("flipped", flipped[0]))
    assert len(kinds) > 15
    assert {k for k, _ in kinds} == {"plain", "flipped"}


def test_augment_is_a_pure_function_of_its_generator(digits: Pool) -> None:
    augment = Augment(pad=2, flip=True)
    one, two = (augment(digits.images[:64], generator(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, augment(digits.images[:64], generator(4)))


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_endless_deals_every_row_before_any_row_again(n: int, sizes: list[int]) -> None:
    pool = Pool.of(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.arange(n))
    deal = endless(pool, generator(0))
    dealt = torch.cat([deal(k)[1] for k in sizes])
    counts = dealt.bincount(minlength=n)
    assert len(dealt) == sum(sizes)
    assert counts.max() - counts.min() <= 1


def test_an_epoch_visits_every_row_once(digits: Pool, rng: torch.Generator) -> None:
    pool = digits.first(300).labelled(torch.arange(300))
    seen = torch.cat([y for _, y in batches(pool, 64, rng)])
    assert seen.sort().values.tolist() == list(range(300))


def test_cosine_falls_to_zero_and_onecycle_warms_up() -> None:
    cosine = Recipe(epochs=1, lr=1.0)
    assert cosine.factor(0, 100) == 1
    assert cosine.factor(50, 100) == pytest.approx(0.5)
    assert cosine.factor(100, 100) == pytest.approx(0)
    cycle = Recipe(epochs=1, lr=1.0, schedule="onecycle")
    factors = [cycle.factor(s, 100) for s in range(100)]
    assert max(factors) == factors[20] == pytest.approx(1)
    assert factors[0] > 0
    assert factors[-1] < 0.02
    with pytest.raises(UsageError, match="schedule is cosine"):
        Recipe(epochs=1, lr=1.0, schedule="stairs").factor(0, 1)


def test_the_only_image_there_is_trains_a_network_with_batchnorm(rng: torch.Generator) -> None:
    """Twice in its batch; of several images one that is left over is skipped, as it would have no variance."""
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=rng)
    pool = Pool.of(image.float() / 255, torch.tensor([3]))
    model = member("resnet50")  # its last maps are of one pixel
    tuned = tune(model.clone(), pool, Recipe(epochs=2, lr=0.01), rng)
    assert all(p.isfinite().all() for p in tuned.parameters())
    assert not torch.equal(tuned.head.bias, model.head.bias)
    assert [len(y) for _, y in batches(pool, 4, rng)] == [2]
    assert [len(y) for _, y in batches(Pool.concat([pool] * 5), 4, rng)] == [4]


def test_tuning_learns_and_is_reproducible(digits: Pool) -> None:
    train, test = digits.shuffled(generator(0)).split(600)
    models = [tune(make_tiny(), train, Recipe(epochs=20, lr=0.1, batch_size=32), generator(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    before, after = accuracy(make_tiny(), test).value, accuracy(models[0], test).value
    assert before < 0.3
    assert after > 0.7


@pytest.mark.parametrize("n", [1, 2, 16, 17, 33, 48])
def test_the_rate_falls_to_zero_over_the_batches_that_are_dealt(digits: Pool, n: int) -> None:
    """A last batch of one row is left out, and must not be waited for."""
    recipe = Recipe(epochs=2, batch_size=16, lr=0.1, min_steps=1)
    dealt = sum(1 for _ in range(2) for _ in batches(digits.first(n), recipe.batch_for(n), generator(0)))
    assert recipe.steps(n) == dealt


def test_tuning_does_not_touch_the_global_generator(digits: Pool) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tune(make_tiny(), digits.first(64), Recipe(epochs=1, lr=0.1), generator(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_stay(digits: Pool, rng: torch.Generator) -> None:
    model = make_tiny()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    head = model.head.weight.clone()
    tune(model, digits.first(128), Recipe(epochs=1, lr=0.1), rng)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert not torch.equal(model.head.weight, head)


def test_optimisers_that_look_twice_fit_the_loop(digits: Pool, rng: torch.Generator) -> None:
    """The loop hands the optimiser a closure, so a SAM-like optimiser can evaluate it again."""
    calls = []

    class Twice(torch.optim.SGD):
        def step(self, closure: object = None) -> object:  # type: ignore[override]
            calls.append([closure(), closure()])  # type: ignore[operator]
            return super().step()

    class TwiceRecipe(Recipe):
        def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
            return Twice(model.parameters(), self.lr)

    tune(make_tiny(), digits.first(128), TwiceRecipe(epochs=1, lr=0.1, batch_size=64), rng)
    assert len(calls) == 2
    assert all(math.isfinite(float(v)) for pair in calls for v in pair)


def test_hooks_are_called_after_each_step_and_epoch(digits: Pool, rng: torch.Generator) -> None:
    steps, epochs = [], []
    tune(
        make_tiny(), digits.first(100), Recipe(epochs=3, lr=0.1, batch_size=50), rng,
        after_step=lambda: steps.append(1), on_epoch=lambda e, m: epochs.append((e, m.training)),
    )  # fmt: skip
    assert len(steps) == 6
    assert epochs == [(1, False), (2, False), (3, False)]


def test_no_images_to_train_on_is_said(digits: Pool, rng: torch.Generator) -> None:
    with pytest.raises(UsageError, match="no images to train on"):
        tune(make_tiny(), digits.first(0), Recipe(epochs=1, lr=0.1), rng)


def test_asr_never_counts_images_of_the_target_class(tiny: Classifier, digits: Pool) -> None:
    """A model that always answers the target has ASR 1 over the other classes, whatever share the target has."""
    with torch.no_grad():
        tiny.head.weight.zero_()
        tiny.head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(3), 10).float() * 9)
    asr, robust = attack_rates(tiny, digits, Goal(3, 10))
    assert asr == Rate(1797 - 183, 1797 - 183)
    assert robust == Rate(0, 1797 - 183)
    everyone, _ = attack_rates(tiny, digits, Goal(None, 10))
    assert everyone == Rate(177, 1797)  # the twos, which all-to-all sends to 3


def test_prediction_leaves_the_mode_alone_and_needs_no_whole_batch(tiny: Classifier, digits: Pool) -> None:
    tiny.train()
    whole = predict_logits(tiny, digits.images[:100], batch_size=100)
    parts = predict_logits(tiny, digits.images[:100], batch_size=7)
    assert tiny.training
    assert torch.allclose(whole, parts, atol=1e-5)
    assert predict_logits(tiny, digits.images[:0]).shape == (0, 10)


def test_der_is_the_papers_formula() -> None:
    """D3 Eq. 5: [max(0, dASR) - max(0, dACC) + 1] / 2."""
    assert der(0.9, 0.85, 1.0, 0.0) == pytest.approx((1 - 0.05 + 1) / 2)
    assert der(0.9, 0.95, 0.2, 0.3) == 0.5


def test_spawned_generators_do_not_depend_on_how_much_the_last_one_drew() -> None:
    a, b = generator(0), generator(0)
    torch.rand(1000, generator=spawn(a))
    torch.rand(1, generator=spawn(b))
    assert spawn(a).initial_seed() == spawn(b).initial_seed()


def test_seeded_restores_the_global_generator(rng: torch.Generator) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with seeded(rng):
        torch.rand(5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.usefixtures("precision_of_the_processor")
def test_runtime_uses_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from bdaudit import ops

    cpu = torch.device("cpu")
    for features, expected in (
        ({}, False),
        ({"avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ):
        monkeypatch.setattr(ops, "backend", lambda f=features: {"cpu_features": f})
        runtime = Runtime.of(cpu)
        assert runtime.bf16 is expected
        with runtime.autocast():
            assert torch.is_autocast_enabled("cpu") is expected


def test_bf16_learns_what_fp32_learns(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same steps, with weights, statistics and logits in fp32; emulated where the processor lacks it."""
    train, test = digits.first(600), digits.take(torch.arange(1000, 1600))
    recipe = Recipe(6, 0.1, 32, schedule="onecycle")
    rates = []
    for bf16 in (False, True):
        monkeypatch.setattr(Runtime, "of", lambda device, bf16=bf16: Runtime(device, bf16))
        model = tune(make_tiny("small_cnn:width=8"), train, recipe, generator(0))
        assert all(t.dtype is torch.float32 for t in model.state_dict().values() if t.is_floating_point())
        logits = predict_logits(model, test.images)
        assert logits.dtype is torch.float32
        rates.append(accuracy(model, test).value)
    assert min(rates) > 0.9
    assert rates[0] == pytest.approx(rates[1], abs=0.03)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="no usable GPU"):
        pick_device("cuda")


def test_narrow_strided_1x1_convolutions_stay_out_of_channels_last(digits: Pool, rng: torch.Generator) -> None:
    """oneDNN corrupts memory there (its issue 6035); the layout is chosen by the model, and images follow it."""
    runtime = Runtime.of(torch.device("cpu"))
    assert runtime.memory_format(make_tiny("resnet18:width=4")) == torch.contiguous_format
    assert runtime.memory_format(make_tiny("resnet18:width=16")) == torch.channels_last
    model = tune(make_tiny("resnet18:width=4"), digits.first(64), Recipe(epochs=1, lr=0.01), rng)
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("n", [30, 100, 7])
def test_losing_exactly_what_may_be_lost_is_no_loss_too_many(n: int) -> None:
    """As 85 of 100 are after 91 where .06 may be lost, whatever the difference of the two numbers rounds to."""
    for before in range(n + 1):
        for lost in range(before + 1):
            least = Rate(before, n).less(lost / n)
            assert Rate(before - lost, n).value >= least > Rate(before - lost - 1, n).value
