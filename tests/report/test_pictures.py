"""Contact sheets: what they show, and that they are PNG files."""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from bdaudit.report.html import png
from bdaudit.report.pictures import GAP, LABEL, contact_sheet, encode, sheet, triptych, write_preview


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet_shows_before_after_and_ten_times_the_difference(channels: int) -> None:
    """The third row is |after - before| x 10, clipped."""
    before = torch.full((2, channels, 8, 8), 100, dtype=torch.uint8)
    after = before.clone()
    after[0] += 5
    after[1] -= 90
    drawn = np.asarray(contact_sheet(before, after))
    cell = 8 * 12 + GAP
    centres = [[drawn[GAP + r * cell + 40, LABEL + c * cell + 40].tolist() for c in range(2)] for r in range(3)]
    assert centres == [[[100] * 3] * 2, [[105] * 3, [10] * 3], [[50] * 3, [255] * 3]]


def test_floats_in_the_unit_range_are_pixels_too() -> None:
    """Perturbed images arrive as floats in [0, 1] and are drawn like their bytes."""
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    assert contact_sheet(images, images / 255).tobytes() == contact_sheet(images, images).tobytes()


def test_large_images_are_not_enlarged() -> None:
    """Beyond 96 pixels a cell is the image itself."""
    images = torch.zeros((1, 3, 128, 100), dtype=torch.uint8)
    assert contact_sheet(images, images).size == (LABEL + 100 + GAP, 3 * (128 + GAP) + GAP)


def test_a_sheet_holds_its_rows_in_order_and_can_be_embedded() -> None:
    """As many rows as were given, one column an image."""
    dark, light = torch.zeros((3, 1, 8, 8), dtype=torch.uint8), torch.full((3, 1, 8, 8), 200, dtype=torch.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet({"a": dark, "b": light})))))
    cell = 8 * 12 + GAP
    assert drawn.shape == (2 * cell + GAP, LABEL + 3 * cell, 3)
    assert [drawn[GAP + r * cell + 40, LABEL + 2 * cell + 40, 0] for r in range(2)] == [0, 200]


def test_triptych_can_be_embedded(tmp_path: Path) -> None:
    """The base64 text is a PNG that the HTML report accepts, the same each time, as is a written preview."""
    images = torch.zeros((2, 1, 8, 8), dtype=torch.uint8)
    text = triptych(images, images)
    assert text == triptych(images, images)
    assert Image.open(io.BytesIO(base64.b64decode(text))).format == "PNG"
    write_preview(images, images, tmp_path / "preview.png")
    for picture in (text, encode(tmp_path / "preview.png")):
        assert png(picture) is not None


def test_a_strangers_picture_is_its_pixels_and_nothing_else(tmp_path: Path) -> None:
    """A report is handed on: no private file behind a link, nothing hidden in a picture, comes along."""
    sound = tmp_path / "a.png"
    info = PngImagePlugin.PngInfo()
    info.add_text("secret", "text")
    Image.radial_gradient("L").resize((8, 8)).save(sound, pnginfo=info)
    sound.write_bytes(sound.read_bytes() + b"secret behind it")
    raw = base64.b64decode(encode(sound))
    assert b"secret" not in raw
    assert Image.open(io.BytesIO(raw)).size == (8, 8)
    (tmp_path / "link.png").symlink_to(sound)
    (tmp_path / "text.png").write_text("private")
    Image.new("1", (5000, 5000)).save(tmp_path / "large.png")
    for name in ("link.png", "text.png", "large.png", "missing.png"):
        assert encode(tmp_path / name) == ""


def test_a_strangers_picture_may_be_damaged_or_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.radial_gradient("L").resize((8, 8)).save(path)
    (tmp_path / "link.png").symlink_to(path)
    raw = path.read_bytes()
    assert encode(path)
    # An empty profile behind the pixels, over which Pillow raises IndexError.
    path.write_bytes(raw[:-12] + bytes(4) + b"iCCP" + zlib.crc32(b"iCCP").to_bytes(4, "big") + raw[-12:])
    assert encode(path) == ""
    path.write_bytes(raw)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)  # as if it became a link right after
    assert encode(tmp_path / "link.png") == ""
