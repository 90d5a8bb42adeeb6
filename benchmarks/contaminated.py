"""Measure defenses on contaminated pools: C-ACC, O-ASR, and P-ASR at the retuning attack's counts in its paper.

    python -m benchmarks.contaminated RUN [RUN ...] [--defense "NAME option=value ..." ...] [--eps 0 0.1] [--json FILE]

eps is both shares (PL section 5): of the benign images that are triggered and labelled with the target, and of the
flagged images that are clean. The totals stay. Defenses that know the trigger get pure pools only. Rows that FILE holds
already are not measured again, so that a long table can be made in parts.
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
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.run import open_run
from bdaudit.probes.base import PAPER_COUNTS
from bdaudit.runtime import generator
from bdaudit.training.progress import progress_shown
from benchmarks.quick_flow import measure


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--defense", nargs="+", default=["pl", "sep", "ep"], metavar='"NAME option=value ..."')
    parser.add_argument("--eps", nargs="+", type=float, default=[0.1, 0.0])
    parser.add_argument("--flagged", type=int, default=108)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    for folder, eps, defense in product(args.runs, args.eps, args.defense):
        row = {"run": folder.name, "defense": defense, "eps": eps, "flagged": args.flagged, "seed": args.seed}
        if any(row.items() <= known.items() for known in rows):
            continue
        name, *options = defense.split()
        chosen = plugins.get("defense", name).parse(dict(o.split("=", 1) for o in options))
        if chosen.oracle() and eps:
            continue
        run = open_run(folder)
        clean, malicious = defender_pools(run, Contamination(eps, eps), args.seed, flagged=args.flagged)
        known = {"clean": clean, "malicious": malicious, "target": run.goal.target, "trigger": run.trigger}
        start = time.perf_counter()
        with progress_shown():
            model = chosen.run({"model": api.load(run.model_path).classifier, **known, "rng": generator(args.seed)})
        row["seconds"] = round(time.perf_counter() - start)
        poisoned, _ = PAPER_COUNTS[run.record.attack]
        rows.append(row | {"ra": poisoned} | measure(run, model, retune=True, poisoned=poisoned))
        print(rows[-1], flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(tabulate(rows, headers="keys", floatfmt=".3f"))


if __name__ == "__main__":
    main()
