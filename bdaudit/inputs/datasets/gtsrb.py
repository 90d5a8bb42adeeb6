"""GTSRB, the German traffic signs (Stallkamp et al. 2012), as the official archives and torchvision lay them out."""

from __future__ import annotations

import csv
from pathlib import Path

from bdaudit.errors import ImageError, UsageError, one_line
from bdaudit.inputs.datasets.dataset import Dataset, by_class, of_splits
from bdaudit.inputs.listing import Listing

SHAPE = (3, 32, 32)
"""What the field resizes them to; the margin around a sign is kept, as it is there."""
TRAIN = ("Training", "Final_Training/Images")
TEST = "Final_Test/Images"
TRUTH = "GT-final_test.csv"
CLASSES = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80",
    "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing", "no passing for trucks",
    "right of way at crossing", "priority road", "yield", "stop", "no vehicles", "no trucks", "no entry",
    "general caution", "dangerous curve left", "dangerous curve right", "double curve", "bumpy road", "slippery road",
    "road narrows right", "road work", "traffic signals", "pedestrians", "children crossing", "bicycles crossing",
    "ice or snow", "wild animals", "end of all limits", "turn right ahead", "turn left ahead", "ahead only",
    "straight or right", "straight or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for trucks",
)  # fmt: skip


def load(root: Path, download: bool) -> Dataset:
    """Read the training and the test images; raises UsageError where there are none, ImageError for damage."""
    if download and _place(root) is None:
        from torchvision.datasets import GTSRB

        for split in ("train", "test"):
            GTSRB(root, split, download=True)
    place = _place(root)
    if place is None:
        raise UsageError(
            f"gtsrb: no GTSRB/{TRAIN[0]} or GTSRB/{TRAIN[1]} in {root} or {root / 'gtsrb'}; "
            "set BDAUDIT_DATA to the folder that holds it, or give --download"
        )
    folder = next(place / name for name in TRAIN if (place / name).is_dir())
    train = by_class(folder, "*/*.ppm")
    test = Listing(place / TEST, place / TEST)
    for name, label in _truth(place):
        test.paths.append(name)
        test.labels.append(label)
    pools = [listing.read(classes=CLASSES, shape=SHAPE) for listing in (train, test)]
    return of_splits("gtsrb", pools[0], pools[1], CLASSES)


def _place(root: Path) -> Path | None:
    """Find the folder GTSRB, which torchvision puts into one of its own."""
    places = [root / "gtsrb" / "GTSRB", root / "GTSRB"]
    return next((p for p in places for name in TRAIN if (p / name).is_dir()), None)


def _truth(place: Path) -> list[tuple[str, str]]:
    """Read (file, class number) of the test images; the table lies beside them, above them or beside GTSRB."""
    found = [p / TRUTH for p in (place.parent, place, place / TEST) if (p / TRUTH).is_file()]
    if not found:
        raise ImageError(f"{place.parent / TRUTH}: missing (the classes of the test images; the archive Final_Test_GT)")
    try:
        with found[0].open(newline="", encoding="utf-8") as file:
            return [(row["Filename"], str(int(row["ClassId"]))) for row in csv.DictReader(file, delimiter=";")]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as e:
        raise ImageError(f"{found[0]}: not the table of the test images ({one_line(e, 80)})") from e
