"""One image: every mode, depth and orientation comes out as the pixels that it shows; bombs are refused early."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.errors import ImageError
from bdaudit.inputs.images import MAX_BYTES, peek, read_image
from bdaudit.inputs.opening import open_regular

GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def shown(path: Path, channels: int = 3, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    pixels = read_image(path, (channels, *size))
    assert pixels.dtype == torch.uint8
    array = pixels.permute(1, 2, 0).numpy()
    return array[..., 0] if channels == 1 else array


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGB", "png"), ("RGB", "bmp"), ("RGB", "tif"), ("RGB", "PNG")]
)
def test_plain_images_come_out_as_they_are(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GREY if mode == "L" else COLOUR).save(path)
    expected = np.repeat(GREY[..., None], 3, axis=2) if mode == "L" else COLOUR
    assert (shown(path) == expected).all()


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_transparency_is_dropped_so_that_a_hidden_trigger_is_seen(tmp_path: Path, suffix: str) -> None:
    """What torchvision's ImageFolder feeds a model, whatever a viewer shows."""
    path = tmp_path / f"x.{suffix}"
    alpha = np.zeros((8, 8, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([COLOUR, alpha], axis=2)).save(
        path, **({"lossless": True, "exact": True} if suffix == "webp" else {})
    )
    assert (shown(path) == COLOUR).all()


def test_grey_with_alpha_and_palettes_with_transparency(tmp_path: Path) -> None:
    Image.fromarray(np.stack([GREY, 255 - GREY], axis=-1), mode=None).save(tmp_path / "la.png")
    assert (shown(tmp_path / "la.png", 1) == GREY).all()
    palette = Image.fromarray(COLOUR).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "one.png", transparency=3)
    palette.save(tmp_path / "many.png", transparency=bytes(range(64)))
    for name in ("p", "one", "many"):
        assert (shown(tmp_path / f"{name}.png") == expected).all()


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "x.png")
    assert (shown(tmp_path / "x.png", 1) == np.where(GREY > 127, 255, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f"x.{suffix}")
    assert (shown(tmp_path / f"x.{suffix}", 1) == GREY).all()


def test_sixteen_bits_of_colour_are_scaled_within_a_level(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOUR.astype(np.uint16) * 257)
    (tmp_path / "x.png").write_bytes(png(8, 8, 16, 2, zlib.compress(rows)))
    assert np.abs(shown(tmp_path / "x.png").astype(int) - COLOUR).max() <= 1


def test_big_endian_tiff_of_sixteen_bits(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (8, 8), (GREY.astype(np.uint16) * 257).astype(">u2").tobytes())
    image.save(tmp_path / "x.tif")
    assert (shown(tmp_path / "x.tif", 1) == GREY).all()


def test_floats_are_read_from_zero_to_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(GREY.astype(np.float32) / 255).save(path)
    assert (shown(path, 1) == GREY).all()
    for wrong in (GREY.astype(np.float32), np.full((8, 8), np.nan, dtype=np.float32)):
        Image.fromarray(wrong).save(path)
        with pytest.raises(ImageError, match=r"x.tif: float pixels outside \[0, 1\]"):
            shown(path)


def test_integers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match="beyond 16 bits"):
        shown(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str, channels: int) -> None:
    flat = Image.new("RGB", (8, 8), (200, 40, 90))
    image = flat.convert(mode) if mode != "LAB" else lab(flat)
    image.save(tmp_path / "x.tif")
    expected = (200, 40, 90) if channels == 3 else (round(0.299 * 200 + 0.587 * 40 + 0.114 * 90),)
    got = read_image(tmp_path / "x.tif", (channels, 8, 8)).float().mean((1, 2))
    assert torch.allclose(got, torch.tensor(expected).float(), atol=4)


def lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert converted is not None
    return converted


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Stored as a camera would: turned the other way round, with the tag that turns it back."""
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :16] = 255  # bright at the top left
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.ascontiguousarray(turned)).convert("RGB").save(path, exif=exif, quality=95)
    with open_regular(path) as file:
        assert peek(file) == (3, 16, 32)
    got = shown(path, 1, (16, 32))
    assert got[2:6, 2:14].min() > 200
    assert max(got[10:, :].max(), got[:, 18:].max()) < 50


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], duration=100, **options)
    assert shown(tmp_path / f"x.{suffix}")[0, 0].tolist() == [255, 0, 0]


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    Image.new("RGB", (20, 40), (7, 7, 7)).save(tmp_path / "x.png")
    assert (shown(tmp_path / "x.png", 1) == 7).all()


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGBA", 3)])
def test_a_peek_tells_grey_from_colour(mode: str, channels: int, tmp_path: Path) -> None:
    Image.new(mode, (5, 7)).save(tmp_path / "x.png")
    with open_regular(tmp_path / "x.png") as file:
        assert peek(file) == (channels, 7, 5)


def png(width: int, height: int, depth: int, kind: int, data: bytes, *before: tuple[bytes, bytes]) -> bytes:
    """A PNG of the given chunks, checksums right, with an empty end."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


BOMBS = {
    "gigapixels": png(100_000, 100_000, 8, 2, b""),
    "more than 40 megapixels": png(7_000, 7_000, 8, 0, b""),
    "a strip of one pixel": png(1, 40_000_000, 8, 0, b""),
    "colour profile": png(8, 8, 8, 0, zlib.compress(bytes(72)), (b"iCCP", b"x\0\0" + bomb(1 << 28))),
    "text": png(8, 8, 8, 0, zlib.compress(bytes(72)), (b"zTXt", b"x\0\0" + bomb(1 << 28))),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) (w) file closefile\n%%EOF\n",
    "ppm that claims much": b"P6 99999999 99999999 255\n",
    "gif that claims much": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
    "bmp of negative size": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -8, -8, 1, 24, 0, 0, 0, 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.png").write_bytes(BOMBS[kind])
    with pytest.raises(ImageError, match=r"x\.png: ") as caught:
        read_image(tmp_path / "x.png", (3, 8, 8))
    assert "\n" not in str(caught.value)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("r+b") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match="larger than 320 MB"):
        read_image(tmp_path / "x.png", (1, 8, 8))


def test_of_what_is_cut_off_nothing_but_the_end_is_forgiven(tmp_path: Path) -> None:
    for suffix in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(COLOUR).save(buffer, suffix)
        whole = buffer.getvalue()
        (tmp_path / "whole").write_bytes(whole)
        for length in range(0, len(whole), max(1, len(whole) // 25)):
            (tmp_path / "x").write_bytes(whole[:length])
            try:
                pixels = read_image(tmp_path / "x", (3, 8, 8))
            except ImageError:
                continue
            assert torch.equal(pixels, read_image(tmp_path / "whole", (3, 8, 8))), (suffix, length)
