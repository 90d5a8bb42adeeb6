"""Plan and run a grid file: what `bdaudit bench` does."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bdaudit.bench.cost import Estimate, images_per_second
from bdaudit.bench.grid_file import read_grid
from bdaudit.bench.local import Local
from bdaudit.bench.opened import read_store
from bdaudit.bench.page import write_page
from bdaudit.bench.pivot import pivot
from bdaudit.bench.plan import Plan, Stage, make_plan
from bdaudit.bench.progress import watching
from bdaudit.bench.run import Executor, Tally, bench_folder, outstanding, run_plan
from bdaudit.bench.store import FILE, Failure
from bdaudit.runtime import pick_device


@dataclass(frozen=True)
class Means:
    """What a grid is run with.

    workers: stages at a time (None: as many as cores or GPUs). threads: of each. limit: seconds for each, at most.
    retries: how often a stage is tried again whose worker was lost. address: of a Ray cluster.
    seed: to run the grid with in place of its own seeds.
    """

    executor: Literal["local", "ray"] = "local"
    workers: int | None = None
    threads: int = 1
    limit: float | None = None
    retries: int = 2
    device: str = "auto"
    address: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What a plan comes to before it is run: what is left to do, and how long one worker takes for it."""

    plan: Plan
    left: tuple[Stage, ...]
    seconds: float
    measured: bool
    workers: int


def forecast(grid: Path, out: Path | None, means: Means) -> Forecast:
    """Plan a grid and estimate its cost; out: a bench's folder, whose results and times count."""
    plan = make_plan(read_grid(grid, means.seed), means.device)
    measured: dict[str, float] = {}
    if out is not None and (out / FILE).is_file():
        with read_store(out) as store:
            measured = store.seconds()
    left = outstanding(plan, out) if out is not None else list(plan.stages)
    estimate = Estimate(plan.stages, measured)
    known = estimate.total(left) is not None
    if not known:
        estimate.speed = images_per_second(plan.stages[0], means.threads)
    return Forecast(plan, tuple(left), estimate.total(left) or 0.0, known, len(_places(means)))


def run_grid(grid: Path, out: Path, means: Means, *, show: bool = True) -> tuple[Tally, list[Failure]]:
    """Run what is left of a grid; return how it stands, and what failed."""
    plan = make_plan(read_grid(grid, means.seed), means.device)
    # First what the stages run on: where it cannot be had, no folder is left.
    with closing(_executor(means, out.resolve())) as executor, bench_folder(out) as store, watching(show) as watcher:
        tally = run_plan(plan, store, out, executor, retries=means.retries, watcher=watcher)
        write_page(store, pivot(store), out)
        return tally, store.failures()


def _executor(means: Means, folder: Path) -> Executor:
    if means.executor == "local":
        return Local(str(folder), _places(means), threads=means.threads, limit=means.limit)
    from bdaudit.bench.on_ray import OnRay

    cuda = {"cuda": True, "cpu": False}.get(means.device)
    return OnRay(str(folder), address=means.address, threads=means.threads, limit=means.limit, cuda=cuda)


def _places(means: Means) -> list[str | None]:
    """List what a stage occupies while it runs, one entry a worker: a GPU, or (None) a share of the cores."""
    import torch

    if pick_device(means.device).type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        return [gpus[i % len(gpus)] for i in range(means.workers or len(gpus))]
    cores = len(os.sched_getaffinity(0))
    return [None] * (means.workers or max(1, cores // means.threads))
