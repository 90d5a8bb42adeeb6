"""Time and memory of reading images: folders of PNGs and .npz files, within the limit of memory and beyond it.

    python -m benchmarks.loading [--images 1000 10000 100000] [--json FILE]

Each line is its own process, so that its peak of memory is its own: resident memory above what Python, torch and
bdaudit took before. It reads the images and shuffles them once, as everything that uses them does. `in memory` has a
limit that nothing reaches; `on disk` one of nothing, so that both pools lie in scratch files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from bdaudit.errors import UsageError
from bdaudit.inputs import scratch
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.pool import Pool
from bdaudit.inputs.sources import open_source
from bdaudit.runtime import generator

LIMITS = {"in memory": "1024G", "on disk": "0"}


def main() -> None:
    """Make the files, measure each in a process of its own, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child)))
        return
    rows = []
    for n in args.images:
        for pool in (grey(n), colour(n)):
            with tempfile.TemporaryDirectory() as folder:
                for kind, path in write(pool, Path(folder)).items():
                    files = list(path.rglob("*.png")) if path.is_dir() else [path]
                    size = sum(f.stat().st_size for f in files)
                    for where, limit in LIMITS.items():
                        base = {"kind": kind, "shape": "x".join(map(str, pool.shape)), "files": len(files)}
                        rows.append(base | {"images": n, "megabytes": size / 1e6, "where": where} | child(path, limit))
                        print(rows[-1], file=sys.stderr, flush=True)
    print(tabulate(rows, headers="keys", floatfmt=(*["g"] * 4, ".1f", "", ".2f", ".0f", ".2f", ".1f"), intfmt=","))
    if args.json:
        machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
        args.json.write_text(json.dumps(machine | {"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def grey(n: int) -> Pool:
    """Fashion-MNIST over and over, or smooth noise of its size where it is not installed."""
    try:
        known = load_dataset("fashion-mnist").train
    except UsageError:
        known = smooth(1_000, (1, 28, 28))
    return known.take(torch.arange(n) % len(known))


def colour(n: int) -> Pool:
    """Smooth noise of CIFAR's size, which packs about as well as photographs."""
    known = smooth(1_000, (3, 32, 32))
    return known.take(torch.arange(n) % len(known))


def smooth(n: int, shape: tuple[int, int, int]) -> Pool:
    """Blurred noise with ten labels."""
    coarse = torch.rand((n, shape[0], 8, 8), generator=generator(0))
    images = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    return Pool.of((images * 255).to(torch.uint8), torch.arange(n) % 10, "smooth")


def write(pool: Pool, folder: Path) -> dict[str, Path]:
    """Write the same images in every way that is measured."""
    write_folder(pool, folder / "folder")
    arrays = {"images": pool.images.numpy(), "labels": pool.labels.numpy()}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    return {"folder": folder / "folder", "npz": folder / "plain.npz", "npz, compressed": folder / "packed.npz"}


def child(path: Path, limit: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading", "--child", str(path)]
    done = subprocess.run(command, env={**os.environ, scratch.LIMIT: limit}, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure(path: Path) -> dict[str, Any]:
    """Read and shuffle what is at a path."""
    torch.arange(4)[torch.randperm(4)]  # what torch sets up once
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    start = time.perf_counter()
    source = open_source(path)
    shape = source.shape()
    assert shape is not None
    pool = source.read(classes=source.classes(), shape=shape)
    read = time.perf_counter()
    pool.shuffled(generator(0))
    done = time.perf_counter()
    peak = resident("VmHWM") - before
    return {
        "seconds": read - start,
        "images_per_s": len(pool) / (read - start),
        "shuffle_s": done - read,
        "peak_mb": peak / 1e6,
    }


def resident(key: str) -> int:
    """Bytes of resident memory: now (VmRSS), or the most there was (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main()
