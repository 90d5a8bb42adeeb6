"""Contact sheets: images before, after, and their difference times ten."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bdaudit.errors import ImageError
from bdaudit.inputs.images import opened, quiet_pillow
from bdaudit.inputs.opening import Unusable, open_below, open_folder

MAX_PIXELS = 16_000_000
GAP, LABEL, LETTERS, BACKGROUND = 4, 96, 18, 255
ROWS = ("clean", "triggered", "diff x10")


def contact_sheet(before: Tensor, after: Tensor, rows: tuple[str, str, str] = ROWS) -> Image.Image:
    """Draw three labelled rows, images (N, C, H, W) before, after, and |difference| x 10, enlarged to be seen."""
    first, second = _bytes(before), _bytes(after)
    difference = ((second.float() - first.float()).abs() * 10).clamp(0, 255).to(torch.uint8)
    return _drawn(dict(zip(rows, (first, second, difference), strict=True)))


def triptych(before: Tensor, after: Tensor, rows: tuple[str, str, str] = ("triggered", "perturbed", "diff x10")) -> str:
    """Draw the sheet of a perturbation and return it as base64 PNG, to be embedded."""
    return _embedded(contact_sheet(before, after, rows))


def sheet(rows: Mapping[str, Tensor]) -> str:
    """Draw labelled rows of images, uint8 (N, C, H, W), and return them as base64 PNG, to be embedded."""
    return _embedded(_drawn(rows))


def _drawn(rows: Mapping[str, Tensor]) -> Image.Image:
    n, _, height, width = next(iter(rows.values())).shape
    zoom = max(1, 96 // max(height, width))
    cell_h, cell_w = height * zoom + GAP, width * zoom + GAP
    drawn = Image.new("RGB", (LABEL + n * cell_w, len(rows) * cell_h + GAP), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(LETTERS)
    for r, (name, images) in enumerate(rows.items()):
        draw.text((6, GAP + r * cell_h + (cell_h - LETTERS) // 2), name, fill=(40, 40, 40), font=font)
        for c, image in enumerate(images):
            tile = Image.fromarray(_rgb(image)).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            drawn.paste(tile, (LABEL + c * cell_w, GAP + r * cell_h))
    return drawn


def _embedded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_preview(before: Tensor, after: Tensor, path: Path) -> None:
    """Write the sheet of a trigger as a PNG file."""
    contact_sheet(before, after).save(path, "PNG")


def encode(path: Path) -> str:
    """Read a stranger's PNG file and return its pixels, nothing else of it, as base64 PNG; '' if it is none.

    Links are not followed: a report is handed on, and must not take a private file along.
    """
    buffer = io.BytesIO()
    try:
        # Opened so that it cannot become a link between a look and the reading.
        with (
            quiet_pillow(),
            open_folder(path.parent) as folder,
            open_below(folder, path.name) as file,
            opened(file, ("PNG",)) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                return ""
            image.convert("RGB").save(buffer, "PNG")
    except (ImageError, Unusable):
        return ""
    return base64.b64encode(buffer.getvalue()).decode()


def _bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.cpu()
    return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def _rgb(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(array)
