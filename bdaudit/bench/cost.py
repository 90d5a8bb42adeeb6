"""How long a grid will take: by what was measured, else reckoned from images through the network. Rough, it says so."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bdaudit.contract import Plugin
from bdaudit.inputs.architectures import complete, fresh, from_user
from bdaudit.inputs.datasets import load_dataset
from bdaudit.runtime import Runtime, generator, pick_device

if TYPE_CHECKING:
    from bdaudit.bench.plan import Stage

USUAL_EPOCHS, USUAL_IMAGES = 10, 1000
SUBJECTS = 2
"""Models that a probe works on: the purified one and the reference."""


def passes_of_audit(defenses: Iterable[Plugin], probes: Iterable[Plugin], pool: int) -> int:
    """Reckon the images that an audit takes through the network by the options that plugins have in common.

    pool: images that a defense tunes on, or trains on. Whoever has no option `epochs` is taken for one of ten.
    """
    tuned = sum(_option(defense, ("epochs",), USUAL_EPOCHS) * pool for defense in defenses)
    probed = (
        _option(p, ("epochs",), USUAL_EPOCHS)
        * _option(p, ("benign_size", "images"), USUAL_IMAGES)
        * (_option(p, ("draws",), 1) + 3 * _option(p, ("null_draws",), 0))
        for p in probes
    )
    return tuned + SUBJECTS * sum(probed)


def _option(plugin: Plugin, names: Sequence[str], otherwise: int) -> int:
    values = (getattr(plugin, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and v > 0), otherwise)


@dataclass
class Mean:
    """A running mean: it is asked for every waiting stage whenever one ends."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count


class Estimate:
    """Seconds of each stage: measured of stages like it, else of its kind and scaled by passes, else reckoned."""

    speed: float | None = None
    """Images a second, where nothing was measured."""

    def __init__(self, stages: Sequence[Stage], measured: Mapping[str, float]) -> None:
        self.alike: defaultdict[str, Mean] = defaultdict(Mean)
        self.pace: defaultdict[str, Mean] = defaultdict(Mean)
        for stage in stages:
            if stage.key in measured:
                self.add(stage, measured[stage.key])

    def add(self, stage: Stage, seconds: float) -> None:
        """Learn from a stage that has finished."""
        self.alike[stage.like].add(seconds)
        self.pace[stage.kind].add(seconds / max(1, stage.passes))

    def seconds(self, stage: Stage) -> float | None:
        """Predict one stage; None where nothing like it is known."""
        if stage.like in self.alike:
            return self.alike[stage.like].value
        if stage.kind in self.pace:
            return self.pace[stage.kind].value * stage.passes
        return stage.passes / self.speed if self.speed else None

    def total(self, stages: Iterable[Stage]) -> float | None:
        """Predict several, one after another."""
        seconds = [self.seconds(stage) for stage in stages]
        return None if None in seconds else sum(s for s in seconds if s is not None)


def images_per_second(stage: Stage, threads: int) -> float:
    """Measure how fast a model of a stage trains here: two batches of sixteen, the first to warm up."""
    dataset = load_dataset(stage.spec["data"])
    model = fresh(complete(from_user(stage.spec["arch"])), dataset.preprocessing, dataset.classes, generator(0))
    model = Runtime.of(pick_device(stage.spec["device"])).place(model)
    batch = dataset.train.first(16).to(model.device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(2):
            start = time.perf_counter()
            F.cross_entropy(model(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
            if model.device.type == "cuda":
                torch.cuda.synchronize()
        return len(batch) / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


def span(seconds: float | None) -> str:
    """Write a time as people say it."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
