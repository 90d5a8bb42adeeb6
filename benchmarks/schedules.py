"""Project how long the papers' schedules of in-training defenses take, from short runs of the same code (BSD, Table 4).

    OMP_NUM_THREADS=2 python -m benchmarks.schedules RUN --json FILE [--defense bsd asd dbd] [--images 2000]
        [--like 50000] [--repeats 3]

An idle machine is needed. Each option that a schedule is made of is raised by a little, alone; what that adds to the
time, median over repeats in turn, times how often the paper's schedule has it is that stage's time. Epochs over the
set are reckoned for a larger one (CIFAR-10's, by default) in proportion; MixMatch's have so many steps on any set.
"""

from __future__ import annotations

import argparse
import statistics
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
    parser.add_argument("--images", type=int, default=2000, help="of the run's training set, to measure on")
    parser.add_argument("--like", type=int, default=50_000, help="images to project for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows, run = Rows(args.json), open_run(args.run)
    for name in args.defense:
        at = {"run": run.folder.name, "defense": name, "images": args.images, "like": args.like}
        if not rows.holds(at):
            stages = projected(name, SCHEDULES[name], run, args)
            rows.add(at | {"hours": sum(stages.values()), "stages": stages, "threads": torch.get_num_threads()})


def projected(name: str, schedule: Schedule, run: Run, args: argparse.Namespace) -> dict[str, float]:
    """Say how many hours each stage of the paper's schedule takes."""
    model, train = api.load(run.model_path).classifier, run.pool("train").first(args.images)
    known = {"fresh": fresh_like(model, generator(0)), "train": train, "clean": run.pool("clean")}
    trials = {"": schedule.shortest}
    for option, (more, _) in schedule.stages.items():
        trials[option] = schedule.shortest | {option: schedule.shortest[option] + more}
    seconds(name, schedule.shortest, known)  # imports what it needs
    times = [{what: seconds(name, options, known) for what, options in trials.items()} for _ in range(args.repeats)]
    hours = {}
    for option, (more, often) in schedule.stages.items():
        added = statistics.median(of[option] - of[""] for of in times) / more
        hours[option] = added * often / 3600 * (1 if option == "iterations" else args.like / args.images)
    return hours


def seconds(name: str, options: dict[str, Any], known: dict[str, Any]) -> float:
    """Time one run of a defense."""
    defense = plugins.get("defense", name).parse(options)
    start = time.perf_counter()
    defense.conduct(known | {"fresh": known["fresh"].clone(), "rng": generator(0)})
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
