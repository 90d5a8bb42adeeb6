"""Images in NumPy's .npz files, read piece by piece; what a file claims is checked before memory is taken."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdaudit.errors import BdauditError, ImageError, one_line
from bdaudit.inputs import scratch
from bdaudit.inputs.images import MAX_PIXELS, MAX_SIDE, fit
from bdaudit.inputs.listing import label_number
from bdaudit.inputs.opening import open_regular
from bdaudit.inputs.pool import UNKNOWN, Pool

IMAGES, LABELS, CLASSES = ("images", "x"), ("labels", "y"), ("classes",)
"""The arrays that are read, each by any of its names."""
MAX_CLASSES = 100_000
MAX_HEADER = 10_000
DEFLATE = 1032
"""How much smaller deflate can make anything, at most."""
BOMB = 100
"""How much smaller images of more than `BOMB_SIZE` bytes may be; real ones are a tenth of that."""
BOMB_SIZE = 2**30


@dataclass(frozen=True)
class Arrays:
    """An .npz file whose arrays were found fit to be read.

    rows, size: of the images, (channels, height, width). last: whether channels come last in the file.
    labels: int64 (N,), or None. names: of the classes that the labels count, or ().
    """

    path: Path
    shown: str
    member: str
    rows: int
    size: tuple[int, int, int]
    last: bool
    labels: Tensor | None
    names: tuple[str, ...]

    def classes(self) -> tuple[str, ...]:
        """Name the classes: as the file does, or by the numbers up to the largest label."""
        if self.names or self.labels is None:
            return self.names
        return tuple(str(k) for k in range(int(self.labels.max()) + 1))

    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images in the file."""
        return self.size

    def sizes(self, most: int) -> set[tuple[int, int]]:
        """The height and width that all images share."""
        return {self.size[1:]}

    def read(
        self,
        *,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        notes: list[str] | None = None,
        most: int | None = None,
    ) -> Pool:
        """Read the images, converted to a shape as those of a folder are. Every one is used, or ImageError raised.

        most: keep at most so many, evenly spread; the file is read whole all the same.
        """
        pool = self._read(classes, shape)
        return pool if most is None else pool.spread(most)

    def _read(self, classes: Sequence[str], shape: tuple[int, int, int]) -> Pool:
        labels = self._labels(classes)
        images = scratch.empty(self.rows, shape)
        row_bytes = math.prod(self.size)
        step = max(1, scratch.CHUNK // row_bytes)
        with _archive(self.path, self.shown) as archive, archive.open(self.member) as member:
            _header(member)
            for start in range(0, self.rows, step):
                n = min(step, self.rows - start)
                images[start : start + n] = self._fitted(_take(member, n * row_bytes), n, shape)
                scratch.release(images)
            _take(member, 0)
        stem = one_line(self.path.name, 80)
        return Pool(images, labels, tuple(f"{stem}/{row:06d}" for row in range(self.rows)))

    def _labels(self, classes: Sequence[str]) -> Tensor:
        if self.labels is None:
            return torch.full((self.rows,), UNKNOWN)
        if not self.names:
            return self.labels
        numbers = torch.full((len(self.names) + 1,), UNKNOWN)  # the last one is for UNKNOWN itself
        for k in sorted(set(self.labels.tolist())):
            if k != UNKNOWN:
                numbers[k] = label_number(self.names[k], classes, self.shown)
        return numbers[self.labels]

    def _fitted(self, data: bytearray, n: int, shape: tuple[int, int, int]) -> Tensor:
        channels, height, width = self.size
        block = torch.frombuffer(data, dtype=torch.uint8)
        if self.last:
            block = block.reshape(n, height, width, channels)
        else:
            block = block.reshape(n, channels, height, width).permute(0, 2, 3, 1)
        if self.size == shape:
            return block.permute(0, 3, 1, 2)
        pixels = block.contiguous().numpy()
        return torch.stack([fit(Image.fromarray(p[..., 0] if channels == 1 else p), shape) for p in pixels])


def open_arrays(path: Path) -> Arrays:
    """Open an .npz file with images, and labels and names of classes if it has them.

    images (or x): uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3, whichever place that is found in.
    labels (or y): integers (N,), -1 where unknown. classes: strings; without it labels are the model's numbers.
    Raises ImageError.
    """
    shown = one_line(path, 100)
    with _archive(path, shown) as archive:
        name = _find(archive, IMAGES)
        if name is None:
            raise ImageError(f"{shown}: has no array named images (or x)")
        with archive.open(name) as member:
            dims, dtype, start = _header(member)
        size, last = _layout(dims, dtype)
        _check_claim(archive, name, start, math.prod(dims))
        labels, names = _labels(archive, dims[0]), _names(archive)
        if names and labels is not None and labels.max() >= len(names):
            raise ImageError(f"label {int(labels.max())} is none of the file's {len(names)} classes")
        return Arrays(path, shown, name, dims[0], size, last, labels, names)


@contextmanager
def _archive(path: Path, shown: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip file, and turn whatever reading it raises into ImageError."""
    try:
        with open_regular(path) as file, _Sips(os.dup(file.fileno())) as raw, zipfile.ZipFile(raw) as archive:
            yield archive
    except BdauditError as e:
        if isinstance(e, ImageError) and not str(e).startswith(shown):
            raise ImageError(f"{shown}: {e}") from e
        raise
    except Exception as e:  # a damaged archive can raise anything
        raise ImageError(f"{shown}: not an .npz file, or damaged ({one_line(e, 100)})") from e


class _Sips(io.FileIO):
    """A file that never gives more than a chunk at once: zipfile takes a list of contents of any size in one gulp."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, scratch.CHUNK) if size is not None and size >= 0 else scratch.CHUNK) or b""


def _find(archive: zipfile.ZipFile, names: tuple[str, ...]) -> str | None:
    found = [f"{name}.npy" for name in names if f"{name}.npy" in archive.NameToInfo]
    if len(found) > 1:
        raise ImageError(f"has both {' and '.join(names)}; keep one of them")
    return found[0] if found else None


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Read an array's header: shape, type, and where its data starts. A length is believed only if it is small."""
    magic = member.read(8)
    width = 2 if magic[6:7] == b"\x01" else 4
    length = member.read(width)
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise ImageError("the header of an array is too long")
    head = magic + length + member.read(int.from_bytes(length, "little"))
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ImageError("an array has fields; plain numbers are expected")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    dims, fortran, dtype = read(file)
    if fortran and len(dims) > 1:
        raise ImageError("an array lies in Fortran's order; save numpy.ascontiguousarray(it)")
    if not all(0 <= d < 2**48 for d in dims):
        raise ImageError("an array's shape makes no sense")
    return tuple(int(d) for d in dims), dtype, len(head)


def _layout(dims: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[tuple[int, int, int], bool]:
    """Tell ((channels, height, width), whether channels come last) from an array of images."""
    what = f"images are {dtype} of shape {dims}"
    if dtype != np.uint8:
        raise ImageError(f"{one_line(what, 120)}; expected uint8, pixels from 0 to 255")
    last = len(dims) == 3 or (len(dims) == 4 and dims[3] in (1, 3))
    first = len(dims) == 4 and dims[1] in (1, 3)
    if last == first:
        doubt = "channels could be in both places; give" if last else "expected"
        raise ImageError(f"{what}; {doubt} (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels")
    channels, height, width = (dims[1:4]) if first else (dims[3] if len(dims) == 4 else 1, dims[1], dims[2])
    if not dims[0] or not height or not width:
        raise ImageError(f"{what}: there are no images")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise ImageError(f"{what}: larger than images are read")
    return (channels, height, width), last


def _check_claim(archive: zipfile.ZipFile, name: str, start: int, size: int) -> None:
    """Refuse an array that its bytes in the file cannot hold, or could only as a decompression bomb."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f"{name}: compressed in a way that numpy.savez_compressed does not use")
    if info.file_size != start + size:
        raise ImageError(f"{name}: its header claims {size:,} bytes, there are {info.file_size - start:,}")
    assert archive.fp is not None
    packed = min(info.compress_size, os.fstat(archive.fp.fileno()).st_size)
    most = 1 if info.compress_type == zipfile.ZIP_STORED else BOMB if size > BOMB_SIZE else DEFLATE
    if info.file_size > most * packed:
        raise ImageError(f"{name}: claims {size:,} bytes, packed in {packed:,}; that is a decompression bomb")


def _take(member: IO[bytes], size: int) -> bytearray:
    """Read so many bytes; none: make sure that the end was reached and the checksum is right."""
    data = bytearray(member.read(size or 1))
    if len(data) != size:
        raise ImageError("an array is cut short or has more than its header says")
    return data


def _whole(archive: zipfile.ZipFile, name: str, kinds: str, what: str, most: int) -> np.ndarray[Any, Any]:
    """Read a small one-dimensional array."""
    with archive.open(name) as member:
        dims, dtype, start = _header(member)
        size = math.prod(dims) * dtype.itemsize
        if len(dims) != 1 or dtype.kind not in kinds or size > most:
            raise ImageError(f"{name}: {one_line(dtype, 40)} of shape {dims}; expected {what}")
        _check_claim(archive, name, start, size)
        data = _take(member, size) if size else bytearray()
        _take(member, 0)
    return np.frombuffer(data, dtype)


def _labels(archive: zipfile.ZipFile, rows: int) -> Tensor | None:
    name = _find(archive, LABELS)
    if name is None:
        return None
    labels = _whole(archive, name, "iu", f"integers, as many as images ({rows:,})", 8 * rows)
    if len(labels) != rows:
        raise ImageError(f"{name}: {len(labels):,} labels for {rows:,} images")
    if labels.min() < UNKNOWN or labels.max() >= MAX_CLASSES:
        raise ImageError(f"{name}: labels from {labels.min()} to {labels.max()}; expected class numbers from 0")
    return torch.from_numpy(labels.astype(np.int64))


def _names(archive: zipfile.ZipFile) -> tuple[str, ...]:
    name = _find(archive, CLASSES)
    if name is None:
        return ()
    names = _whole(archive, name, "U", f"up to {MAX_CLASSES:,} strings", 64 * MAX_CLASSES)
    if len(names) > MAX_CLASSES or len(set(names.tolist())) != len(names):
        raise ImageError(
            f"{name}: {len(names):,} names, some of them the same; expected up to {MAX_CLASSES:,}, each once"
        )
    return tuple(names.tolist())
