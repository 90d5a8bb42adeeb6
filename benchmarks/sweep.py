"""Choose a defense's defaults where its paper gives none, without looking at any test image.

    python -m benchmarks.sweep DEFENSE RUN [RUN ...] [--set NAME=VALUE,VALUE ...] [--clean N] [--seeds N]
        [--json FILE]

For each run folder and each setting: purify (with half of the flagged images, where the defense takes any), then
measure what a developer may choose by: clean accuracy on clean images kept back, and the share of flagged images
kept back that still go to the target. One default must hold on every run. Test ASR is printed last, for the
record; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bdaudit import api, plugins
from bdaudit.flow.run import open_run
from bdaudit.runtime import generator
from bdaudit.training.metrics import Rate, accuracy, attack_rates, predict


def main() -> None:
    """Run the sweep and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("defense")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE,VALUE")
    parser.add_argument("--clean", type=int, help="clean images to tune on (default: all of the run's pool)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    grid = dict(item.partition("=")[::2] for item in args.set)
    settings = [dict(zip(grid, values, strict=True)) for values in product(*(v.split(",") for v in grid.values()))]
    rows: list[dict[str, Any]] = []
    for folder, setting, seed in product(args.runs, settings, range(args.seeds)):
        measured = measure(args.defense, folder, setting, args.clean, seed)
        rows.append({"run": folder.name, "clean": args.clean} | setting | {"seed": seed} | measured)
        print(rows[-1], flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(tabulate(rows, headers="keys", floatfmt=".4g"))


def measure(name: str, folder: Path, setting: dict[str, str], size: int | None, seed: int) -> dict[str, float]:
    """Purify one run's model with one setting."""
    run = open_run(folder)
    suspect = api.load(run.model_path).classifier
    target = run.goal.target
    assert target is not None
    used, kept = run.pool("flagged").labelled(target).split(len(run.pool("flagged")) // 2)
    test = run.pool("test")
    start = time.perf_counter()
    clean = run.pool("clean")
    clean = clean if size is None else clean.sample(size, generator(seed))
    available = {"model": suspect, "clean": clean, "malicious": used, "rng": generator(seed)}
    model = plugins.get("defense", name).parse(setting).run(available)
    seconds = time.perf_counter() - start
    return {
        "held_out_clean_accuracy": accuracy(model, run.pool("reserve")).value,
        "held_out_flagged_to_target": Rate.of(predict(model, kept.images) == target).value,
        "seconds": round(seconds, 1),
        "test_asr_for_the_record": attack_rates(
            model, run.trigger.on(test.take(run.goal.counted(test.labels))), run.goal
        )[0].value,
    }


if __name__ == "__main__":
    main()
