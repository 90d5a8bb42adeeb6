"""Images a second of what bdaudit trains and measures, beside the same passes by the plain loops of `reference`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.plugins import get
from bdaudit.probes.base import retuned, retuning_recipe
from bdaudit.probes.queries import Course, Generator
from bdaudit.runtime import Runtime, generator
from bdaudit.training.augment import Augment
from bdaudit.training.folded import folded
from bdaudit.training.loop import Recipe, batches
from bdaudit.training.metrics import accuracy, at_once
from benchmarks.loading import colour, grey
from benchmarks.ops import Work, measure
from benchmarks.throughput import reference

POOLS: dict[str, tuple[Callable[[int], Pool], str]] = {
    "1x28x28": (grey, "fashion-mnist"),
    "3x32x32": (colour, "cifar10"),
}
"""Images of a size, and how they are normalised."""
GOALS = {"cpu": 3.0, "cuda": 10.0}
DATA_GOAL = 15.0
TESTED = 19_000
"""Images that BackdoorBench tests on after each epoch on CIFAR-10: the test set, and nine classes of it triggered."""


@dataclass(frozen=True)
class Bench:
    """What all loops work on. epochs: passes of each. workers: of the plain loops' DataLoader."""

    model: Classifier
    pool: Pool
    epochs: int
    workers: int

    @classmethod
    def make(cls, arch: str, shape: str, images: int, epochs: int, workers: int, device: str) -> Bench:
        make, normalisation = POOLS[shape]
        pool = make(images)
        preprocessing = usual_preprocessing(pool.shape, normalisation)
        made = fresh(complete(parse(arch)), preprocessing, [str(k) for k in range(10)], generator(0))
        return cls(Runtime.of(torch.device(device)).place(made), pool, epochs, workers)

    @property
    def device(self) -> str:
        return self.model.device.type

    @property
    def crop(self) -> int:
        """What both sides crop after, on grey images as well."""
        return min(self.pool.shape[1:]) // 8

    def plain(self) -> nn.Module:
        """Copy the network alone, as anybody's, in the usual layout."""
        return copy.deepcopy(self.model.body).to(memory_format=torch.contiguous_format)

    def images(self, pool: Pool, crop: int = 0) -> reference.Images:
        return reference.Images(pool, reference.transform(self.model.preprocessing, crop))


class Case(NamedTuple):
    """Something that is done, by bdaudit and by plain loops.

    images: how often an image goes through the network, or for `data path`, is made ready for it. arithmetic: the
    network's own passes alone, as fast as torch makes them: no loop can do without. goal: the speed-up wanted, where it
    is not that of the device.
    """

    name: str
    images: int
    ours: Work
    plain: dict[str, Work]
    arithmetic: Work | None = None
    goal: float | None = None


def cases(bench: Bench) -> Iterator[Case]:
    """Go through what an audit does."""
    yield data_path(bench)
    yield tuning(bench, "ft")
    yield tuning(bench, "fst")
    yield retuning(bench)
    yield querying(bench)
    yield evaluation(bench)


def data_path(bench: Bench) -> Case:
    """From uint8 pixels in memory to cropped, normalised batches, and no network."""
    inputs = inputs_of(bench.model)
    pool = bench.pool.to(bench.device)

    def ours() -> None:
        for x, _ in batches(pool, 128, generator(0), Augment(pad=bench.crop)):
            inputs(x)

    def plain(workers: int) -> None:
        dataset = bench.images(bench.pool, bench.crop)
        for x, _ in reference.loader(dataset, 128, workers=workers, device=bench.device):
            x.to(bench.device)

    return Case("data path", len(pool), ours, with_workers(bench, plain), goal=DATA_GOAL)


class Inputs(nn.Module):
    """A network that gives its inputs back. Its weights are there to be asked for their layout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.unused = nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(1, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Give the normalised images back, (N, C, H, W)."""
        return x


def inputs_of(model: Classifier) -> Classifier:
    """Make what a classifier makes of pixels before its network sees them: normalised, in the network's layout."""
    made = Classifier(Inputs(model.num_classes), model.preprocessing)
    return made.to(model.device, memory_format=Runtime.of(model.device).memory_format(model))


def tuning(bench: Bench, defense: str) -> Case:
    """A purification by FT or FST, from a model and clean images in memory to the purified model."""
    chosen = get("defense", defense).parse({"epochs": bench.epochs, "crop": bench.crop})
    recipe: Recipe = chosen.recipe(bench.pool)
    size = recipe.batch_for(len(bench.pool))

    def ours() -> None:
        chosen.run({"model": bench.model, "clean": bench.pool, "rng": generator(0)})

    def plain(workers: int) -> None:
        dataset = bench.images(bench.pool, bench.crop)
        dealt = reference.loader(dataset, size, workers=workers, device=bench.device)
        settings: dict[str, Any] = {"epochs": bench.epochs, "lr": chosen.lr, "device": bench.device}
        net = bench.plain()
        if defense == "fst":
            head = net.get_submodule(bench.model.head_name)
            assert isinstance(head, nn.Linear)
            reference.shift(net, head, dealt, alpha=chosen.alpha, **settings)
        else:
            reference.tune(net, dealt, **settings)

    passes = bench.epochs * len(bench.pool)
    return Case(defense, passes, ours, with_workers(bench, plain), training_alone(bench, size))


def retuning(bench: Bench) -> Case:
    """RA: retune on images of which five in a thousand are poisoned."""
    recipe = retuning_recipe(bench.pool, epochs=bench.epochs)
    recipe = replace(recipe, augment=Augment(pad=bench.crop))
    size = recipe.batch_for(len(bench.pool))
    poisoned = bench.pool.first(max(1, len(bench.pool) // 200)).labelled(0)

    def ours() -> None:
        retuned(bench.model, bench.pool, poisoned, recipe, generator(0))

    def plain() -> None:
        datasets = bench.images(bench.pool, bench.crop), bench.images(poisoned)
        reference.retune(bench.plain(), *datasets, size, epochs=bench.epochs, lr=recipe.lr, device=bench.device)

    passes = bench.epochs * len(bench.pool)
    return Case("retune", passes, ours, {"a list, no workers": plain}, training_alone(bench, size))


def querying(bench: Bench) -> Case:
    """QRA: train the generator against a purified model, a retuned teacher and a reference."""
    probe = get("probe", "qra").parse({"select": False})
    nets = [bench.model.clone() for _ in range(3)]

    def ours() -> None:
        purified, teacher, control = nets
        course = Course(probe, probe.lr, teacher, folded(purified), folded(control), bench.pool, 0)
        course.run(bench.epochs)

    def plain(frozen: bool) -> None:
        made = Generator(bench.pool.shape, probe.hidden, probe.depth, probe.budget).to(bench.device)
        reference.query(
            made,
            *(bench.plain().requires_grad_(not frozen) for _ in range(3)),
            bench.images(bench.pool),
            bench.model.preprocessing,
            alpha=probe.alpha,
            epochs=bench.epochs,
            lr=probe.lr,
            batch_size=probe.batch_size,
            device=bench.device,
        )

    plains: dict[str, Work] = {"as released": partial(plain, False), "networks frozen": partial(plain, True)}
    alone = querying_alone(bench, folded(bench.model), probe.batch_size)
    return Case("qra", bench.epochs * len(bench.pool), ours, plains, alone)


def evaluation(bench: Bench) -> Case:
    """Accuracy on held-out images, in batches of the same size on both sides."""
    net, size = bench.plain(), at_once(torch.device(bench.device))

    def ours() -> None:
        accuracy(bench.model, bench.pool)

    def plain(workers: int) -> None:
        dealt = reference.loader(bench.images(bench.pool), size, workers=workers, shuffle=False, device=bench.device)
        reference.evaluate(net, dealt, bench.device)

    alone = evaluating_alone(bench, size)
    return Case("evaluate", len(bench.pool), ours, with_workers(bench, plain), alone)


def with_workers(bench: Bench, plain: Callable[[int], None]) -> dict[str, Work]:
    """Both ways to load: BackdoorBench's and FST's."""
    return {f"{bench.workers} workers": partial(plain, bench.workers), "no workers": partial(plain, 0)}


def training_alone(bench: Bench, size: int) -> Work:
    """Forward and backward on batches that are ready, and nothing else."""
    model, runtime, made = bench.model.clone().train(), Runtime.of(bench.model.device), inputs_of(bench.model)
    dealt = batches(bench.pool.to(bench.device), size, generator(0))
    ready = [(made(x), y) for x, y in dealt]

    def work() -> None:
        for _ in range(bench.epochs):
            for x, y in ready:
                with runtime.autocast():
                    loss = F.cross_entropy(model.body(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                model.zero_grad()

    return work


def querying_alone(bench: Bench, model: Classifier, size: int) -> Work:
    """Two networks forward and back to the pixels: the purified one and the reference."""
    runtime, made = Runtime.of(bench.model.device), inputs_of(model)
    ready = [made(x).requires_grad_() for x in torch.split(bench.pool.to(bench.device).images, size)]

    def work() -> None:
        for _ in range(2 * bench.epochs):
            for x in ready:
                with runtime.autocast():
                    loss = model.body(x).float().square().mean()
                torch.autograd.grad(loss, x)

    return work


def evaluating_alone(bench: Bench, size: int) -> Work:
    """Forward alone."""
    model, runtime, made = bench.model.clone().eval(), Runtime.of(bench.model.device), inputs_of(bench.model)
    ready = [made(x) for x in torch.split(bench.pool.to(bench.device).images, size)]

    @torch.inference_mode()
    def work() -> None:
        with runtime.autocast():
            for x in ready:
                model.body(x)

    return work


def measured(case: Case, device: str, repeats: int) -> dict[str, Any]:
    """Time a case, all candidates in turn, and compare medians.

    share: of our time, what the network's own passes take; ceiling: the speed-up if all else were free.
    """
    candidates = {"ours": case.ours, **case.plain} | ({"arithmetic": case.arithmetic} if case.arithmetic else {})
    timings = measure(candidates, device, repeats, warm=0)
    ours = timings["ours"]
    row: dict[str, Any] = {
        "what": case.name,
        "images": case.images,
        "seconds": ours.median,
        "seconds_low": ours.low,
        "seconds_high": ours.high,
        "images_per_s": case.images / ours.median,
        "goal": case.goal or GOALS[device],
        "plain": {
            name: {"images_per_s": case.images / timings[name].median, "speedup": timings[name].median / ours.median}
            for name in case.plain
        },
    }
    if case.arithmetic:
        alone = timings["arithmetic"].median
        best = min(timings[name].median for name in case.plain)
        row |= {"arithmetic_share": alone / ours.median, "ceiling": best / alone}
    return row


def with_tests(rows: list[dict[str, Any]], bench: Bench) -> None:
    """Add what FT and FST would be to BackdoorBench's loop, which tests after every epoch: by rates in `rows`."""
    by_name = {row["what"]: row for row in rows}
    way = f"{bench.workers} workers"
    for row in (by_name[name] for name in ("ft", "fst")):
        rate = by_name["evaluate"]["plain"][way]["images_per_s"]
        seconds = row["images"] / row["plain"][way]["images_per_s"] + bench.epochs * TESTED / rate
        row["with_tests_after_each_epoch"] = {"tested": TESTED, "speedup": seconds / row["seconds"]}


def share_of_peak(bench: Bench) -> dict[str, float]:
    """Hold the network's forward and backward pass against a large product of matrices in the same precision."""
    runtime, device = Runtime.of(bench.model.device), bench.device
    few = replace(bench, pool=bench.pool.first(128), epochs=1)
    passes = training_alone(few, 128)
    with FlopCounterMode(display=False) as counted:
        passes()
    side = 8192 if device == "cuda" else 2048
    matrix = torch.rand(side, side, device=device, dtype=torch.bfloat16 if runtime.bf16 else torch.float32)
    timings = measure({"passes": passes, "product": lambda: matrix @ matrix}, device, 9)
    rate, peak = counted.get_total_flops() / timings["passes"].median, 2 * side**3 / timings["product"].median
    return {"gflop_per_s": rate / 1e9, "peak_gflop_per_s": peak / 1e9, "share": rate / peak}
