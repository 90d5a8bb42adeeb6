"""Measure what a defense does to a clean model with an innocent flagged folder: C-ACC, and that of class t alone.

    python -m benchmarks.innocent RUN [RUN ...] --json FILE [--defense sep pl] [--flagged 108 25] [--classes 0 3 4]

The model is the run's clean twin; flagged are clean images of one class, which is also the target. Rows that FILE holds
are not measured again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from bdaudit import api, plugins
from bdaudit.flow.run import open_run
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy
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
    for run, target, count, spec in product(map(open_run, args.runs), args.classes, args.flagged, args.defense):
        at = {"run": run.folder.name, "class": target, "flagged": count, "seed": args.seed, "defense": spec}
        if rows.holds(at):
            continue
        if run.reference_path is None:
            parser.error(f"{run.folder} has no clean twin")
        twin = api.load(run.reference_path).classifier
        name, options = named(spec)
        known = {"model": twin.clone(), "clean": run.pool("clean"), "target": target, "rng": generator(args.seed)}
        malicious = innocents(run, target, count, args.seed)
        tuned = plugins.get("defense", name).parse(options).run(known | {"malicious": malicious})
        test = run.pool("test")
        figures = {"c_acc": test, "of_class": test.take(test.labels == target)}
        rows.add(
            at
            | {f"{figure}_before": accuracy(twin, pool).value for figure, pool in figures.items()}
            | {f"{figure}_after": accuracy(tuned, pool).value for figure, pool in figures.items()}
        )


if __name__ == "__main__":
    main()
