"""Measure what a defense costs where there is no backdoor: C-ACC, and that of class t alone.

    python -m benchmarks.innocent RUN [RUN ...] --json FILE [--defense sep pl bsd] [--flagged 108 25] [--classes 0 3 4]

The model is the run's clean twin; flagged are clean images of one class, which is also the target. A defense that
trains on an untrusted set gets the run's without its poisoned rows, once: t is the class that it takes for the target.
Rows that FILE holds are not measured again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from bdaudit import api, plugins
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.run import Run, known_poison, open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy
from bdaudit.training.progress import progress_shown
from benchmarks import Rows, named
from benchmarks.screening import innocents


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--defense", nargs="+", default=["sep", "pl"], metavar='"NAME option=value ..."')
    parser.add_argument("--flagged", nargs="+", type=int, default=[108, 25])
    parser.add_argument("--classes", nargs="+", type=int, default=[0, 3, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = Rows(args.json)
    for run, spec in product(map(open_run, args.runs), args.defense):
        if run.reference_path is None:
            parser.error(f"{run.folder} has no clean twin")
        twin = api.load(run.reference_path).classifier
        name, options = named(spec)
        defense = plugins.get("defense", name).parse(options)
        trains = defense.family() == "in-training"
        for target, count in [(None, 0)] if trains else product(args.classes, args.flagged):
            at = {"run": run.folder.name, "class": target, "flagged": count, "seed": args.seed, "defense": spec}
            if rows.holds(at):
                continue
            known = {"model": twin.clone(), "clean": run.pool("clean"), "rng": generator(args.seed)}
            if target is None:
                known |= {"fresh": fresh_like(twin, generator(args.seed)), "train": untouched(run)}
            else:
                known |= {"target": target, "malicious": innocents(run, target, count, args.seed)}
            with progress_shown():
                made = defense.conduct(known)
            blamed = made.division.target if made.division else target
            rows.add(at | ({"target": blamed} if trains else {}) | compared(run, twin, made.model, blamed))


def untouched(run: Run) -> Pool:
    """Read a run's training set without its poisoned rows."""
    train = run.pool("train")
    poisoned = known_poison(run.folder, train)
    assert poisoned is not None  # a run's own index tells
    return train.take(~poisoned)


def compared(run: Run, before: Classifier, after: Classifier, target: int | None) -> dict[str, float]:
    """Measure both models on the run's test images, and on those of one class."""
    test = run.pool("test")
    pools = {"c_acc": test} | ({} if target is None else {"of_class": test.take(test.labels == target)})
    return {
        f"{figure}_{when}": accuracy(model, pool).value
        for when, model in (("before", before), ("after", after))
        for figure, pool in pools.items()
    }


if __name__ == "__main__":
    main()
