"""What bdaudit does a second beside plain loops, and what else its users wait for.

    python -m benchmarks.throughput [PART ...] [--device cpu|cuda] [--shape 1x28x28|3x32x32] [--json FILE]

Everything is measured in one run, candidates in turn, medians; compare ratios, not seconds. Both sides have the same
network, images, batches, passes and threads, and start from pixels in memory.

    loops     images a second of ft, fst, retuning, QRA, evaluation, MixMatch and of the data path alone, against
              the loops of `reference`; what share of our time the network's own arithmetic is, and what speed-up would
              be left if all else were free; the network against a large product of matrices
    waiting   start-up of commands, the demo, rendering a report
    parts     where a whole `bdaudit purify` spends its time, from files to a file
    together  two stages of a bench side by side, a thread each, against each alone
    growth    tuning on 1, 2, 4 and 8 times the images; planning 10, 100 and 1,000 cells
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bdaudit import ops
from benchmarks.throughput import growth, loops, mixmatch, together, waiting


def measured_loops(bench: loops.Bench, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time all cases."""
    peak = loops.share_of_peak(bench)  # first, since it also warms up
    cases = [*loops.cases(bench), mixmatch.case(bench)]
    rows = [loops.measured(case, args.device, args.repeats) for case in cases]
    loops.with_tests(rows, bench)
    return {"rows": rows, "peak": peak}


def measured_waiting(bench: loops.Bench, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Time commands and reports."""
    return waiting.start_up(args.repeats) + waiting.rendering(folder, args.device, args.repeats)


def measured_parts(bench: loops.Bench, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Profile one purification."""
    return waiting.parts(bench, folder, args.purify[0], args.purify[1:])


def measured_together(bench: loops.Bench, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Time two stages side by side, on the CPU."""
    return together.side_by_side(bench.pool, args.arch, folder, args.repeats)


def measured_growth(bench: loops.Bench, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time growing numbers of images and of cells."""
    return {
        "tuning images": growth.tuning(args.shape, args.images, args.device, args.repeats),
        "planned cells": growth.planning(args.repeats),
    }


MEASURED = {
    "loops": measured_loops,
    "waiting": measured_waiting,
    "parts": measured_parts,
    "together": measured_together,
    "growth": measured_growth,
}


def main() -> None:
    """Measure what is asked for, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"among {', '.join(MEASURED)}; all if none")
    parser.add_argument("--device", choices=list(loops.GOALS), default="cpu")
    parser.add_argument("--shape", choices=list(loops.POOLS), default="1x28x28")
    parser.add_argument("--arch", default="resnet18:width=16")
    parser.add_argument("--images", type=int, default=1000, help="to tune, query and evaluate with")
    parser.add_argument("--epochs", type=int, default=1, help="of every loop, on both sides")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loops' DataLoader, beside none")
    parser.add_argument("--repeats", type=int, default=3, help="at least 3")
    parser.add_argument("--purify", nargs="+", default=["fst"], metavar="DEFENSE [NAME=VALUE]", help="for parts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(MEASURED):
        parser.error(f"no part {', '.join(sorted(unknown))}; expected {', '.join(MEASURED)}")
    if args.repeats < 3 or args.images < 64:
        parser.error("too little to measure: at least 3 repeats and 64 images")
    bench = loops.Bench.make(args.arch, args.shape, args.images, args.epochs, args.workers, args.device)
    backend = ops.backend()
    results: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, {backend['isa']}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arch": args.arch,
        "shape": args.shape,
        "images": args.images,
        "epochs": args.epochs,
        "repeats": args.repeats,
    }
    print(", ".join(f"{key} {value}" for key, value in results.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts or MEASURED:
            start = time.perf_counter()
            results[part] = MEASURED[part](bench, args, Path(folder))
            print(f"\n{part} ({time.perf_counter() - start:.0f} s)\n", file=sys.stderr)
            show(results[part])
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


def show(result: Any) -> None:
    """Print whatever a part found as tables."""
    if isinstance(result, dict) and "rows" in result:
        print(tabulate(list(lines(result["rows"])), headers="keys", disable_numparse=True))
        print("\nforward and backward:", ", ".join(f"{k} {v:.3g}" for k, v in result["peak"].items()))
    elif isinstance(result, dict) and all(isinstance(v, list) for v in result.values()):
        for name, rows in result.items():
            print(f"{name}\n{tabulate(rows, headers='keys', floatfmt='.3f')}")
    else:
        print(tabulate(result if isinstance(result, list) else [result], headers="keys", floatfmt=".3f"), flush=True)


def lines(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """A line for each way in which a thing is done plainly."""
    for row in rows:
        shares = {
            "arithmetic": f"{row['arithmetic_share']:.0%}" if "ceiling" in row else "",
            "ceiling": f"{row['ceiling']:.1f}x" if "ceiling" in row else "",
        }
        for name, plain in row["plain"].items():
            yield line(row, name, f"{plain['images_per_s']:,.0f}", plain["speedup"]) | shares
        if tests := row.get("with_tests_after_each_epoch"):
            yield line(row, f"and {tests['tested']:,} tested an epoch (reckoned)", "", tests["speedup"])


def line(row: dict[str, Any], plain: str, rate: str, speedup: float) -> dict[str, str]:
    """Put one comparison into columns."""
    return {
        "what": row["what"],
        "images/s": f"{row['images_per_s']:,.0f}",
        "plain loop": plain,
        "its images/s": rate,
        "speed-up": f"{speedup:.1f}x",
        "goal": f"{row['goal']:g}x",
    }


if __name__ == "__main__":
    main()
