"""What a dataset is to a command: images, their official test split, and how networks are fed with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bdaudit.inputs.classifier import Preprocessing
from bdaudit.inputs.listing import Listing
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool


@dataclass(frozen=True)
class Dataset:
    """Images with an official (or no) test split, and how the field feeds them to a network.

    test: None where there is no official split. flip: whether mirrored images are still the same class.
    arch, epochs: what a network is trained with unless the user says otherwise.
    """

    name: str
    train: Pool
    test: Pool | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    flip: bool = False
    arch: str = "resnet18"
    epochs: int = 20


def of_splits(
    name: str, train: Pool, test: Pool, classes: tuple[str, ...], *, flip: bool = False, epochs: int = 20
) -> Dataset:
    """Make a dataset whose name is also that of its usual normalisation."""
    return Dataset(name, train, test, classes, usual_preprocessing(train.shape, name), flip=flip, epochs=epochs)


def by_class(folder: Path, *layouts: str) -> Listing:
    """List the images below a folder that match a layout, such as `*/images/*.JPEG`; the first part names the class."""
    files = sorted(path.relative_to(folder) for layout in layouts for path in folder.glob(layout))
    return Listing(folder, folder, [str(f) for f in files], [f.parts[0] for f in files])
