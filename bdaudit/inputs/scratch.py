"""Where the pixels of pools live: in memory up to a limit, beyond it in a file on disk that is mapped.

BDAUDIT_POOL_LIMIT says how large one pool may be in memory: bytes, or with K, M or G (powers of 1,024); 2G if unset.
The file has no name from the start, so nothing stays behind however the program ends, and nobody else can
open it. It lies in TMPDIR, or else in /var/tmp, since /tmp is memory on many machines. Its space is reserved
before it is used: a disk that fills up later would kill the program in the midst of a write.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from bdaudit.errors import OutputError, UsageError, one_line

LIMIT = "BDAUDIT_POOL_LIMIT"
DEFAULT_LIMIT = 2 * 1024**3
CHUNK = 1024**2
"""How many bytes of a large pool are worked on at a time; each row may bring 64 KB of the file into memory."""
SORTED = 16
"""How many chunks of rows in random order are sorted together, so that the file is read from front to back."""

_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
"""The maps in use, by address, which is all that a tensor tells of its memory."""


def limit() -> int:
    """How many bytes of pixels one pool may hold in memory."""
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return DEFAULT_LIMIT
    found = re.fullmatch(r"([0-9]{1,18})([KMG]?)", text, re.IGNORECASE | re.ASCII)
    if found is None:
        raise UsageError(f"{LIMIT}={one_line(text, 40)}: expected bytes, or a number with K, M or G, such as 512M")
    return int(found[1]) << 10 * " KMG".index(found[2].upper() or " ")


def is_large(rows: int, shape: tuple[int, ...]) -> bool:
    """Whether so many images of one shape are beyond the limit."""
    return rows * math.prod(shape) > limit()


def empty(rows: int, shape: tuple[int, ...]) -> Tensor:
    """Make room for images, uint8 (rows, *shape), in memory or on disk; raises OutputError if the disk lacks it."""
    if not is_large(rows, shape):
        return torch.empty((rows, *shape), dtype=torch.uint8)
    area = _map(rows * math.prod(shape))
    tensor = torch.frombuffer(area, dtype=torch.uint8).reshape(rows, *shape)
    _mapped[tensor.data_ptr()] = area
    return tensor


def parts(rows: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut rows of images into pieces to work on one after the other: one piece within the limit."""
    step = max(1, CHUNK // max(1, math.prod(shape))) if is_large(rows, shape) else max(1, rows)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def gather(images: Tensor, rows: Tensor) -> Tensor:
    """Copy rows (int64) of images in the order given, from wherever they are to wherever there is room."""
    shape = tuple(images.shape[1:])
    if images.device.type != "cpu" or not (_area(images) or is_large(len(rows), shape)):
        return images[rows]
    copied = empty(len(rows), shape)
    step = max(1, CHUNK // max(1, math.prod(shape)))
    pixels = torch.empty((min(len(rows), SORTED * step), *shape), dtype=torch.uint8)
    start = 0
    for block in torch.split(rows, SORTED * step):
        wanted, place = block.sort()
        for few, where in zip(torch.split(wanted, step), torch.split(place, step), strict=True):
            pixels[where] = images[few]
            release(images)
        copied[start : start + len(block)] = pixels[: len(block)]
        release(copied)
        start += len(block)
    return copied


def release(*tensors: Tensor) -> None:
    """Let go of the memory that mapped images were read into; they stay where they are, on disk."""
    for tensor in tensors:
        area = _area(tensor)
        if area is not None:
            area.madvise(mmap.MADV_DONTNEED)


def _area(tensor: Tensor) -> mmap.mmap | None:
    return _mapped.get(tensor.untyped_storage().data_ptr()) if _mapped and tensor.device.type == "cpu" else None


def folder() -> Path:
    """Where scratch files lie."""
    if os.environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK | os.X_OK):
        return Path(tempfile.gettempdir())
    return Path("/var/tmp")


def _map(size: int) -> mmap.mmap:
    place = folder()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            free = os.statvfs(place)
            if free.f_bavail * free.f_frsize < size:
                raise OSError(errno.ENOSPC, "not enough free space")
            os.posix_fallocate(file.fileno(), 0, size)
            area = mmap.mmap(file.fileno(), size)
            area.madvise(mmap.MADV_RANDOM)  # else each row would bring 2 MB
            return area
    except (OSError, OverflowError) as e:
        raise OutputError(
            f"{one_line(place, 100)}: no room for {size / 1024**3:,.3f} GiB of images ({_reason(e)}); "
            f"set TMPDIR to a folder on a larger disk, or {LIMIT} to hold more in memory"
        ) from e


def _reason(error: OSError | OverflowError) -> str:
    return one_line((error.strerror if isinstance(error, OSError) else None) or error, 80)
