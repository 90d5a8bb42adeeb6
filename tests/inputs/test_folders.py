"""Folders of images: what is written comes back; what is broken is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.errors import ImageError
from bdaudit.inputs.folders import read_folder, read_image, write_folder, write_png
from bdaudit.inputs.pool import UNKNOWN, Pool

CLASSES = ("cat", "dog", "eel")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pool_survives_being_written_and_read(tmp_path: Path, channels: int, rng: torch.Generator) -> None:
    images = torch.randint(0, 256, (5, channels, 7, 9), dtype=torch.uint8, generator=rng)
    before = Pool.of(images, torch.tensor([2, 0, 1, 0, 2]))
    write_folder(before, tmp_path / "pool")
    after = read_folder(tmp_path / "pool", classes=CLASSES, shape=(channels, 7, 9))
    order = [Path(o).stem for o in after.origin]
    index = torch.tensor([int(stem) for stem in order])
    assert torch.equal(after.images, before.images[index])
    assert torch.equal(after.labels, before.labels[index])


def test_a_flat_folder_has_unknown_labels(tmp_path: Path) -> None:
    write_folder(Pool.of(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)), tmp_path / "flat", flat=True)
    assert read_folder(tmp_path / "flat", classes=CLASSES, shape=(1, 8, 8)).labels.tolist() == [UNKNOWN] * 3


def test_subfolders_are_class_names_or_numbers(tmp_path: Path) -> None:
    for name in ("dog", "2"):
        (tmp_path / name).mkdir()
        write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / name / "x.png")
    assert sorted(read_folder(tmp_path, classes=CLASSES, shape=(1, 8, 8)).labels.tolist()) == [1, 2]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "I;16", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted(tmp_path: Path, mode: str, channels: int) -> None:
    base = Image.fromarray(np.full((8, 8), 200, dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 200 * 257, dtype=np.uint16))
    else:
        image = base.convert("RGB").quantize(4) if mode == "P" else base.convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    pixels = read_image(path, (channels, 8, 8))
    assert pixels.shape == (channels, 8, 8)
    assert abs(pixels.float().mean() - (255 if mode == "1" else 200)) <= (60 if mode == "1" else 2)


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    write_png(torch.full((3, 40, 20), 7, dtype=torch.uint8), tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", (1, 8, 8)).unique().tolist() == [7]


def broken(folder: Path, kind: str) -> None:
    folder.mkdir()
    path = folder / "x.png"
    if kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        write_png(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), path)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "empty file":
        path.touch()
    elif kind == "huge":
        Image.new("1", (20_000, 20_000)).save(path)
    elif kind == "unknown class":
        (folder / "wolf").mkdir()
        write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), folder / "wolf" / "x.png")
    elif kind == "number too large":
        (folder / "3").mkdir()
        write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), folder / "3" / "x.png")
    elif kind == "mixed":
        write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), path)
        (folder / "cat").mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "x.png: not an image"),
        ("truncated", "x.png: cannot be decoded"),
        ("empty file", "x.png: not an image"),
        ("huge", "x.png: more than the 40 megapixels"),
        ("nothing", "no images in it"),
        ("unknown class", "the model has no class 'wolf'.*cat, dog, eel"),
        ("number too large", "the model has no class '3'"),
        ("mixed", "both images and sub-folders"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    broken(tmp_path / "pool", kind)
    with pytest.raises(ImageError, match=message) as caught:
        read_folder(tmp_path / "pool", classes=CLASSES, shape=(1, 8, 8))
    assert "\n" not in str(caught.value)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "secret.png")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "x.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError, match="no images"):
        read_folder(tmp_path / "pool", classes=CLASSES, shape=(1, 8, 8))


def test_hostile_names_are_printed_harmlessly(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / "a\x1b[31m\nb.png").write_text("no")
    with pytest.raises(ImageError) as caught:
        read_folder(folder, classes=CLASSES, shape=(1, 8, 8))
    assert str(caught.value).isprintable()
