"""The operators of bdaudit.ops against the usual torch way, and against the speed of memory.

    python -m benchmarks.ops [OP ...] [--device cpu|cuda] [--json FILE]

Everything is measured in one run with the same threads; the candidates of a size take turns, so that a slow
moment of the machine hits all of them. Medians; the spread is that of the middle half.

    NAME        the operator as users call it: checks, and new tensors for the result
    kernel      blend's and warp's kernel alone, into memory that was written before
    fallback    what runs where the extension is not built: the same bytes from plain torch (small sizes only)
    reference   as one would write it in torch, in batches of 1,000: images uint8 -> float -> uint8
    of memory   bytes that have to move, against the same run's copy (images) or read (the rest) of a large
                tensor: 100% is the speed of memory. Small sizes, in cache, can pass it
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from unittest import mock

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from bdaudit import ops
from bdaudit.ops import extension

BATCH = 1000
# Where a call starts to pay on the CPU; on CUDA, sizes that leave the second-level cache far behind.
IMAGES = {"cpu": [1, 8, 32, 128, 1000, 10_000], "cuda": [128, 10_000, 100_000]}
SAMPLES = {"cpu": [1, 8, 128, 1000, 10_000, 50_000], "cuda": [1000, 50_000, 500_000]}
CLASSES, WIDTH, CENTRES = 10, 512, 9

Work = Callable[[], object]


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


class Case(NamedTuple):
    """One size of one operator: what is measured, the reference among it, and the bytes that have to move."""

    size: str
    moved: int
    candidates: dict[str, Work]


def once(work: Work, device: str) -> float:
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


def measure(candidates: dict[str, Work], device: str, samples: int, warm: int = 2) -> dict[str, Timing]:
    """Time all candidates in turn, `samples` times after `warm` rounds of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(samples + warm):
        for name, work in candidates.items():
            taken = once(work, device)
            if turn >= warm:
                seconds[name].append(taken)
    return {name: Timing(*statistics.quantiles(values, n=4)) for name, values in seconds.items()}


def fallback(work: Work) -> object:
    """The same call without the extension."""
    with mock.patch.object(extension, "load", lambda: None):
        return work()


def batched(work: Callable[..., Any], *tensors: Tensor) -> Any:
    """Apply to batches of 1,000 rows and put the results together."""
    parts = [work(*batch) for batch in zip(*(torch.split(t, BATCH) for t in tensors), strict=True)]
    return [torch.cat(p) for p in zip(*parts, strict=True)] if isinstance(parts[0], tuple) else torch.cat(parts)


def back_to_bytes(images: Tensor) -> Tensor:
    """Round floats to uint8 as images are."""
    return images.round().clamp(0, 255).to(torch.uint8)


def random_images(n: int, device: str) -> Tensor:
    """Draw n images of CIFAR's size."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng).to(device)


def kernel_of(name: str, device: str, *fields: Any) -> Work:
    """The kernel itself, without the operator around it."""

    def call() -> None:
        where = [torch.get_num_threads()]
        if device == "cuda":
            where = [0, torch.cuda.current_stream().cuda_stream]
        given = [f.data_ptr() if isinstance(f, Tensor) else f for f in fields]
        extension.call(f"{name}_{device}", *given, *where)

    return call


def built_for(device: str) -> bool:
    """Tell whether this device's kernels run, and not the references."""
    backend = ops.backend()
    return (backend["cuda"] if device == "cuda" else backend["cpu"]) == "extension"


def blend_cases(device: str) -> Iterator[Case]:
    """A per-pixel weight; a tenth of the rows; a mask of 4 x 4 blocks for each image."""
    for n in IMAGES[device]:
        images, out = random_images(n, device), torch.zeros_like(random_images(n, device))
        rng = torch.Generator().manual_seed(1)
        pattern = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=rng).to(device)
        weight = torch.rand(32, 32, generator=rng).to(device)
        rows = (torch.rand(n, generator=rng) < 0.1).to(device)
        blocks = (torch.rand(n, 4, 4, generator=rng) < 0.5).to(device)
        ratio, p = weight, pattern.float()

        def usual(batch: Tensor, ratio: Tensor = ratio, p: Tensor = p) -> Tensor:
            return back_to_bytes(batch.float() * (1 - ratio) + p * ratio)

        candidates: dict[str, Work] = {
            "reference": partial(batched, usual, images),
            "blend": partial(ops.blend, images, pattern, weight),
            "blend, 10% of rows": partial(ops.blend, images, pattern, weight, rows=rows),
            "blend, 4x4 blocks": partial(ops.blend, images, pattern, weight, blocks=blocks),
        }
        if built_for(device):
            fixed = ops.quantize(weight).expand(3, 32, 32).contiguous()
            candidates["blend kernel"] = kernel_of(
                "blend", device, images, pattern, fixed, 0, 0, out, *images.shape, 0, 0, 0
            )
            if n <= 128:
                candidates["blend fallback"] = partial(fallback, candidates["blend"])
        yield Case(f"{n}x3x32x32", 2 * images.numel(), candidates)


def warp_cases(device: str) -> Iterator[Case]:
    """WaNet's field, shared by all images."""
    for n in IMAGES[device]:
        images, out = random_images(n, device), torch.zeros_like(random_images(n, device))
        flow = wanet_flow().to(device)
        fixed = ops.positions(flow)

        def usual(batch: Tensor, flow: Tensor = flow) -> Tensor:
            grid = flow.expand(len(batch), -1, -1, -1)
            return back_to_bytes(F.grid_sample(batch.float(), grid, align_corners=True))

        candidates: dict[str, Work] = {
            "reference": partial(batched, usual, images),
            "warp": partial(ops.warp, images, fixed),
        }
        if built_for(device):
            candidates["warp kernel"] = kernel_of("warp", device, images, fixed, 0, 0, out, *images.shape, 0.0, 0.0)
            if n <= 128:
                candidates["warp fallback"] = partial(fallback, candidates["warp"])
        yield Case(f"{n}x3x32x32", 2 * images.numel(), candidates)


def jitter_cases(device: str) -> Iterator[Case]:
    """WaNet's noise mode: a field for each image."""
    for n in IMAGES[device]:
        images, flow = random_images(n, device), wanet_flow().to(device)

        def usual(batch: Tensor, flow: Tensor = flow) -> Tensor:
            noise = torch.rand(len(batch), 32, 32, 2, device=batch.device) * 2 - 1
            return back_to_bytes(F.grid_sample(batch.float(), (flow + noise / 32).clamp(-1, 1), align_corners=True))

        candidates: dict[str, Work] = {
            "reference": partial(batched, usual, images),
            "warp with jitter": partial(ops.warp, images, ops.positions(flow), jitter=1 / 32),
        }
        yield Case(f"{n}x3x32x32", 2 * images.numel(), candidates)


def losses_cases(device: str) -> Iterator[Case]:
    """Logits of ten classes; at the largest size in bfloat16 too (the reference in float32)."""
    for n in SAMPLES[device]:
        rng = torch.Generator().manual_seed(0)
        logits = (torch.randn(n, CLASSES, generator=rng) * 3).to(device)
        labels = torch.randint(0, CLASSES, (n,), generator=rng).to(device)
        candidates: dict[str, Work] = {
            "reference": partial(batched, usual_losses, logits, labels),
            "sample_losses": partial(ops.sample_losses, logits, labels),
        }
        if n == SAMPLES[device][-1]:
            candidates["the reference, in one batch"] = partial(usual_losses, logits, labels)
            half = {
                "reference": partial(batched, usual_losses, logits, labels),
                "sample_losses, bf16": partial(ops.sample_losses, logits.bfloat16(), labels),
            }
            yield Case(f"{n}x{CLASSES}", n * (2 * CLASSES + 8 + 4 * 4 + 8), half)
        if n <= 128 and built_for(device):
            candidates["sample_losses fallback"] = partial(fallback, candidates["sample_losses"])
        # Read: logits and labels. Written: four floats and a prediction.
        yield Case(f"{n}x{CLASSES}", n * (4 * CLASSES + 8 + 4 * 4 + 8), candidates)


def usual_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Losses as DBD's and ASD's code finds them, with entropy and confidence."""
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    ce = F.nll_loss(log_p, labels, reduction="none")
    one_hot = F.one_hot(labels, logits.shape[1]).float().clamp(min=1e-4)
    confidence, prediction = p.max(dim=1)
    return ce, 0.1 * ce - (p * one_hot.log()).sum(dim=1), torch.special.entr(p).sum(dim=1), confidence, prediction


def distance_cases(device: str) -> Iterator[Case]:
    """Features of a ResNet-18, nine centres; at the largest size in bfloat16 and by torch.cdist too."""
    for n in SAMPLES[device]:
        rng = torch.Generator().manual_seed(0)
        features = torch.randn(n, WIDTH, generator=rng).to(device)
        centres = torch.randn(CENTRES, WIDTH, generator=rng).to(device)

        def usual(batch: Tensor, centres: Tensor = centres) -> Tensor:
            return (batch[:, None] - centres).norm(dim=2).amin(dim=1)

        def by_cdist(features: Tensor = features, centres: Tensor = centres) -> Tensor:
            return torch.cdist(features, centres).amin(dim=1)

        candidates: dict[str, Work] = {
            "reference": partial(batched, usual, features),
            "min_class_distance": partial(ops.min_class_distance, features, centres),
            "torch.cdist, then amin": by_cdist,
        }
        if n == SAMPLES[device][-1]:
            half = {
                "reference": partial(batched, usual, features),
                "min_class_distance, bf16": partial(ops.min_class_distance, features.bfloat16(), centres),
            }
            yield Case(f"{n}x{WIDTH}, {CENTRES} centres", n * (2 * WIDTH + 4), half)
        if n <= 128 and built_for(device):
            candidates["min_class_distance fallback"] = partial(fallback, candidates["min_class_distance"])
        yield Case(f"{n}x{WIDTH}, {CENTRES} centres", n * (4 * WIDTH + 4), candidates)


def means_cases(device: str) -> Iterator[Case]:
    """The same features, by class; the reference sums in float32."""
    for n in SAMPLES[device]:
        rng = torch.Generator().manual_seed(0)
        features = torch.randn(n, WIDTH, generator=rng).to(device)
        labels = torch.randint(0, CENTRES, (n,), generator=rng).to(device)

        def usual(features: Tensor = features, labels: Tensor = labels) -> Tensor:
            sums = torch.zeros(CENTRES, WIDTH, device=features.device).index_add_(0, labels, features)
            return sums / torch.bincount(labels, minlength=CENTRES)[:, None]

        candidates: dict[str, Work] = {
            "reference": usual,
            "class_means": partial(ops.class_means, features, labels, CENTRES),
        }
        yield Case(f"{n}x{WIDTH}, {CENTRES} classes", n * (4 * WIDTH + 8), candidates)


def wanet_flow() -> Tensor:
    """A coarse random field, made smooth and added to the identity: WaNet's at k = 4, s = 0.5."""
    coarse = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = F.interpolate(coarse / coarse.abs().mean(), (32, 32), mode="bicubic", align_corners=True)
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 32, 32], align_corners=True)[0]
    return (identity + 0.5 * smooth[0].permute(1, 2, 0) / 32).clamp(-1, 1)


# Each operator's cases, and whether it writes as much as it reads.
OPERATORS: dict[str, tuple[Callable[[str], Iterator[Case]], str]] = {
    "blend": (blend_cases, "copy"),
    "warp": (warp_cases, "copy"),
    "jitter": (jitter_cases, "copy"),
    "sample_losses": (losses_cases, "read"),
    "min_class_distance": (distance_cases, "read"),
    "class_means": (means_cases, "read"),
}


def memory(device: str) -> dict[str, float]:
    """Bytes a second that a large copy moves, there and back, and that a large sum reads."""
    size = 30_720_000 * (1 if device == "cpu" else 20)
    source, target = (
        torch.ones(size, dtype=torch.uint8, device=device),
        torch.ones(size, dtype=torch.uint8, device=device),
    )
    floats = torch.ones(size, device=device)
    timings = measure({"copy": lambda: target.copy_(source), "read": floats.sum}, device, 31)
    return {"copy": 2 * size / timings["copy"].median, "read": 4 * size / timings["read"].median}


def run(names: list[str], device: str) -> list[Row]:
    """Measure every size of these operators."""
    rates = memory(device)
    print(f"memory: copy {rates['copy'] / 1e9:.1f} GB/s read and written, read {rates['read'] / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for cases, limit in (OPERATORS[name] for name in names):
        for case in cases(device):
            first = max(once(work, device) for work in case.candidates.values())
            samples = max(9, min(101, int(1.0 / first)))
            timings = measure(case.candidates, device, samples)
            reference = timings.pop("reference").median
            for op, timing in timings.items():
                row: Row = {
                    "op": op,
                    "device": device,
                    "size": case.size,
                    "seconds": timing.median,
                    "seconds_low": timing.low,
                    "seconds_high": timing.high,
                    "reference_seconds": reference,
                    "speedup": reference / timing.median,
                    "bandwidth_fraction": case.moved / timing.median / rates[limit],
                    "threads": torch.get_num_threads(),
                    "samples": samples,
                }
                rows.append(row)
    return rows


def main() -> None:
    """Measure, print the table, and write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"among {', '.join(OPERATORS)}; all if none")
    parser.add_argument("--device", choices=list(IMAGES), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.ops) - set(OPERATORS):
        parser.error(f"no operator {', '.join(sorted(unknown))}; expected {', '.join(OPERATORS)}")
    backend = ops.backend()
    cuda = options.device == "cuda"
    runs = backend["cuda"] if cuda else backend["cpu"]
    name = torch.cuda.get_device_name() if cuda else f"CPU ({backend['isa']})"
    print(f"torch {torch.__version__}, {name}, {backend['threads']} threads, operators by the {runs}")
    rows = run(options.ops or list(OPERATORS), options.device)
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
            headers=["op", "size", "ms", "spread", "reference ms", "speedup", "of memory"],
            disable_numparse=True,
        )
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
