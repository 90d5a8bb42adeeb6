"""One image file from anywhere, decoded to the uint8 pixels that a model takes."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from bdaudit.errors import ImageError, one_line
from bdaudit.inputs.opening import Unusable, open_regular

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""What is decoded. Pillow would take more: for an EPS it starts Ghostscript on it."""
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"}
)
"""How the names of images end, in small letters."""
MAX_PIXELS = 40_000_000
"""Larger images are refused before they are decoded: a few hundred bytes can claim gigapixels."""
MAX_SIDE = 65_535
"""JPEG's own limit. Resizing a strip of 1 x 40,000,000 would take gigabytes."""
MAX_BYTES = 8 * MAX_PIXELS
"""What the largest image takes when nothing is compressed; Pillow holds some chunks of a file in memory."""


def read_image(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """Read one image file as uint8 (C, H, W) of the given shape; ImageError says why it cannot be."""
    try:
        with open_regular(path) as file, quiet_pillow():
            return decode(file, shape)
    except Unusable as e:
        raise ImageError(f"{one_line(path)}: {e}") from e


def decode(file: BinaryIO, shape: tuple[int, int, int]) -> torch.Tensor:
    """Decode one image to uint8 (C, H, W) of the given shape; raises Unusable.

    Of an animation the first frame; turned upright as EXIF says; resized (bilinear, the aspect not kept);
    16 bits scaled to 8, floats from [0, 1]. Transparency is dropped, as by `convert("RGB")` in torchvision's
    `ImageFolder` and nearly all code that models are served with: the model under audit is to see what it
    would see in use, and that includes a trigger painted into transparent pixels, which blending with a
    background would wash out.
    """
    with opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return fit(image, shape)


def peek(file: BinaryIO) -> tuple[int, int, int]:
    """Tell an image's (channels, height, width), turned upright; raises Unusable."""
    with opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
        return 1 if grey else 3, image.height, image.width


def fit(image: Image.Image, shape: tuple[int, int, int]) -> torch.Tensor:
    """Convert a decoded image to uint8 (C, H, W) of the given shape."""
    channels, height, width = shape
    image = _eight_bits(image)
    wanted = "L" if channels == 1 else "RGB"
    if image.mode == "LAB":  # which Pillow turns into RGB only
        image = image.convert("RGB")
    if image.mode != wanted:
        image = image.convert(wanted)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings: about sizes (our limit is lower) and about metadata that nobody asked for.

    Around many images rather than around each, as warnings are filtered for all threads together.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def opened(file: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image of bounded size, and turn whatever Pillow raises over it into Unusable."""
    size = os.fstat(file.fileno()).st_size
    if not size:
        raise Unusable("empty")
    if size > MAX_BYTES:
        raise Unusable(f"larger than {MAX_BYTES // 1_000_000} MB")
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise Unusable(_TOO_LARGE, f"{image.width} x {image.height}")
            yield image
    except Unusable:
        raise
    except Image.DecompressionBombError as e:
        claimed = re.search(r"\d+(?= pixels)", str(e))  # Pillow names its own limit, which is not ours
        raise Unusable(_TOO_LARGE, f"{int(claimed[0]) / 1e6:.0f} megapixels" if claimed else "") from e
    except UnidentifiedImageError as e:
        raise Unusable("not an image, whatever its name says") from e
    except Exception as e:  # a decoder that is fed damaged bytes can raise anything
        raise Unusable("cannot be decoded", e) from e


_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} megapixels or {MAX_SIDE:,} pixels a side"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale what has more than 8 bits a pixel; Pillow would clip it."""
    if image.mode.startswith("I"):  # 16 bits, as such or in integers of 32
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65_535:
            raise Unusable("pixels beyond 16 bits")
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8))
    if image.mode == "F":
        pixels = np.asarray(image)
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # written so that NaN fails
            raise Unusable("float pixels outside [0, 1]")
        return Image.fromarray((pixels * 255).round().astype(np.uint8))
    return image
