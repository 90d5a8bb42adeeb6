"""Whether cost grows with what is asked for, and not faster: tuning images, and planned cells of a bench."""

from __future__ import annotations

from functools import partial
from typing import Any

from bdaudit.bench.grid import Grid
from bdaudit.bench.grid_file import parse_grid
from bdaudit.bench.plan import make_plan
from bdaudit.plugins import get
from bdaudit.runtime import generator
from benchmarks.ops import Work, measure
from benchmarks.throughput.loops import Bench

SMALL = "small_cnn:width=4"
"""A network that costs little, so that what surrounds it shows."""


def tuning(shape: str, images: int, device: str, repeats: int) -> list[dict[str, Any]]:
    """An epoch of FT on so many images, and two, four and eight times as many."""
    benches = {n: Bench.make(SMALL, shape, n, 1, 0, device) for n in (images * k for k in (1, 2, 4, 8))}
    chosen = get("defense", "ft").parse({"epochs": 1})
    works: dict[str, Work] = {
        str(n): partial(chosen.run, {"model": b.model, "clean": b.pool, "rng": generator(0)})
        for n, b in benches.items()
    }
    return rows(works, device, repeats)


def planning(repeats: int) -> list[dict[str, Any]]:
    """Plan grids of 10, 100 and 1,000 cells."""
    works: dict[str, Work] = {str(n): partial(make_plan, grid(n), "cpu") for n in (10, 100, 1000)}
    return rows(works, "cpu", repeats)


def grid(cells: int) -> Grid:
    """Two attacks by five defenses by as many seeds as it takes, on digits."""
    defenses = ["ft", "fst", "pl", "ep", "ft-sam"]
    return parse_grid(
        {"data": "digits", "attacks": ["badnets", "blended"], "defenses": defenses, "seeds": list(range(cells // 10))},
        "throughput",
    )


def rows(works: dict[str, Work], device: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each size, and of one item of it as against the smallest size: 1 where cost grows in proportion."""
    timings = measure(works, device, repeats)
    first, *_ = (t.median / int(n) for n, t in timings.items())
    return [{"size": int(n), "seconds": t.median, "each": t.median / int(n) / first} for n, t in timings.items()]
