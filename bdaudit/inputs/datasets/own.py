"""A dataset of somebody's own images."""

from __future__ import annotations

from bdaudit.errors import ImageError, one_line
from bdaudit.inputs.datasets.dataset import Dataset
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import UNKNOWN
from bdaudit.inputs.sources import open_source, source_path


def own_images(name: str) -> Dataset:
    """Take somebody's own images; a folder may be split into train/ and test/."""
    where = source_path(name)
    parts = [where / "train", where / "test"]
    split = all(p.is_dir() for p in parts)
    source = open_source(parts[0] if split else where)
    classes = source.classes()
    if len(classes) < 2:
        raise ImageError(
            f"{one_line(name, 160)}: needs at least two class sub-folders with images, or labels of two classes"
        )
    shape = source.shape()
    if shape is None:
        raise ImageError(f"{one_line(name, 160)}: no usable images in it")
    train = source.read(classes=classes, shape=shape)
    if (train.labels == UNKNOWN).any():
        raise ImageError(f"{one_line(name, 160)}: {int((train.labels == UNKNOWN).sum())} images have no label")
    test = open_source(parts[1]).read(classes=classes, shape=shape) if split else None
    preprocessing = usual_preprocessing(shape, "[-1,1]")  # there are no published statistics
    kind = "folder:" if where.is_dir() else ""
    shown = tuple(one_line(n, 100) for n in classes)
    return Dataset(f"{kind}{one_line(where.resolve())}", train, test, shown, preprocessing)
