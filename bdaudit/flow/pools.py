"""Turn whatever holds images into a pool that fits a model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bdaudit.errors import ImageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.folders import read_folder
from bdaudit.inputs.pool import UNKNOWN, Pool, check_labels

Images = str | Path | Pool | tuple[Tensor, Tensor] | Tensor
"""A folder, a pool, (uint8 or [0, 1] images (N, C, H, W), labels (N,)), or images alone."""


def read_pool(folder: Path, model: Classifier, what: str, most: int | None = None) -> Pool:
    """Read a folder of images for a model, at most so many of them, and check its labels, where it has any."""
    pool = read_folder(folder, classes=model.classes, shape=model.preprocessing.shape, most=most)
    if (pool.labels != UNKNOWN).any():
        check_labels(pool, model.num_classes, what)
    return pool


def labelled_pool(folder: Path, model: Classifier, what: str, most: int | None = None) -> Pool:
    """Read a folder whose images must have labels."""
    pool = read_pool(folder, model, what, most)
    if (pool.labels == UNKNOWN).any():
        raise ImageError(f"{folder}: {what} images need labels: put them into one sub-folder a class")
    return pool


def as_pool(images: Pool | tuple[Tensor, Tensor] | Tensor) -> Pool:
    """Make a pool of whatever holds images in memory."""
    if isinstance(images, Pool):
        return images
    return Pool.of(images) if isinstance(images, Tensor) else Pool.of(*images)


def pool_for(images: Images, model: Classifier, what: str, *, labelled: bool = False, most: int | None = None) -> Pool:
    """Make a pool of images for a model, on the CPU; `what` names it in errors.

    labelled: every image must have one. most: take at most so many, evenly spread, and decode no others.
    """
    if isinstance(images, str | Path):
        return (labelled_pool if labelled else read_pool)(Path(images), model, what, most)
    pool = as_pool(images).to("cpu")
    if pool.shape != model.preprocessing.shape:
        raise ImageError(f"{what}: images are {pool.shape}, the model takes {model.preprocessing.shape}")
    if not len(pool):
        raise ImageError(f"{what}: there are no images")
    if labelled or (pool.labels != UNKNOWN).any():
        check_labels(pool, model.num_classes, what)
    return pool if most is None else pool.spread(most)
