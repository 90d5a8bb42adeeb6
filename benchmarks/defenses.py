"""Measure defenses on run folders: C-ACC, O-ASR, DER and seconds, on pure or contaminated pools; P-ASR if asked for.

    python -m benchmarks.defenses RUN [RUN ...] --json FILE [--defense "NAME option=value ..." ...] [--clean 200 500]
        [--eps 0 0.1 0.1,0] [--flagged 108] [--ra]
    python -m benchmarks.defenses --table FILE [FILE ...] [--defense ...] [--clean 500]

Every option of a defense is at its default unless it is named; without --defense, all that tune a given model. Each is
handed what it asks for out of: so many clean images, so many flagged ones, the target, the trigger for those that know
it, and the run's training set with a fresh model for those that train on it; of these, the row says how they divided
it. eps is two shares (PL section 5): of the benign images that are triggered and labelled with the target, and of
the flagged images that are clean, `0.1,0`, or one number for both; the totals stay. Defenses that know the trigger get
pure pools only. --ra: the retuning attack afterwards, at its paper's count. Rows that FILE holds are not made again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bdaudit import api, plugins
from bdaudit.defenses.base import Defense
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.run import Run, known_poison, open_run
from bdaudit.flow.splitting import found
from bdaudit.probes.base import PAPER_COUNTS
from bdaudit.runtime import generator
from bdaudit.training.division import Division
from bdaudit.training.metrics import der
from bdaudit.training.progress import progress_shown
from benchmarks import Rows, named, rows_of, spread
from benchmarks.quick_flow import measure

NAMES = {"c_acc": "C-ACC", "o_asr": "O-ASR", "p_asr": "P-ASR", "der": "DER"}
AXES = ("run", "clean", "eps", "flagged", "seed", "defense")


def main() -> None:
    """Measure what is missing, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--defense", nargs="+", metavar='"NAME option=value ..."')
    args = with_pools(parser)
    if args:
        specs = args.defense or tuning_defenses()
        measure_all(args, {spec: plugins.get("defense", named(spec)[0]).parse(named(spec)[1]) for spec in specs})


def with_pools(parser: argparse.ArgumentParser) -> argparse.Namespace | None:
    """Add what says which pools and runs to measure on, and parse; None if a table was asked for and printed."""
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--clean", nargs="+", type=int, help="clean images (default: 500; in a table: all there are)")
    parser.add_argument("--eps", nargs="+", type=shares, default=[Contamination()])
    parser.add_argument("--flagged", type=int, default=108)
    parser.add_argument("--images", type=int, default=2000, help="test images to measure on, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ra", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE")
    args = parser.parse_args()
    if args.table:
        named_ones = getattr(args, "defense", None)  # a caller may have no such option
        rows = [row for row in rows_of(*args.table) if not args.clean or row["clean"] in args.clean]
        print(table([row for row in rows if not named_ones or row["defense"] in ("", *named_ones)]))
        return None
    args.clean = args.clean or [500]
    if not args.runs or not args.json:
        parser.error("give run folders and --json, or --table")
    return args


def measure_all(args: argparse.Namespace, defenses: Mapping[str, Defense]) -> None:
    """Measure the suspect and what each defense, by the name of its row, makes of it; skip rows that FILE holds."""
    rows = Rows(args.json)
    chosen: dict[str, Defense | None] = {"": None, **defenses}
    for run, clean, eps, name in product(map(open_run, args.runs), args.clean, args.eps, chosen):
        said = eps.clean if eps.clean == eps.flagged else str(eps)
        at = dict(zip(AXES, (run.folder.name, clean, said, args.flagged, args.seed, name), strict=True))
        defense = chosen[name]
        if rows.holds(at) or (eps != Contamination() and (defense is None or defense.oracle())):
            continue
        rows.add(at | {"attack": run.record.attack} | measured(run, defense, clean, eps, args))


def tuning_defenses() -> list[str]:
    """Name the defenses that tune a given model, rather than train one on an untrusted set."""
    found = plugins.registry().of_kind("defense").values()
    return sorted(row.cls.name for row in found if not {"fresh", "train"} & set(row.cls.wants()))


def shares(text: str) -> Contamination:
    """Read one share for both pools, or two."""
    first, comma, second = text.partition(",")
    return Contamination(float(first), float(second if comma else first))


def measured(
    run: Run, defense: Defense | None, clean: int, eps: Contamination, args: argparse.Namespace
) -> dict[str, Any]:
    """Purify a run's model by one defense, or none, and measure what comes out."""
    model, seconds, divided = api.load(run.model_path).classifier, 0.0, {}
    if defense is not None:
        known = {"model": model, **given(run, clean, eps, args.flagged, args.seed)}
        if defense.family() == "in-training":
            known |= {"fresh": fresh_like(model, generator(args.seed)), "train": run.pool("train")}
        start = time.perf_counter()
        with progress_shown():
            purified = defense.conduct(known)
        seconds = time.perf_counter() - start
        model = purified.model
        if purified.division is not None:
            divided = how_divided(purified.division, known_poison(run.folder, known["train"]))
    poisoned, _ = PAPER_COUNTS.get(run.record.attack, PAPER_COUNTS["badnets"])
    return {
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        **({"ra": poisoned} if args.ra else {}),
        **measure(run, model, retune=args.ra, poisoned=poisoned, images=args.images),
        **divided,
    }


def how_divided(division: Division, poisoned: torch.Tensor | None) -> dict[str, Any]:
    """Say which class was taken for the target, and how right the clean and the flagged rows are."""
    rates = found(division, poisoned)
    return {"target": division.target, **{name: rate.value for name, rate in rates.items() if rate.n}}


def given(
    run: Run, clean: int, eps: Contamination, flagged: int, seed: int, donor: Run | None = None
) -> dict[str, Any]:
    """What a defense may ask for beside the model: pools of these sizes, the target, the trigger, a generator."""
    pools = defender_pools(run, eps, seed, budget=clean, flagged=flagged, donor=donor)
    known = dict(zip(("clean", "malicious"), pools, strict=True))
    return known | {"target": run.goal.target, "trigger": run.trigger, "rng": generator(seed)}


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out one line a defense and pools: for each attack the means over runs, and time in parts of FT's."""
    suspects = {row["run"]: row for row in rows if not row["defense"]}
    for row in rows:
        if before := suspects.get(row["run"]):
            row["der"] = der(before["c_acc"], row["c_acc"], before["o_asr"], row["o_asr"])
    # Seconds are left out of what was measured on a busy machine.
    timed = {(*at(row), row["defense"]): row["seconds"] for row in rows if row["defense"] and "seconds" in row}
    figures = [key for key in ("c_acc", "o_asr", "p_asr", "der") if any(key in row for row in rows)]
    columns = list(product(dict.fromkeys(row["attack"] for row in rows), figures))
    lines = []
    for place in sorted({(row["defense"], row["clean"], row["eps"]) for row in rows}, key=str):
        of = [row for row in rows if (row["defense"], row["clean"], row["eps"]) == place]
        found = [
            spread(100 * row[key] for row in of if row["attack"] == attack and key in row) for attack, key in columns
        ]
        times = [
            timed[key] / timed[ft] for row in of if {key := (*at(row), place[0]), ft := (*at(row), "ft")} <= {*timed}
        ]
        lines.append([place[0] or "none", *place[1:], *found, f"{statistics.median(times):.1f}" if times else ""])
    heads = [f"{attack}: {NAMES[key]}" for attack, key in columns]
    return tabulate(lines, ["defense", "clean", "eps", *heads, "time / FT"], tablefmt="github", disable_numparse=True)


def at(row: dict[str, Any]) -> tuple[str, int, float | str]:
    """Name the model and the pools that defenses are compared on."""
    return row["run"], row["clean"], row["eps"]


if __name__ == "__main__":
    main()
