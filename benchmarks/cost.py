"""Measure what an epoch of each defense costs in parts of fine-tuning's, on the same images and batches, interleaved.

    OMP_NUM_THREADS=2 python -m benchmarks.cost RUN --json FILE [--defense ft fst pl d3 ft-sam] [--rounds 5]

An idle machine is needed. Each round runs every defense once from the same model; the ratios are taken within a round,
the medians over rounds. images: how many go forward through the network with a gradient; SAM's do so twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bdaudit import api, plugins
from bdaudit.defenses.base import Defense
from bdaudit.flow.contamination import Contamination
from bdaudit.flow.run import Run, open_run
from benchmarks import named
from benchmarks.defenses import given


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--defense", nargs="+", default=["ft", "fst", "pl", "d3", "ft-sam"], metavar='"NAME option=value"'
    )
    parser.add_argument("--clean", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    run = open_run(args.run)
    rounds = []
    for _ in range(args.rounds + 1):
        found = {}
        for spec in args.defense:
            name, options = named(spec)
            own = {"epochs": str(args.epochs), "batch_size": str(args.batch_size)} | options
            found[spec] = timed(run, plugins.get("defense", name).parse(own), args.clean)
        rounds.append(found)
    del rounds[0]  # what the first calls import and allocate
    first = args.defense[0]
    rows = [
        {
            "defense": spec,
            "images": rounds[0][spec]["images"],
            "seconds": round(statistics.median(r[spec]["seconds"] for r in rounds), 2),
            "of_first": round(statistics.median(r[spec]["seconds"] / r[first]["seconds"] for r in rounds), 2),
            "of_first_an_image": round(statistics.median(an_image(r[spec]) / an_image(r[first]) for r in rounds), 2),
            "threads": torch.get_num_threads(),
        }
        for spec in args.defense
    ]
    print(tabulate(rows, headers="keys"))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def timed(run: Run, defense: Defense, clean: int) -> dict[str, Any]:
    """Run a defense once; count the images that pass the head with a gradient, and take the time."""
    model = api.load(run.model_path).classifier
    known = given(run, clean, eps=Contamination(), flagged=108, seed=0)
    images = 0

    def seen(_: object, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal images
        images += len(args[0]) if torch.is_grad_enabled() else 0

    hook = model.head.register_forward_pre_hook(seen)
    start = time.perf_counter()
    defense.run({"model": model, **known})
    seconds = time.perf_counter() - start
    hook.remove()
    return {"images": images, "seconds": seconds}


def an_image(found: dict[str, Any]) -> float:
    """Seconds an image."""
    return float(found["seconds"] / found["images"])


if __name__ == "__main__":
    main()
