"""Fuzz every reader of strangers' files for as long as it may take.

    python -m benchmarks.fuzz --minutes 30 [--seed 0] [--target NAME...] [--json FILE] [--crashes DIR]
    python -m benchmarks.fuzz --again TARGET FOLDER

Inputs are sound files, damaged in the way of their format; the seed and an input's number give the same input again.
They are read in a worker with bounded memory, which is ended where it hangs. Whatever is not a result or one clear line
(see `oracle`) is a finding: the first of each kind is saved under --crashes as a folder, which `--again` reads with a
traceback. Ends with 1 if there were any.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

MEMORY = 6 << 30
"""Address space of a worker: torch's own 3 GiB, and room for no bomb."""


def main() -> int:
    """Run workers, one target after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FOLDER"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker[0], args.seed, int(args.worker[1]), float(args.worker[2]))
        return 0
    from benchmarks.fuzz.targets import TARGETS

    if args.again:
        TARGETS[args.again[0]].run(Path(args.again[1]))
        return 0
    chosen = args.target or list(TARGETS)
    total = sum(TARGETS[name].share for name in chosen)
    rows = []
    for name in chosen:
        rows.append(explore(name, args.seed, args.minutes * 60 * TARGETS[name].share / total, args.crashes))
        print(json.dumps(rows[-1]))
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, "minutes": args.minutes, "targets": rows}, indent=1) + "\n")
    return 1 if any(row["findings"] for row in rows) else 0


def explore(name: str, seed: int, seconds: float, crashes: Path) -> dict[str, Any]:
    """Feed one reader for so long; start a worker again where one dies or hangs."""
    outcomes: Counter[str] = Counter()
    findings: dict[str, dict[str, Any]] = {}
    slowest, number, memory = 0.0, 0, 0
    begun = time.monotonic()
    while (left := begun + seconds - time.monotonic()) > 0:
        number, died = _watch_one(name, seed, number, left, outcomes, findings, crashes)
        slowest, memory = max(slowest, died.pop("slowest", 0.0)), max(memory, died.pop("memory", 0))
        if died:
            outcomes["FINDING"] += 1
            _note(findings, name, seed, number, died["what"], crashes)
            number += 1
    took = time.monotonic() - begun
    return {
        "target": name,
        "inputs": number,
        "per_second": round(number / took, 1),
        "outcomes": dict(outcomes.most_common()),
        "slowest_s": round(slowest, 3),
        "memory_mib": memory,
        "findings": list(findings.values()),
    }


def _watch_one(
    name: str,
    seed: int,
    number: int,
    seconds: float,
    outcomes: Counter[str],
    findings: dict[str, dict[str, Any]],
    crashes: Path,
) -> tuple[int, dict[str, Any]]:
    """Follow one worker to its end; returns the number of the next input, and how the worker ended."""
    from benchmarks.fuzz.oracle import SECONDS

    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fuzz", "--seed", str(seed), "--worker", name, str(number), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout and worker.stderr
    ended: dict[str, Any] = {"slowest": 0.0, "memory": 0}
    with selectors.DefaultSelector() as selector, worker:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while True:
            # The first line comes after imports.
            if not selector.select(60 + SECONDS):
                worker.kill()
                ended["what"] = "hang: it could not be interrupted"
                break
            line = worker.stdout.readline()
            if not line:
                break
            row = json.loads(line)
            number = row["number"] + 1
            outcomes[row["kind"]] += row["count"]
            ended["slowest"] = max(ended["slowest"], row["seconds"])
            ended["memory"] = max(ended["memory"], row["memory"])
            if row["what"]:
                _note(findings, name, seed, row["number"], row["what"], crashes)
        worker.kill()
        worker.wait()
        if "what" not in ended and worker.returncode not in (0, -9):
            ended["what"] = f"the process died ({worker.returncode}): {worker.stderr.read()[-300:]}"
    return number, ended


def _note(findings: dict[str, dict[str, Any]], name: str, seed: int, number: int, what: str, crashes: Path) -> None:
    kind = what.partition(": ")[0] if not what.startswith(("forbidden", "not one")) else what[:60]
    if kind in findings:
        findings[kind]["count"] += 1
        return
    from benchmarks.fuzz.targets import lay_out

    folder = crashes / f"{name}-{seed}-{number}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        lay_out(make(name, seed, number), folder)
    findings[kind] = {"what": what, "number": number, "count": 1, "reproducer": str(folder)}


def make(name: str, seed: int, number: int) -> dict[str, bytes]:
    """The input of this number."""
    from benchmarks.fuzz.targets import TARGETS

    return TARGETS[name].make(random.Random(f"{seed}/{name}/{number}"))


def work(name: str, seed: int, number: int, seconds: float) -> None:
    """The worker's side: read inputs from this number on, and tell each outcome."""
    from benchmarks.fuzz.targets import TARGETS, try_input

    target = TARGETS[name]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="bdaudit-fuzz-") as base:
        for files in target.sound():
            try_input(target, files, Path(base))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            outcome = try_input(target, make(name, seed, number), Path(base))
            row = {
                "number": number, "kind": outcome.kind, "what": outcome.what, "seconds": outcome.seconds, "count": 1,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            number += 1


if __name__ == "__main__":
    sys.exit(main())
