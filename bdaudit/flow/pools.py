"""Turn whatever holds images into a pool that fits a model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bdaudit.errors import ImageError, one_line
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import UNKNOWN, Pool, check_labels
from bdaudit.inputs.sources import open_source

Images = str | Path | Pool | tuple[Tensor, Tensor] | Tensor
"""A folder, .npz or .csv file, a pool, (uint8 or [0, 1] images (N, C, H, W), labels (N,)), or images alone."""


def read_pool(
    where: Path | str, model: Classifier, what: str, *, notes: list[str] | None = None, most: int | None = None
) -> Pool:
    """Read images for a model and check their labels, where they have any.

    notes: gets a line about files that are not used. most: read at most so many, evenly spread, without such a line.
    """
    pool = open_source(where).read(classes=model.classes, shape=model.preprocessing.shape, notes=notes, most=most)
    if (pool.labels != UNKNOWN).any():
        check_labels(pool, model.num_classes, what)
    return pool


def labelled_pool(
    where: Path | str, model: Classifier, what: str, *, notes: list[str] | None = None, most: int | None = None
) -> Pool:
    """Read images that must have labels."""
    pool = read_pool(where, model, what, notes=notes, most=most)
    if (pool.labels == UNKNOWN).any():
        raise ImageError(f"{one_line(where)}: {what} images need labels: put them into one sub-folder a class")
    return pool


def as_pool(images: Pool | tuple[Tensor, Tensor] | Tensor) -> Pool:
    """Make a pool of whatever holds images in memory."""
    if isinstance(images, Pool):
        return images
    return Pool.of(images) if isinstance(images, Tensor) else Pool.of(*images)


def pool_for(
    images: Images,
    model: Classifier,
    what: str,
    *,
    labelled: bool = False,
    notes: list[str] | None = None,
    most: int | None = None,
) -> Pool:
    """Make a pool of images for a model, on the CPU; `what` names it in errors.

    labelled: every image must have a label. notes: gets a line about files that are not used. most: take at most
    so many, evenly spread, and decode no others.
    """
    if isinstance(images, str | Path):
        return (labelled_pool if labelled else read_pool)(images, model, what, notes=notes, most=most)
    pool = as_pool(images).to("cpu")
    if pool.shape != model.preprocessing.shape:
        raise ImageError(f"{what}: images are {pool.shape}, the model takes {model.preprocessing.shape}")
    if not len(pool):
        raise ImageError(f"{what}: there are no images")
    if labelled or (pool.labels != UNKNOWN).any():
        check_labels(pool, model.num_classes, what)
    return pool if most is None else pool.spread(most)
