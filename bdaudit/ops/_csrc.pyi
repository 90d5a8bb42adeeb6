"""The compiled kernels, from csrc/bindings.cpp. Addresses are those of contiguous memory, 0 for none."""

from typing import Final

abi: Final[int]
cuda_built: Final[bool]
cuda_architectures: Final[str]
isas: Final[tuple[str, ...]]

def best_isa() -> int: ...
def cpu_features() -> dict[str, bool]: ...
def blend_cpu(
    images: int,
    pattern: int,
    weight: int,
    slots: int,
    blocks: int,
    out: int,
    n: int,
    c: int,
    h: int,
    w: int,
    masks: int,
    bh: int,
    bw: int,
    threads: int,
    isa: int = -1,
) -> None: ...
def blend_cuda(
    images: int,
    pattern: int,
    weight: int,
    slots: int,
    blocks: int,
    out: int,
    n: int,
    c: int,
    h: int,
    w: int,
    masks: int,
    bh: int,
    bw: int,
    device: int,
    stream: int,
) -> None: ...
