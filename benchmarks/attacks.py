"""Measure attacks on Fashion-MNIST as the issue of the attacks asks: C-ACC, ASR and seconds, beside a clean model.

    python -m benchmarks.attacks --out DIR --json FILE [--attack badnets "badnets label=all2all" wanet] [--seeds 0 1 2]
    python -m benchmarks.attacks --table FILE [FILE ...]

Ten thousand training images, ResNet-18 of width 16, every option at its default unless it is named; a clean twin is
trained with BadNets and stands for its seed. Each run is what `bdaudit attack` makes. Runs that lie in DIR and rows
that FILE holds are not made again. The table has the mean over seeds and, in brackets, the least and the largest.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bdaudit import api
from bdaudit.flow.implant import Sizes
from bdaudit.flow.run import AttackRecord, is_run, read_record
from bdaudit.training.progress import progress_shown
from benchmarks import Rows, named, rows_of, spread

GOALS = {
    "badnets": 99,
    "blended": 97,
    "lf": 95,
    "bypass-patch": 90,
    "bypass-blend": 90,
    "input-aware": 90,
    "sig": 85,
    "wanet": 85,
    "ssba": 85,
    "lc": 80,
    "badnets label=all2all": 80,
    "refool": 75,
    "adaptive-blend": 60,
    "adaptive-patch": 60,
    "narcissus": 60,
    "bsd-adaptive": 60,
    "bpp": None,
    "trojannn": None,
    "sep-adaptive": None,
}
"""ASR in percent; none was set for what is not in the five papers."""


def main() -> None:
    """Measure what is missing, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--attack", nargs="+", default=list(GOALS), metavar='"NAME option=value ..."')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--arch", default="resnet18:width=16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE")
    args = parser.parse_args()
    if args.table:
        print(table(rows_of(*args.table)))
        return
    if not args.out or not args.json:
        parser.error("give --out and --json, or --table")
    rows = Rows(args.json)
    for seed, spec in product(args.seeds, args.attack):
        row: dict[str, Any] = {"attack": spec, "seed": seed}
        if rows.holds(row):
            continue
        folder = args.out / f"{spec.replace(' ', '-').replace('=', '-')}-{seed}"
        if not is_run(folder):
            row |= make(spec, seed, folder, args)
        rows.add(row | figures(read_record(folder)))


def make(spec: str, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Make one run folder and say what it cost."""
    name, options = named(spec)
    start = time.perf_counter()
    with progress_shown():
        api.attack(
            name,
            data="fashion-mnist",
            out=folder,
            arch=args.arch,
            options=options,
            sizes=Sizes(train=args.images),
            with_reference=spec == "badnets",
            seed=seed,
            device=args.device,
        )
    return {"seconds": round(time.perf_counter() - start), "threads": torch.get_num_threads()}


def figures(record: AttackRecord) -> dict[str, Any]:
    """Take the figures of a run from its record."""
    measured = record.metrics["model"]
    columns: dict[str, Any] = {name: measured[name] for name in ("c_acc", "asr", "robust_acc")}
    if "reference" in record.metrics:
        columns["clean_c_acc"] = record.metrics["reference"]["c_acc"]
    return columns | {"rows": record.rows, "options": record.options}


def table(rows: list[dict[str, Any]]) -> str:
    """Group rows by attack: mean (least to largest) in percent, beside the goal and the clean model."""
    clean = {row["seed"]: row["clean_c_acc"] for row in rows if "clean_c_acc" in row}
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["attack"]].append(row)
    lines = []
    for spec in sorted(groups, key=lambda s: list(GOALS).index(s) if s in GOALS else len(GOALS)):
        runs = groups[spec]
        goal = GOALS.get(spec)
        lost = [100 * (row["c_acc"] - clean[row["seed"]]) for row in runs if row["seed"] in clean]
        seconds = [row["seconds"] for row in runs if "seconds" in row]
        columns = [spread([100 * row[name] for row in runs]) for name in ("asr", "c_acc", "robust_acc")]
        poison = runs[0]["rows"]["poisoned"]
        lines.append(
            [spec, str(len(runs)), str(poison), str(goal or ""), *columns, spread(lost), spread(seconds, digits=0)]
        )
    heads = ["attack", "seeds", "poisoned rows", "goal", "ASR", "C-ACC", "robust acc.", "C-ACC - clean", "seconds"]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
