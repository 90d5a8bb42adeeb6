"""Where images come from: a folder, an .npz file or a .csv index, told apart in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bdaudit.errors import ImageError, one_line
from bdaudit.inputs.arrays import open_arrays
from bdaudit.inputs.folders import list_folder
from bdaudit.inputs.index import list_index
from bdaudit.inputs.pool import Pool


class Source(Protocol):
    """Images and labels that can be read, and what is known of them before they are."""

    def classes(self) -> tuple[str, ...]:
        """Name the classes in it; () if nothing has a label."""

    def shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of the first images; None if no image is usable."""

    def sizes(self, most: int) -> set[tuple[int, int]]:
        """Heights and widths of at most so many images, evenly spread; unusable ones are left out."""

    def read(
        self,
        *,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        notes: list[str] | None = None,
        most: int | None = None,
    ) -> Pool:
        """Read all that is usable, with labels as numbers of these classes, converted to the shape.

        most: read at most so many, evenly spread, and do not warn of those that are not used.
        """


def open_source(where: Path | str) -> Source:
    """Open DIR or folder:DIR, FILE.npz or FILE.csv; raises ImageError."""
    path = source_path(where)
    if os.path.isdir(path):  # noqa: PTH112 - pathlib's raise on odd names
        return list_folder(path)
    there = os.path.exists(path)  # noqa: PTH110
    opener = _FILES.get(path.suffix.lower())
    if there and opener is not None:
        return opener(path)
    problem = "neither a folder nor an .npz or .csv file" if there else "no such folder or file"
    raise ImageError(f"{one_line(where, 160)}: {problem}; images come as a folder, FILE.npz or FILE.csv")


def is_source(where: Path | str) -> bool:
    """Whether something is there that can be opened as images."""
    path = source_path(where)
    return os.path.isdir(path) or (os.path.exists(path) and path.suffix.lower() in _FILES)  # noqa: PTH110, PTH112


def source_path(where: Path | str) -> Path:
    """Take `folder:` off, unless something has that very name."""
    return Path(where) if os.path.exists(where) else Path(str(where).removeprefix("folder:"))  # noqa: PTH110


_FILES: dict[str, Callable[[Path], Source]] = {".npz": open_arrays, ".csv": list_index}
