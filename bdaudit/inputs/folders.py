"""Pools as folders of images: read whatever is in them, written as PNG."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

import torch
from PIL import Image

from bdaudit.errors import ImageError
from bdaudit.inputs.images import SUFFIXES
from bdaudit.inputs.listing import Listing
from bdaudit.inputs.opening import Unusable, open_folder
from bdaudit.inputs.pool import Pool


def read_folder(
    folder: Path | str, *, classes: Sequence[str], shape: tuple[int, int, int], notes: list[str] | None = None
) -> Pool:
    """Read a folder of images, with one sub-folder a class or flat (labels then `UNKNOWN`).

    classes: the model's class names; a sub-folder is a class's name or its number.
    shape: (channels, height, width) that the model expects; images are converted to it.
    Files that are not used are named in one `UnusedFiles` warning, whose text is also added to `notes`.
    Raises ImageError if nothing is left, or a sub-folder with images is no class.
    """
    return list_folder(Path(folder)).read(classes=classes, shape=shape, notes=notes)


def list_folder(folder: Path) -> Listing:
    """List the images of a folder, or of its sub-folders, sorted. No link is followed below the folder itself."""
    found = Listing(folder, folder)
    with open_folder(folder) as handle:
        images, names = _scan(handle, "", found)
        for name in names:
            with open_folder(name, below=handle) as inner:
                inside, deeper = _scan(inner, f"{name}/", found)
            found.paths.extend(inside)
            found.labels.extend([name] * len(inside))
            for folder_within in deeper:
                found.unused.add(f"{name}/{folder_within}/", Unusable("a folder within a sub-folder"))
            if not inside:
                found.unused.add(f"{name}/", Unusable("a sub-folder without images"))
    if images and found.paths:
        raise ImageError(
            f"{found.shown}: has both images and sub-folders with images; give either a flat folder or one "
            "sub-folder a class"
        )
    found.paths.extend(images)
    found.labels.extend([None] * len(images))
    return found


def _scan(handle: int, prefix: str, found: Listing) -> tuple[list[str], list[str]]:
    """Sort the entries of an open folder into (paths of images, names of sub-folders); hidden ones are skipped."""
    images, folders = [], []
    with os.scandir(handle) as entries:
        for entry in sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name):
            if entry.is_symlink():
                found.unused.add(prefix + entry.name, Unusable("a link"))
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif not entry.is_file(follow_symlinks=False):
                found.unused.add(prefix + entry.name, Unusable("not a file"))
            elif PurePosixPath(entry.name).suffix.lower() in SUFFIXES:
                images.append(prefix + entry.name)
            else:
                found.unused.add(prefix + entry.name, Unusable("not named like an image"))
    return images, folders


def folder_names(classes: Sequence[str]) -> list[str]:
    """Name the sub-folders of classes: after them where every name can be a folder's, else by number."""
    safe = all(c.isprintable() and 0 < len(c.encode()) < 200 and "/" not in c and c[0] != "." for c in classes)
    return list(classes) if safe and len(set(classes)) == len(classes) else [str(k) for k in range(len(classes))]


def write_folder(pool: Pool, folder: Path, *, classes: Sequence[str] = (), flat: bool = False) -> list[str]:
    """Write a pool as PNG files, one sub-folder a class, or flat with the labels kept out of sight.

    classes: names for the labels, as `read_folder` will be given them; without them the numbers are written.
    Returns the files' paths below the folder.
    """
    names = folder_names(classes)
    paths = []
    for row, (image, label) in enumerate(zip(pool.images.cpu(), pool.labels.tolist(), strict=True)):
        parent = folder if flat else folder / (names[label] if names else str(label))
        parent.mkdir(parents=True, exist_ok=True)
        write_png(image, parent / f"{row:06d}.png")
        paths.append((parent / f"{row:06d}.png").relative_to(folder).as_posix())
    return paths


def write_png(image: torch.Tensor, path: Path) -> None:
    """Write one uint8 (C, H, W) image, grey or RGB."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path, compress_level=1)


def write_index(pool: Pool, path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write one CSV row an image: its number in the folder, its origin and the given columns."""
    rows = enumerate(zip(pool.origin, *columns.values(), strict=True))
    write_table(path, ["image", "origin", *columns], ([f"{row:06d}", *values] for row, values in rows))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(chain([header], rows))
