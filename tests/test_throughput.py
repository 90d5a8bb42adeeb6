"""The plain loops of benchmarks.throughput train what bdaudit trains, so that their times can be compared."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.plugins import get
from bdaudit.probes.base import retuned, retuning_recipe
from bdaudit.probes.queries import Course, Generator
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy
from bdaudit.training.mixmatch import MixMatch, SemiSupervised
from benchmarks.throughput import reference
from benchmarks.throughput.loops import inputs_of
from benchmarks.throughput.mixmatch import Views, plainly
from benchmarks.throughput.parts import Clock

WHOLE = {"epochs": 4, "lr": 0.05}


@pytest.fixture
def few(digits: Pool) -> Pool:
    """One batch: whatever the order, each step then sees the same images."""
    return digits.first(96)


def plain(model: Classifier) -> nn.Module:
    return copy.deepcopy(model.body).to(memory_format=torch.contiguous_format)


def images(model: Classifier, pool: Pool) -> reference.Images:
    return reference.Images(pool, reference.transform(model.preprocessing))


def same_weights(net: nn.Module, model: Classifier) -> None:
    expected = model.body.state_dict()
    assert net.state_dict().keys() == expected.keys()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_network_is_given_the_same_inputs(tiny: Classifier, few: Pool) -> None:
    [(x, y)] = reference.loader(images(tiny, few), len(few), shuffle=False)
    torch.testing.assert_close(x, inputs_of(tiny)(few.images))
    assert torch.equal(y, few.labels)


def test_the_plain_crop_moves_images_as_far_as_ours_does(tiny: Classifier, digits: Pool) -> None:
    """One white pixel in the middle comes to lie up to two pixels away, and everywhere in between."""
    image = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    image[:, :, 8, 8] = 255
    torch.manual_seed(0)
    cropped = reference.Images(Pool.of(image), reference.transform(tiny.preprocessing, crop=2))
    places = {tuple((cropped[i][0][0] > 0).nonzero()[0].tolist()) for i in range(400)}
    assert places == set(itertools.product(range(6, 11), repeat=2))


@pytest.mark.parametrize("defense", ["ft", "fst"])
def test_a_plain_purification_ends_at_the_same_weights(defense: str, tiny: Classifier, few: Pool) -> None:
    chosen = get("defense", defense).parse({**WHOLE, "batch_size": len(few), "min_steps": 1, "crop": 0})
    net, dealt = plain(tiny), reference.loader(images(tiny, few), len(few))
    torch.manual_seed(5)
    if defense == "ft":
        reference.tune(net, dealt, **WHOLE)
    else:
        reference.shift(net, net.linear, dealt, alpha=chosen.alpha, **WHOLE)
    same_weights(net, chosen.run({"model": tiny, "clean": few, "rng": generator(5)}))


def test_a_plain_retuning_ends_at_the_same_weights(tiny: Classifier, few: Pool, rng: torch.Generator) -> None:
    poisoned = few.first(9).labelled(3)
    recipe = retuning_recipe(few, epochs=4, batch_size=len(few))
    recipe = replace(recipe, min_steps=1)
    net = plain(tiny)
    reference.retune(net, images(tiny, few), images(tiny, poisoned), len(few), epochs=4, lr=recipe.lr)
    same_weights(net, retuned(tiny, few, poisoned, recipe, rng))


def test_plain_queries_end_at_the_same_generator(tiny: Classifier, few: Pool) -> None:
    probe = get("probe", "qra").parse({"hidden": 32, "batch_size": len(few)})
    teacher, control = (retuned(tiny, few, few.first(9), retuning_recipe(few), generator(i)) for i in (1, 2))
    course = Course(probe, probe.lr, teacher, tiny, control, few, seed=0)
    made: Generator = copy.deepcopy(course.made.generator)
    reference.query(
        made,
        *map(plain, (tiny, teacher, control)),
        images(tiny, few),
        tiny.preprocessing,
        alpha=probe.alpha,
        epochs=4,
        lr=probe.lr,
        batch_size=len(few),
    )
    before = copy.deepcopy(course.made.generator)
    course.run(4)
    for ours, theirs, start in zip(
        course.made.generator.parameters(), made.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)
        assert not torch.equal(ours, start)


def test_plain_mixmatch_ends_at_the_same_weights(tiny: Classifier, few: Pool, rng: torch.Generator) -> None:
    """With weights of 1, nothing is mixed, and with one batch of each kind no draw is left."""
    half, net = len(few) // 2, plain(tiny)
    known = torch.arange(len(few)) < half
    how = MixMatch(iterations=4, batch_size=half, beta=1e-9, ramp=1)
    transform = reference.transform(tiny.preprocessing)
    labelled = reference.loader(reference.Images(few.take(known), transform), half)
    unlabelled = reference.loader(Views(few.take(~known), transform, how.views), half)
    losses = plainly(net, labelled, unlabelled, how, tiny.num_classes)
    SemiSupervised(tiny, few, how, 1, rng).epoch(known)
    same_weights(net, tiny)
    assert losses[-1] < losses[0]


def test_a_plain_evaluation_counts_the_same(tiny: Classifier, digits: Pool) -> None:
    correct, total = reference.evaluate(plain(tiny), reference.loader(images(tiny, digits), 512, shuffle=False))
    rate = accuracy(tiny, digits)
    assert (correct, total) == (rate.successes, rate.n)
    assert 0 < correct < total


def test_the_clock_counts_a_part_within_another_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes between any two looks at the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    clock = Clock()

    def items():  # type: ignore[no-untyped-def]
        yield from (1, 2)

    with clock.part("outer"):
        clock.timed("inner", lambda: None)()
        assert list(clock.dealt("dealing", items)()) == [1, 2]
    clock.turn()
    assert sum(clock.seconds.values()) == next(ticks) - 1
    assert clock.seconds["inner"] == 1
    assert clock.seconds["dealing"] == 3  # two items, and the end
