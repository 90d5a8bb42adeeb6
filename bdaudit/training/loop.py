"""The one tuning loop: every attack, defense and probe trains through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.errors import UsageError
from bdaudit.inputs import scratch
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, permutation, seeded
from bdaudit.training.augment import Augment
from bdaudit.training.kfac import Kfac, NaturalGradient
from bdaudit.training.progress import Advance, still, track
from bdaudit.training.resume import resumed
from bdaudit.training.sam import Sam, SharpnessAware

Loss = Callable[[Classifier, Tensor, Tensor], Tensor]
"""(model, pixels (N, C, H, W), labels (N,)) -> scalar."""


@dataclass(frozen=True)
class Recipe:
    """How to train: optimiser, schedule, batches.

    schedule: `cosine` to zero over all steps, `onecycle` (a warm-up of 20%, then down to zero), `constant`, or a
    function from the share of steps done, in [0, 1), to the share of `lr`.
    min_steps: steps in an epoch, at least: a small pool is cut into smaller batches (of 16 images or more). The papers
    count epochs over a thousand images or more; over two hundred, the same epochs would be a fifth of the steps.
    sam: step by the gradient at the worst point nearby, at twice the cost.
    kfac: step by the natural gradient in the head, and by the plain one elsewhere.
    as_in_use: keep the model in eval mode, so that BatchNorm's statistics stay and dropout is off.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str | Callable[[float], float] = "cosine"
    min_steps: int = 1
    augment: Augment = field(default_factory=Augment)
    sam: Sam | None = None
    kfac: Kfac | None = None
    as_in_use: bool = False

    def make_optimizer(self, model: Classifier) -> torch.optim.Optimizer:
        base = self._base_optimizer([p for p in model.parameters() if p.requires_grad])
        if self.kfac is not None:
            base = NaturalGradient(base, model.head, self.kfac)
        return base if self.sam is None else SharpnessAware(base, model, self.sam)

    def _base_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, foreach=True)
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay, foreach=True)
        raise UsageError(f"optimizer is sgd or adam, got {self.optimizer!r}")

    def batch_for(self, n: int) -> int:
        """Images a step, for a pool of n."""
        if math.ceil(n / self.batch_size) >= self.min_steps:
            return self.batch_size
        return min(self.batch_size, max(16, math.ceil(n / self.min_steps)))

    def steps(self, n: int) -> int:
        """Steps in all, for a pool of n: as many batches as `batches` deals, which leaves out a last one of one row."""
        size = self.batch_for(n)
        return self.epochs * max(1, math.ceil(n / size) - (n % size == 1))

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at a step, as a share of `lr`."""
        done = step / max(1, steps)
        if callable(self.schedule):
            return self.schedule(done)
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "onecycle":
            return min(done / 0.2, (1 - done) / 0.8) if done else 1 / max(1, steps)
        if self.schedule == "constant":
            return 1.0
        raise UsageError(f"schedule is cosine, onecycle or constant, got {self.schedule!r}")


def in_steps(*drops: float) -> Callable[[float], float]:
    """Make a schedule that falls to a tenth at each of these shares of the steps."""
    return lambda done: 10.0 ** -sum(done >= drop for drop in drops)


def falling_at_last(part: float) -> Callable[[float], float]:
    """Make a schedule that is constant but for a last part of the steps, over which it falls to zero; 0: constant."""
    return lambda done: min(1.0, (1 - done) / part) if part else 1.0


def cross_entropy(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """The plain training loss."""
    return F.cross_entropy(model(x), y)


class Training:
    """A model in training: its optimiser, and how far its schedule has come."""

    def __init__(self, model: Classifier, recipe: Recipe, steps: int) -> None:
        """Place the model on its device; steps: how many there will be in all, for the schedule."""
        self.runtime = Runtime.of(model.device)
        self.model = self.runtime.place(model)
        self.recipe, self.steps, self.step = recipe, steps, 0
        self.optimizer = recipe.make_optimizer(model)

    def epoch(
        self,
        dealt: Iterable[tuple[Tensor, Tensor]],
        loss: Loss = cross_entropy,
        *,
        after_step: Callable[[], None] | None = None,
        advance: Advance = still,
    ) -> None:
        """Step once on each (pixels, labels) dealt, and leave the model in eval mode."""
        self.model.train(not self.recipe.as_in_use)
        for x, y in dealt:
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr * self.recipe.factor(self.step, self.steps)

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                self.optimizer.zero_grad(set_to_none=True)
                with self.runtime.autocast():
                    value = loss(self.model, x, y)
                value.backward()  # type: ignore[no-untyped-call]
                return value.detach()  # not .item(): that would wait for the GPU every step

            # A closure, so that optimisers that look twice (SAM) fit the same loop.
            self.optimizer.step(closure)  # type: ignore[arg-type]
            if after_step is not None:
                after_step()
            self.step += 1
            advance()
        self.model.eval()


def tune(
    model: Classifier,
    pool: Pool,
    recipe: Recipe,
    rng: torch.Generator,
    *,
    loss: Loss = cross_entropy,
    after_step: Callable[[], None] | None = None,
    on_epoch: Callable[[int, Classifier], None] | None = None,
    keep: dict[str, Tensor] | None = None,
    what: str = "tuning",
) -> Classifier:
    """Train `model` in place on `pool` and return it in eval mode.

    loss: what to minimise on each batch. after_step: called after every optimiser step (projections, and the steps of
    networks that learn along, on the gradients that the loss left them).
    on_epoch: called with (epoch from 1, model in eval mode) after every epoch (curves).
    keep: go on after an interruption where the caller of all asked for it (`training/resume.py`), with these
    tensors, which are all that the hooks remember from epoch to epoch.
    Frozen parameters (`requires_grad=False`) stay as they are; BatchNorm runs in train mode unless the recipe says no.
    """
    if not len(pool):
        raise UsageError(f"{what}: there are no images to train on")
    pool = pool.to(model.device)
    batch_size = recipe.batch_for(len(pool))
    training = Training(model, recipe, recipe.steps(len(pool)))
    with seeded(rng), track(what, training.steps) as advance:
        epochs = range(recipe.epochs)
        for epoch in epochs if keep is None else resumed(what, recipe.epochs, rng, {"model": training}, keep, advance):
            dealt = batches(pool, batch_size, rng, recipe.augment)
            training.epoch(dealt, loss, after_step=after_step, advance=advance)
            if on_epoch is not None:
                on_epoch(epoch + 1, model)
    return model


def descend(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int, device: torch.device, *, what: str
) -> None:
    """Take so many steps of an optimiser on a loss: the loop of networks that are no classifiers."""
    runtime = Runtime.of(device)
    with track(what, steps) as advance:
        for _ in range(steps):
            with runtime.autocast():
                value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance()


def batches(
    pool: Pool, size: int, rng: torch.Generator, augment: Augment | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through a pool in random order; yield (pixels uint8, labels)."""
    order = permutation(len(pool), rng).to(pool.device)
    for rows in torch.split(order, size):
        if len(rows) == 1:  # BatchNorm has no variance on one image
            if len(order) > 1:
                continue
            rows = rows.repeat(2)  # the only one there is: the same mean loss
        images = pool.images[rows]
        scratch.release(pool.images)
        if augment is not None:
            images = augment(images, rng)
        yield images, pool.labels[rows]


def endless(
    pool: Pool, rng: torch.Generator, augment: Augment | None = None, rows: Tensor | None = None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Deal a pool, or some rows of it, like a deck of cards: every row comes once before any row comes again.

    rows: int64, on the CPU. Returns a function: n -> n rows (pixels uint8 (n, C, H, W), labels), however few there are.
    """
    draw = endless_rows(len(pool) if rows is None else len(rows), rng)

    def deal(n: int) -> tuple[Tensor, Tensor]:
        drawn = draw(n) if rows is None else rows[draw(n)]
        drawn = drawn.to(pool.device)
        images = pool.images[drawn]
        scratch.release(pool.images)
        if augment is not None:
            images = augment(images, rng)
        return images, pool.labels[drawn]

    return deal


def endless_rows(size: int, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Deal 0..size-1 like a deck of cards; returns a function: n -> n of them (int64, CPU), however small `size` is."""
    if not size:
        raise UsageError("there are no images to draw from")
    deck = torch.empty(0, dtype=torch.int64)

    def draw(n: int) -> Tensor:
        nonlocal deck
        while len(deck) < n:
            deck = torch.cat([deck, permutation(size, rng)])
        rows, deck = deck[:n], deck[n:]
        return rows

    return draw
