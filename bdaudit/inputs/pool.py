"""A pool of images: uint8 pixels, labels, and where each row came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bdaudit.errors import ImageError, UsageError
from bdaudit.inputs import scratch

UNKNOWN = -1
"""The label of an image whose class nobody has told us (a flat folder of flagged images)."""


@dataclass(frozen=True)
class Pool:
    """Images with labels, frozen, on one device.

    images: uint8 (N, C, H, W). labels: int64 (N,), `UNKNOWN` where not given.
    origin: one string a row (dataset and index, or file name), used in messages and bookkeeping.
    Pixels beyond `scratch.limit` lie in a mapped file, and all methods but `to` work on them piece by piece.
    """

    images: Tensor
    labels: Tensor
    origin: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ImageError(f"a pool wants uint8 images (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ImageError(
                f"a pool of {len(images)} images wants as many int64 labels, got {labels.dtype} {tuple(labels.shape)}"
            )
        if len(self.origin) != len(images):
            raise ImageError(f"a pool of {len(images)} images wants as many origins, got {len(self.origin)}")
        if labels.device != images.device:
            raise ImageError(f"images are on {images.device}, labels on {labels.device}")

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | Sequence[int] | None = None, source: str = "memory") -> Pool:
        """Make a pool from tensors: uint8 pixels, or floats in [0, 1] which are rounded to uint8."""
        if images.is_floating_point():
            if images.numel() and not (images.min() >= 0 and images.max() <= 1):
                raise ImageError("float images must lie in [0, 1] (pixels, not normalised values)")
            floats = images
            images = _filled(len(floats), floats, lambda part: (floats[part] * 255).round().to(torch.uint8))
        labels = torch.full((len(images),), UNKNOWN) if labels is None else torch.as_tensor(labels)
        origin = tuple(f"{source}/{i:06d}" for i in range(len(images)))
        return cls(images, labels.to(images.device, torch.int64), origin)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    def take(self, rows: Tensor | Iterable[int]) -> Pool:
        """Select rows by index (int64) or by mask (bool), in the order given."""
        index = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows))
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        index = index.to(torch.int64).cpu()
        on_device = index.to(self.device)
        origin = tuple(self.origin[i] for i in index.tolist())
        return Pool(scratch.gather(self.images, on_device), self.labels[on_device], origin)

    def first(self, n: int) -> Pool:
        """Select the first n rows (all, if there are fewer)."""
        return Pool(self.images[:n], self.labels[:n], self.origin[:n])

    def spread(self, most: int) -> Pool:
        """Select at most so many rows, evenly spread over all (which often come class by class)."""
        return self if len(self) <= most else self.take(evenly(len(self), most))

    def shuffled(self, rng: torch.Generator) -> Pool:
        """Reorder the rows at random."""
        return self.sample(len(self), rng)

    def sample(self, n: int, rng: torch.Generator) -> Pool:
        """Draw n rows at random (all, if there are fewer): the first n of those that `shuffled` would give."""
        return self.take(torch.randperm(len(self), generator=rng)[:n])

    def split(self, *sizes: int) -> list[Pool]:
        """Cut into consecutive, disjoint parts of the given sizes, and the rest as the last part."""
        if sum(sizes) > len(self):
            raise UsageError(f"cannot cut {sum(sizes)} rows out of a pool of {len(self)}")
        parts, start = [], 0
        for size in (*sizes, len(self) - sum(sizes)):
            rows = slice(start, start + size)
            parts.append(Pool(self.images[rows], self.labels[rows], self.origin[rows]))
            start += size
        return parts

    def labelled(self, labels: Tensor | int) -> Pool:
        """Give every row a new label, or all rows the same one."""
        if isinstance(labels, int):
            labels = torch.full_like(self.labels, labels)
        return replace(self, labels=labels.to(self.device, torch.int64))

    def with_images(self, images: Tensor) -> Pool:
        """Replace the pixels and keep labels and origins (e.g. after a trigger was applied)."""
        return replace(self, images=images)

    def map(self, change: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Pool:
        """Change the pixels, of all rows or of those that `rows` (bool) marks; each image on its own.

        change: uint8 (n, C, H, W) -> the same shape; a large pool is handed over piece by piece.
        """

        def changed(part: slice) -> Tensor:
            if rows is None:
                return change(self.images[part])
            images, marked = self.images[part].clone(), rows[part]
            if marked.any():
                images[marked] = change(images[marked])
            return images

        return self.with_images(_filled(len(self), self.images, changed))

    def to(self, device: torch.device | str) -> Pool:
        """Move to a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @staticmethod
    def concat(pools: Sequence[Pool]) -> Pool:
        """Join pools of the same image shape, in order."""
        labels = torch.cat([p.labels for p in pools])
        origin = tuple(o for p in pools for o in p.origin)
        shape = pools[0].shape
        if not (scratch.is_large(len(labels), shape) and all(p.device.type == "cpu" for p in pools)):
            return Pool(torch.cat([p.images for p in pools]), labels, origin)
        images, start = scratch.empty(len(labels), shape), 0
        for pool in pools:
            for part in scratch.parts(len(pool), shape):
                images[start + part.start : start + part.stop] = pool.images[part]
                scratch.release(images, pool.images)
            start += len(pool)
        return Pool(images, labels, origin)

    def fingerprints(self) -> Iterator[bytes]:
        """Hash each row's pixels, so that overlap between pools can be found whatever its source."""
        for part in scratch.parts(len(self), self.shape):
            for row in self.images[part].cpu().contiguous().flatten(1).numpy():
                yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            scratch.release(self.images)

    def digest(self) -> str:
        """Hash all pixels and labels (hex), for provenance."""
        total = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in scratch.parts(len(self), self.shape):
            total.update(self.images[part].cpu().contiguous().numpy().data)
            scratch.release(self.images)
        total.update(self.labels.cpu().contiguous().numpy().data)
        return total.hexdigest()


def evenly(count: int, most: int) -> list[int]:
    """Choose at most so many of `count` rows, evenly spread."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def overlap(a: Pool, b: Pool) -> int:
    """Count the rows of `a` whose pixels also occur in `b`."""
    known = set(b.fingerprints())
    return sum(f in known for f in a.fingerprints())


def distinct(pool: Pool) -> Pool:
    """Keep the first of the rows that have the same pixels."""
    first: dict[bytes, int] = {}
    for i, fingerprint in enumerate(pool.fingerprints()):
        first.setdefault(fingerprint, i)
    return pool if len(first) == len(pool) else pool.take(first.values())


def without(a: Pool, *others: Pool) -> Pool:
    """Drop the rows of `a` whose pixels also occur in any of the others."""
    known = {f for other in others for f in other.fingerprints()}
    kept = [i for i, f in enumerate(a.fingerprints()) if f not in known]
    return a if len(kept) == len(a) else a.take(kept)


def _filled(rows: int, like: Tensor, piece: Callable[[slice], Tensor]) -> Tensor:
    """Put images together from their pieces: one piece, taken as it is, within the limit or on a GPU."""
    shape = tuple(like.shape[1:])
    if like.device.type != "cpu" or not scratch.is_large(rows, shape):
        images = piece(slice(0, rows))
        scratch.release(like)
        return images
    images = scratch.empty(rows, shape)
    for part in scratch.parts(rows, shape):
        images[part] = piece(part)
        scratch.release(images, like)
    return images


def check_labels(pool: Pool, num_classes: int, what: str) -> None:
    """Make sure that every label is one of the model's classes."""
    bad = (pool.labels < 0) | (pool.labels >= num_classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ImageError(
            f"{what}: {int(bad.sum())} labels are outside the model's {num_classes} classes "
            f"(first: {pool.origin[row]} has label {int(pool.labels[row])}, expected 0..{num_classes - 1})"
        )
