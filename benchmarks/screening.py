"""Measure the screening alone: what it moves and drops, by contamination, by how many are flagged, and by depth.

    python -m benchmarks.screening RUN [RUN ...] --json FILE

No model is trained. Where a run has a clean twin, that is screened as well with innocent images of each class in turn
taken for flagged: whatever it moves then is a mistake. Rows that FILE holds, of this seed or another, are not measured
again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bdaudit import api
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.screening import Screening, screen
from benchmarks import Rows


def main() -> None:
    """Print the table, row by row as it is made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--eps", nargs="+", type=float, default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("--flagged", nargs="+", type=int, default=[108, 25, 5])
    parser.add_argument(
        "--depth", nargs="*", type=float, default=[0.25, 0.75, 1.0], help="beside .5; at eps .1, and innocent"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = Rows(args.json)
    for run in map(open_run, args.runs):
        backdoored(run, args, rows)
        innocent(run, args, rows)
    print(tabulate(rows.rows, headers="keys", floatfmt=".3f"))


def backdoored(run: Run, args: argparse.Namespace, rows: Rows) -> None:
    """Screen contaminated pools of the run, and count what each row truly is."""
    model, target = api.load(run.model_path).classifier, run.goal.target
    assert target is not None
    settings = [(eps, count, 0.5) for eps in args.eps for count in args.flagged]
    for eps, count, depth in [*settings, *((0.1, max(args.flagged), depth) for depth in args.depth)]:
        at = {"run": run.folder.name, "eps": eps, "flagged": count, "depth": depth, "seed": args.seed}
        if rows.holds(at):
            continue
        clean, flagged = defender_pools(run, Contamination(eps, eps), args.seed, flagged=count)
        found = screen(model, clean, flagged, target, generator(args.seed), depth=depth)
        triggered = torch.arange(len(clean)) >= len(clean) - round(eps * len(clean))
        pure = torch.arange(count) < count - round(eps * count)
        counts = {
            "triggered_left": f"{int((triggered & ~found.moved).sum())} of {int(triggered.sum())}",
            "clean_moved": f"{int((~triggered & found.moved).sum())} of {int((~triggered & (clean.labels == target)).sum())}",
            "clean_left_flagged": f"{int((~pure & ~found.dropped).sum())} of {int((~pure).sum())}",
            "triggered_dropped": f"{int((pure & found.dropped).sum())} of {int(pure.sum())}",
        }
        rows.add(at | told(found) | counts)


def innocent(run: Run, args: argparse.Namespace, rows: Rows) -> None:
    """Screen the clean twin with clean images of one class taken for flagged."""
    if run.reference_path is None:
        return
    model = api.load(run.reference_path).classifier
    clean = run.pool("clean")
    for depth, target, count in product([0.5, *args.depth], range(len(run.record.classes)), args.flagged):
        at = {"run": f"{run.folder.name}, clean twin", "eps": f"innocent, class {target}"}
        at |= {"flagged": count, "depth": depth, "seed": args.seed}
        if rows.holds(at):
            continue
        found = screen(
            model, clean, innocents(run, target, count, args.seed), target, generator(args.seed), depth=depth
        )
        counts = {
            "clean_moved": f"{int(found.moved.sum())} of {int((clean.labels == target).sum())}",
            "triggered_dropped": f"{int(found.dropped.sum())} of {count}",
        }
        rows.add(at | told(found) | counts)


def innocents(run: Run, target: int, count: int, seed: int) -> Pool:
    """Draw clean images of one class, which no model was trained on."""
    others = run.pool("reserve").shuffled(generator(seed))
    return others.take(others.labels == target).first(count)


def told(found: Screening) -> dict[str, Any]:
    """Whether the pools could be told apart, and the AUC."""
    return {"at": found.at, "told_apart": not found.doubt, "auc": round(found.auc[0], 3), "low": round(found.auc[1], 3)}


if __name__ == "__main__":
    main()
