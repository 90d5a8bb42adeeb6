"""Steps of MixMatch, which `bsd`, `asd` and `dbd` spend most of their time on, beside the same by a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, generator
from bdaudit.training.augment import Augment
from bdaudit.training.mixmatch import MixMatch, SemiSupervised
from benchmarks.ops import Work
from benchmarks.throughput import reference
from benchmarks.throughput.loops import Bench, Case, inputs_of, with_workers

GOAL = 4.0


class Views(Dataset[list[Tensor]]):
    """Images without their labels, each so many times, every time through the transform anew."""

    def __init__(self, pool: Pool, transform: Callable[[Image.Image], Tensor], views: int) -> None:
        self.images, self.views = reference.Images(pool, transform), views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return [self.images[row][0] for _ in range(self.views)]


def plainly(
    net: nn.Module,
    labelled: Iterable[tuple[Tensor, Tensor]],
    unlabelled: Iterable[list[Tensor]],
    how: MixMatch,
    classes: int,
    device: str = "cpu",
) -> list[float]:
    """Train by MixMatch for an epoch of `how.iterations`; return each step's loss, which the programs log.

    The mixing weight is drawn once a step, as in them. They pass views one by one, and the mixed rows in interleaved
    parts; a pass over all costs the same arithmetic in fewer calls.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=how.lr)
    dealt, dealt_rest = endlessly(labelled), endlessly(unlabelled)
    losses = []
    net.train()
    for step in range(how.iterations):
        x, y = next(dealt)
        x, targets = x.to(device), F.one_hot(y, classes).float().to(device)
        views = [v.to(device) for v in next(dealt_rest)]
        with torch.no_grad():
            p = torch.stack(net(torch.cat(views)).softmax(1).chunk(len(views))).mean(0)
            powers = p ** (1 / how.temperature)
            guessed = powers / powers.sum(1, keepdim=True)
        inputs, wanted = torch.cat([x, *views]), torch.cat([targets, *([guessed] * len(views))])
        share = np.random.beta(how.beta, how.beta)  # noqa: NPY002  # as the programs do
        share = max(share, 1 - share)
        order = torch.randperm(len(inputs))
        inputs = share * inputs + (1 - share) * inputs[order]
        wanted = share * wanted + (1 - share) * wanted[order]
        logits = net(inputs)
        supervised = -(wanted[: len(x)] * logits[: len(x)].log_softmax(1)).sum(1).mean()
        error = ((logits[len(x) :].softmax(1) - wanted[len(x) :]) ** 2).mean()
        loss = supervised + how.weight * min(1.0, step / (how.ramp * how.iterations)) * error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def endlessly(loader: Iterable[Any]) -> Iterator[Any]:
    """Deal a loader's batches again and again, as `next` with a new iterator at its end."""
    return chain.from_iterable(repeat(loader))


def case(bench: Bench) -> Case:
    """Half of the images with their labels, half without, so many steps that each comes once an epoch."""
    pool, size = bench.pool, min(64, len(bench.pool) // 4)
    known = torch.arange(len(pool)) < len(pool) // 2
    steps = bench.epochs * (len(pool) // 2 // size)
    how = MixMatch(iterations=steps, batch_size=size, ramp=1, augment=Augment(pad=bench.crop))

    def ours() -> None:
        SemiSupervised(bench.model.clone(), pool, how, 1, generator(0)).epoch(known)

    def plain(workers: int) -> None:
        made = reference.transform(bench.model.preprocessing, bench.crop)
        datasets = reference.Images(pool.take(known), made), Views(pool.take(~known), made, how.views)
        dealt = [
            reference.loader(each, size, workers=workers, device=bench.device, drop_last=True) for each in datasets
        ]
        plainly(bench.plain(), *dealt, how, bench.model.num_classes, bench.device)

    rows = steps * size * (1 + how.views)
    return Case("mixmatch", rows, ours, with_workers(bench, plain), passes_alone(bench, how), GOAL)


def passes_alone(bench: Bench, how: MixMatch) -> Work:
    """A forward pass to guess labels, then forward and backward on all rows, on batches that are ready."""
    model, runtime = bench.model.clone().train(), Runtime.of(bench.model.device)
    mixed = bench.pool.to(bench.device).images.repeat(2, 1, 1, 1)[: how.batch_size * (1 + how.views)]
    ready = inputs_of(model)(mixed)

    def work() -> None:
        for _ in range(how.iterations):
            with runtime.autocast():
                with torch.no_grad():
                    model.body(ready[how.batch_size :])
                loss = model.body(ready).float().square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            model.zero_grad()

    return work
