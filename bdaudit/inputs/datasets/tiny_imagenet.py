"""Tiny-ImageNet (Stanford CS231n), as its archive unpacks, or with the validation images sorted into classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bdaudit.errors import ImageError, UsageError, one_line
from bdaudit.inputs.datasets.dataset import Dataset, by_class, of_splits
from bdaudit.inputs.listing import Listing

SHAPE = (3, 64, 64)
FOLDER = "tiny-imagenet-200"
LAYOUTS = ("*/images/*.JPEG", "*/*.JPEG")
WHERE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load(root: Path, download: bool) -> Dataset:
    """Read the training images, and the validation images as the test set: those called test have no labels.

    Classes are in the order of their WordNet numbers, as in `ImageFolder` and the field's models, not of `wnids.txt`.
    Raises UsageError where they are not there, ImageError where they are damaged.
    """
    place = root / FOLDER
    if not (place / "train").is_dir():
        there_is_none = "there is no downloader for it: " if download else ""
        raise UsageError(
            f"tiny-imagenet: no {FOLDER}/train in {root}; {there_is_none}unpack {WHERE} there, "
            "or set BDAUDIT_DATA to the folder that holds it"
        )
    train, test = by_class(place / "train", *LAYOUTS), place / "val"
    validation = _annotated(test) if (test / "images").is_dir() else by_class(test, *LAYOUTS)
    wnids = train.classes()
    pools = [listing.read(classes=wnids, shape=SHAPE) for listing in (train, validation)]
    return of_splits("tiny-imagenet", pools[0], pools[1], _names(place / "words.txt", wnids), flip=True)


def _annotated(folder: Path) -> Listing:
    """List the validation images with the classes that their table gives: file, class and a box, tabs between."""
    path = folder / "val_annotations.txt"
    found = Listing(folder / "images", folder)
    for row in _table(path):
        if len(row) < 2:
            raise ImageError(f"{path}: not the table of the validation images ({one_line(row, 80)})")
        found.paths.append(row[0])
        found.labels.append(row[1])
    return found


def _names(path: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Name the classes by their first word in `words.txt`, and by number where that is missing or not one's own."""
    rows = _table(path) if path.is_file() else []
    words = {row[0]: one_line(row[1].partition(",")[0].strip(), 100) for row in rows if len(row) > 1}
    names = [words.get(wnid, wnid) for wnid in wnids]
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else wnid for name, wnid in zip(names, wnids, strict=True))


def _table(path: Path) -> list[list[str]]:
    try:
        return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as e:
        raise ImageError(f"{path}: cannot be read ({one_line(e, 80)})") from e
