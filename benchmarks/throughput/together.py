"""Two stages of a bench side by side, against each alone: do they cost one another more than the cores they share?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from bdaudit.bench.grid_file import parse_grid
from bdaudit.bench.local import Local
from bdaudit.bench.plan import Stage, make_plan
from bdaudit.bench.store import log_of
from bdaudit.inputs.pool import Pool

T = TypeVar("T")

PRODUCTS = 20_000
"""Of small matrices, which stay in a core's own cache: they show what two cores that share one lose by it."""


def side_by_side(pool: Pool, arch: str, folder: Path, repeats: int) -> dict[str, float]:
    """Train clean twins of two seeds as `bdaudit bench` does, a thread each; medians of seconds and of ratios.

    slowdown: a stage beside another, against alone. arithmetic: the same of products of small matrices, which is what
    the machine gives. beyond: what is left of the slowdown if that is taken out.
    """
    stages = twins(pool, arch, folder)
    rows = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for turn in range(repeats + 1):
            cells = compared(lambda stages: trained(stages, folder), stages)
            sums = compared(lambda counts: list(processes.map(products, counts)), [PRODUCTS, PRODUCTS])
            if turn:  # the first starts the processes
                rows.append((*cells, *sums))
    alone, beside, alone_sums, beside_sums = (statistics.median(column) for column in zip(*rows, strict=True))
    slowdown, arithmetic = beside / alone, beside_sums / alone_sums
    return {
        "seconds_alone": alone,
        "seconds_beside": beside,
        "slowdown": slowdown,
        "arithmetic": arithmetic,
        "beyond": slowdown / arithmetic,
    }


def compared(work: Callable[[Sequence[T]], list[float]], tasks: Sequence[T]) -> tuple[float, float]:
    """Mean seconds of each task alone, one after the other, and of all together."""
    return statistics.fmean(work([task])[0] for task in tasks), statistics.fmean(work(tasks))


def twins(pool: Pool, arch: str, folder: Path) -> list[Stage]:
    """Plan the training of two clean models on the images, for one epoch."""
    np.savez(folder / "images.npz", images=pool.images.numpy(), labels=pool.labels.numpy())
    parts = dict.fromkeys(("clean", "reserve", "test"), max(1, len(pool) // 50))
    table = {
        "data": str(folder / "images.npz"),
        "arch": arch,
        "attacks": "badnets",
        "defenses": "ft",
        "seeds": [0, 1],
        "victim": {"images": len(pool) - sum(parts.values()), "epochs": 1, **parts},
    }
    return make_plan(parse_grid(table, "throughput"), "cpu").of_kind("twin")


def trained(stages: Sequence[Stage], folder: Path) -> list[float]:
    """Seconds of stages that start at the same time, each in a process with one thread."""
    executor = Local(str(folder), [None] * len(stages), threads=1)
    seconds: list[float] = []
    try:
        for stage in stages:
            executor.submit(stage)
        while len(seconds) < len(stages):
            for outcome in executor.wait():
                if outcome.state != "done":
                    raise RuntimeError(f"{outcome.reason} (see {folder / log_of(outcome.key)})")
                seconds.append(outcome.seconds)
    finally:
        executor.close()
    return seconds


def products(count: int) -> float:
    """Seconds of so many products of small matrices on one thread."""
    torch.set_num_threads(1)
    matrix = torch.rand(96, 96)
    start = time.perf_counter()
    for _ in range(count):
        matrix @ matrix
    return time.perf_counter() - start
