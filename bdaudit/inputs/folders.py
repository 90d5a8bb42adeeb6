"""Pools as folders of images: read strictly, written as PNG."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from bdaudit.errors import ImageError, one_line
from bdaudit.inputs.pool import UNKNOWN, Pool, evenly

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
MAX_PIXELS = 40_000_000
"""Larger images are refused before they are decoded: a few hundred bytes can claim gigapixels."""


def read_folder(
    folder: Path | str, *, classes: Sequence[str], shape: tuple[int, int, int], most: int | None = None
) -> Pool:
    """Read a folder of images, with one sub-folder a class or flat (labels then `UNKNOWN`).

    classes: the model's class names; a sub-folder is a class's name or its number.
    shape: (channels, height, width) that the model expects; images are converted to it. most: decode at most so
    many, evenly spread over the folder.
    Raises ImageError with one line that names the first unusable file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(
            f"{one_line(root)}: no such folder" if not root.exists() else f"{one_line(root)}: not a folder"
        )
    files = _find(root, classes)
    if not files:
        raise ImageError(f"{one_line(root)}: no images in it (looked for {', '.join(sorted(SUFFIXES))})")
    if most is not None:
        files = [files[i] for i in evenly(len(files), most)]
    pixels = torch.empty((len(files), *shape), dtype=torch.uint8)
    for row, (path, _) in enumerate(files):
        pixels[row] = read_image(path, shape)
    labels = torch.tensor([label for _, label in files])
    return Pool(pixels, labels, tuple(one_line(path) for path, _ in files))


def folder_classes(folder: Path | str) -> tuple[str, ...]:
    """Name the classes of a data folder: its sub-folders, sorted (numerically, if they are numbers)."""
    names = [p.name for p in Path(folder).iterdir() if p.is_dir() and not p.name.startswith(".")]
    if names and all(n.isdecimal() for n in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def read_image(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """Decode one image to uint8 (C, H, W) of the given shape; grey, palette and alpha are converted."""
    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning comes at a larger size than ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{one_line(path)}: {image.width} x {image.height} pixels, more than the "
                    f"{MAX_PIXELS // 1_000_000} megapixels that are read"
                )
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip and not scale
                image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as e:
        raise ImageError(
            f"{one_line(path)}: more than the {MAX_PIXELS // 1_000_000} megapixels that are read ({one_line(e, 80)})"
        ) from e
    except UnidentifiedImageError as e:
        raise ImageError(f"{one_line(path)}: not an image, whatever its name says") from e
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        # Pillow raises each of these for broken files, depending on the format.
        raise ImageError(f"{one_line(path)}: cannot be decoded ({one_line(e, 80)})") from e
    return torch.from_numpy(array.copy()).reshape(height, width, channels).permute(2, 0, 1)


def folder_names(classes: Sequence[str]) -> list[str]:
    """Name the sub-folders of classes: after them where every name can be a folder's, else by number."""
    safe = all(0 < len(c) < 100 and c.isprintable() and "/" not in c and c[0] != "." for c in classes)
    return list(classes) if safe else [str(k) for k in range(len(classes))]


def write_folder(pool: Pool, folder: Path, *, classes: Sequence[str] = (), flat: bool = False) -> None:
    """Write a pool as PNG files, one sub-folder a class, or flat with the labels kept out of sight.

    classes: names for the labels, as `read_folder` will be given them; without them the numbers are written.
    """
    names = folder_names(classes)
    for row, (image, label) in enumerate(zip(pool.images.cpu(), pool.labels.tolist(), strict=True)):
        parent = folder if flat else folder / (names[label] if names else str(label))
        parent.mkdir(parents=True, exist_ok=True)
        write_png(image, parent / f"{row:06d}.png")


def write_png(image: torch.Tensor, path: Path) -> None:
    """Write one uint8 (C, H, W) image, grey or RGB."""
    array = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path, compress_level=1)


def write_index(pool: Pool, path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write one CSV row an image: its number in the folder, its origin and the given columns."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "origin", *columns])
        for row, values in enumerate(zip(pool.origin, *columns.values(), strict=True)):
            table.writerow([f"{row:06d}", *values])


def _find(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """List (file, label), sorted; links are not followed out of the folder that was given."""
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    folders = [p for p in entries if p.is_dir() and not p.is_symlink()]
    images = [p for p in entries if _is_image(p)]
    if folders and images:
        raise ImageError(
            f"{one_line(root)}: has both images and sub-folders; give either a flat folder or one sub-folder a class"
        )
    found = [(p, UNKNOWN) for p in images]
    for sub in folders:
        inside = sorted(p for p in sub.iterdir() if _is_image(p))
        if inside:
            label = _label(sub, classes)
            found.extend((p, label) for p in inside)
    return found


def _is_image(path: Path) -> bool:
    return (
        path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file() and not path.is_symlink()
    )


def _label(folder: Path, classes: Sequence[str]) -> int:
    name = folder.name
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    listed = ", ".join(one_line(c, 20) for c in classes[:12]) + (", …" if len(classes) > 12 else "")
    raise ImageError(
        f"{one_line(folder)}: the model has no class {one_line(name, 40)!r}; name sub-folders after its "
        f"{len(classes)} classes ({listed}) or their numbers 0..{len(classes) - 1}"
    )
