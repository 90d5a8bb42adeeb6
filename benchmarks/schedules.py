"""Project how long the papers' schedules of in-training defenses take, from short runs of the same code (BSD, Table 4).

    OMP_NUM_THREADS=2 python -m benchmarks.schedules RUN --json FILE [--defense bsd asd dbd]

An idle machine is needed. Each option that a schedule is made of is raised by a little, alone; what that adds to the
time, by unit, times the units of the paper's schedule is its stage's time. The set is the run's training set; on a
larger one steps of MixMatch take as long and epochs longer.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bdaudit import api, plugins
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.run import Run, open_run
from bdaudit.runtime import generator
from benchmarks import Rows


@dataclass(frozen=True)
class Schedule:
    """A shortest run, and what the paper's is made of.

    stages: for each option, how much it is raised by, and how many times the paper has what one more of it adds.
    """

    shortest: dict[str, Any]
    stages: dict[str, tuple[int, float]]


MIXMATCH_STEPS = 1024
SCHEDULES = {
    # The shortest runs have 3, 3 and 2 epochs of MixMatch, of one step each, next to nothing beside their other work.
    "bsd": Schedule(
        {
            "altruistic_epochs": 1,
            "altruistic_steps": 1,
            "warm_up": 1,
            "settling": 1,
            "completing": 1,
            "dropping": 0,
            "iterations": 1,
        },
        {
            "altruistic_epochs": (2, 25),
            "settling": (2, 20 + 10),
            "completing": (2, 60),
            "dropping": (2, 30),
            "iterations": (20, 120 * MIXMATCH_STEPS / 3),
        },
    ),
    "asd": Schedule(
        {"growing": 1, "halving": 1, "meta": 1, "iterations": 1},
        {
            "growing": (2, 60),
            "halving": (2, 30),
            "meta": (2, 30),
            "iterations": (20, 120 * MIXMATCH_STEPS / 3),
        },
    ),
    "dbd": Schedule(
        {"contrast_epochs": 1, "head_epochs": 1, "epochs": 2, "iterations": 1, "min_steps": 1},
        {
            "contrast_epochs": (2, 1000),
            "head_epochs": (2, 10),
            "epochs": (2, 190),
            "iterations": (30, 190 * MIXMATCH_STEPS / 2),
        },
    ),
}


def main() -> None:
    """Measure what is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--defense", nargs="+", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows, run = Rows(args.json), open_run(args.run)
    for name in args.defense:
        at = {"run": run.folder.name, "defense": name}
        if rows.holds(at):
            continue
        stages = projected(name, SCHEDULES[name], run)
        row = {"hours": sum(stages.values()), "stages": stages, "threads": torch.get_num_threads()}
        rows.add(at | {"images": run.record.rows["train"]} | row)


def projected(name: str, schedule: Schedule, run: Run) -> dict[str, float]:
    """Say how many hours each stage of the paper's schedule takes."""
    shortest = seconds(name, schedule.shortest, run)
    return {
        option: (seconds(name, schedule.shortest | {option: schedule.shortest[option] + more}, run) - shortest)
        / more
        * times
        / 3600
        for option, (more, times) in schedule.stages.items()
    }


def seconds(name: str, options: dict[str, Any], run: Run) -> float:
    """Time one run of a defense."""
    model = api.load(run.model_path).classifier
    known = {"fresh": fresh_like(model, generator(0)), "train": run.pool("train"), "clean": run.pool("clean")}
    defense = plugins.get("defense", name).parse(options)
    start = time.perf_counter()
    defense.conduct(known | {"rng": generator(0)})
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
