"""Plan and run a grid file: what `bdaudit bench` does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bdaudit.bench.cost import Estimate, images_per_second
from bdaudit.bench.grid import read_grid
from bdaudit.bench.local import Local
from bdaudit.bench.page import write_page
from bdaudit.bench.plan import Plan, Stage, make_plan
from bdaudit.bench.progress import watching
from bdaudit.bench.run import Executor, Tally, bench_folder, outstanding, run_plan
from bdaudit.bench.show import pivot
from bdaudit.bench.store import FILE, read_store
from bdaudit.runtime import pick_device


@dataclass(frozen=True)
class Means:
    """What a grid is run with.

    workers: stages at a time (None: as many as cores or GPUs). threads: of each. limit: seconds for each, at most.
    retries: how often a stage is tried again whose worker was lost. address: of a Ray cluster.
    """

    executor: Literal["local", "ray"] = "local"
    workers: int | None = None
    threads: int = 1
    limit: float | None = None
    retries: int = 2
    device: str = "auto"
    address: str | None = None


@dataclass(frozen=True)
class Forecast:
    """What a plan comes to before it is run: what is left to do, and how long one worker takes for it."""

    plan: Plan
    left: tuple[Stage, ...]
    seconds: float | None
    measured: bool
    workers: int


def forecast(grid: Path, out: Path | None, means: Means) -> Forecast:
    """Plan a grid and estimate its cost; out: a bench's folder, whose results and times count."""
    plan = make_plan(read_grid(grid), means.device)
    measured: dict[str, float] = {}
    if out is not None and (out / FILE).is_file():
        with read_store(out) as store:
            measured = store.seconds()
    left = outstanding(plan, out) if out is not None else list(plan.stages)
    estimate = Estimate(plan.stages, measured)
    seconds = estimate.total(left)
    known = seconds is not None
    if not known:
        estimate.speed = images_per_second(plan.stages[0], means.threads)
        seconds = estimate.total(left)
    return Forecast(plan, tuple(left), seconds, known, len(_places(means)))


def run_grid(
    grid: Path, out: Path, means: Means, *, show: bool = True
) -> tuple[Plan, Tally, list[tuple[str, str, str]]]:
    """Run what is left of a grid; return its plan, how it stands, and (kind, label, reason) of what failed."""
    plan = make_plan(read_grid(grid), means.device)
    with bench_folder(out) as store, watching(show) as watcher, _executor(means, out.resolve()) as executor:
        tally = run_plan(plan, store, out, executor, retries=means.retries, watcher=watcher)
        write_page(store, pivot(store), out)
        return plan, tally, store.failures()


@contextmanager
def _executor(means: Means, folder: Path) -> Iterator[Executor]:
    if means.executor == "ray":
        from bdaudit.bench.on_ray import OnRay

        cuda = {"cuda": True, "cpu": False}.get(means.device)
        yield OnRay(str(folder), address=means.address, threads=means.threads, limit=means.limit, cuda=cuda)
        return
    places = _places(means)
    gpus = tuple(p for p in places if p is not None)
    yield Local(str(folder), workers=len(places), threads=means.threads, limit=means.limit, gpus=gpus)


def _places(means: Means) -> list[str | None]:
    """List what a stage occupies while it runs, one entry a worker: a GPU, or (None) a share of the cores."""
    import torch

    if pick_device(means.device).type == "cuda":
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        gpus = shown or [str(i) for i in range(torch.cuda.device_count())]
        return [gpus[i % len(gpus)] for i in range(means.workers or len(gpus))]
    cores = len(os.sched_getaffinity(0))
    return [None] * (means.workers or max(1, cores // means.threads))
