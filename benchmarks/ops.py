"""The operators of bdaudit.ops against the usual torch way, and against the speed of memory.

    python -m benchmarks.ops [--device cpu|cuda] [--json FILE]

Everything is measured in one run with the same threads; the candidates of a size take turns, so that a slow
moment of the machine hits all of them. Medians; the spread is that of the middle half.

    call         bdaudit.ops.blend as users call it: checks, and a new tensor for the result
    kernel       the operator's kernel alone, into memory that was written before
    clone        Tensor.clone, which makes a new tensor as a call does
    reference    uint8 -> float -> blend -> round -> uint8 in batches of 1,000, as one would write it in torch
    copy         the faster of Tensor.copy_ and of the kernel with no image selected, into memory that was
                 written before; a blend moves as many bytes (one read and one write a pixel), and `of copy` is
                 its speed relative to the copy of the largest size, so that small sizes, in cache, can pass it
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from tabulate import tabulate
from torch import Tensor

from bdaudit import ops
from bdaudit.ops import extension

BATCH = 1000
# Where a call starts to pay on the CPU; on CUDA, sizes that leave the second-level cache far behind.
SIZES = {"cpu": [1, 8, 32, 128, 1000, 10_000], "cuda": [128, 10_000, 100_000]}


class Row(TypedDict):
    """One line of the table, and of the JSON file."""

    op: str
    device: str
    size: str
    seconds: float
    seconds_low: float
    seconds_high: float
    reference_seconds: float
    speedup: float
    bandwidth_fraction: float
    threads: int
    samples: int


class Timing(NamedTuple):
    """Median and quartiles of one candidate's seconds."""

    low: float
    median: float
    high: float


def once(work: Callable[[], object], device: str) -> float:
    """Seconds for one run, by the device's own clock."""
    if device == "cuda":
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    begun = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begun
    del result  # Freed after the clock has stopped, for all alike.
    return seconds


def measure(candidates: dict[str, Callable[[], object]], device: str, samples: int) -> dict[str, Timing]:
    """Time all candidates in turn, `samples` times after two rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(samples + 2):
        for name, work in candidates.items():
            taken = once(work, device)
            if turn >= 2:
                seconds[name].append(taken)
    return {name: Timing(*statistics.quantiles(values, n=4)) for name, values in seconds.items()}


def float_blend(images: Tensor, pattern: Tensor, weight: Tensor) -> Tensor:
    """Blend as one would write it in torch."""
    p = pattern.float()
    return torch.cat(
        [
            (batch.float() * (1 - weight) + p * weight).round().clamp(0, 255).to(torch.uint8)
            for batch in torch.split(images, BATCH)
        ]
    )


def blend_candidates(n: int, device: str) -> dict[str, Callable[[], object]]:
    """What is measured for n images of CIFAR's size."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng).to(device)
    pattern = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=rng).to(device)
    weight = torch.rand(32, 32, generator=rng).to(device)
    rows = (torch.rand(n, generator=rng) < 0.1).to(device)
    blocks = (torch.rand(n, 4, 4, generator=rng) < 0.5).to(device)
    out = torch.zeros_like(images)
    candidates: dict[str, Callable[[], object]] = {
        "reference": lambda: float_blend(images, pattern, weight),
        "copy_": lambda: out.copy_(images),
        "clone": lambda: images.clone(),
        "blend (call)": lambda: ops.blend(images, pattern, weight),
        "blend 10% of rows (call)": lambda: ops.blend(images, pattern, weight, rows=rows),
        "blend in 4x4 blocks (call)": lambda: ops.blend(images, pattern, weight, blocks=blocks),
    }
    backend = ops.backend()
    if (backend["cuda"] if device == "cuda" else backend["cpu"]) == "extension":
        quantized = ops.quantize(weight).expand(3, 32, 32).contiguous()
        none = torch.full((n,), -1, device=device)

        def kernel(slots: int) -> None:
            addresses = images.data_ptr(), pattern.data_ptr(), quantized.data_ptr(), slots, 0, out.data_ptr()
            where = [torch.get_num_threads()]
            if device == "cuda":
                where = [images.get_device(), torch.cuda.current_stream().cuda_stream]
            extension.call(f"blend_{device}", *addresses, *images.shape, 0, 0, 0, *where)

        candidates["blend (kernel)"] = lambda: kernel(0)
        candidates["copy by kernel"] = lambda: kernel(none.data_ptr())
    return candidates


def run(device: str) -> list[Row]:
    """Measure every size, largest first: its copy is the speed of memory."""
    rows: list[Row] = []
    copy_rate = 0.0
    for n in reversed(SIZES[device]):
        samples = 15 if n >= 10_000 else 101
        timings = measure(blend_candidates(n, device), device, samples)
        copies = [timings.pop(name).median for name in ("copy_", "copy by kernel") if name in timings]
        reference = timings.pop("reference").median
        moved = 2 * n * 3 * 32 * 32
        copy_rate = copy_rate or moved / min(copies)
        for op, timing in reversed(timings.items()):
            row: Row = {
                "op": op,
                "device": device,
                "size": f"{n}x3x32x32",
                "seconds": timing.median,
                "seconds_low": timing.low,
                "seconds_high": timing.high,
                "reference_seconds": reference,
                "speedup": reference / timing.median,
                "bandwidth_fraction": moved / timing.median / copy_rate,
                "threads": torch.get_num_threads(),
                "samples": samples,
            }
            rows.append(row)
        if n == SIZES[device][-1]:
            print(f"copy: {copy_rate / 1e9:.1f} GB/s read and written, at {n}x3x32x32")
    return rows[::-1]


def main() -> None:
    """Measure, print the table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SIZES), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    backend = ops.backend()
    cuda = options.device == "cuda"
    runs = backend["cuda"] if cuda else backend["cpu"]
    name = torch.cuda.get_device_name() if cuda else f"CPU ({backend['isa']})"
    print(f"torch {torch.__version__}, {name}, {backend['threads']} threads, blend by the {runs}")
    rows = run(options.device)
    print(
        tabulate(
            [
                [
                    row["op"],
                    row["size"],
                    f"{row['seconds'] * 1e3:.3f}",
                    f"{row['seconds_low'] * 1e3:.3f} to {row['seconds_high'] * 1e3:.3f}",
                    f"{row['reference_seconds'] * 1e3:.3f}",
                    f"{row['speedup']:.1f}x",
                    f"{row['bandwidth_fraction']:.0%}",
                ]
                for row in rows
            ],
            headers=["op", "size", "ms", "spread", "reference ms", "speedup", "of copy"],
            disable_numparse=True,
        )
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
