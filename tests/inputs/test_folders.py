"""Folders of images: what is written comes back; what is odd is named in one warning; nothing else is touched."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from bdaudit.errors import ImageError, UnusedFiles
from bdaudit.inputs import listing
from bdaudit.inputs.folders import folder_names, list_folder, read_folder, write_folder, write_index, write_png
from bdaudit.inputs.index import list_index
from bdaudit.inputs.opening import Unusable, open_below, open_folder
from bdaudit.inputs.pool import UNKNOWN, Pool

CLASSES = ("cat", "dog", "eel")
SHAPE = (1, 8, 8)
PIXELS = torch.arange(64, dtype=torch.uint8).reshape(SHAPE)


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


def test_an_index_written_beside_a_folder_gives_the_pool_in_its_own_order(tmp_path: Path, rng: torch.Generator) -> None:
    before = Pool.of(
        torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8, generator=rng), torch.tensor([2, 0, 1, 0, 2])
    )
    paths = write_folder(before, tmp_path / "train", classes=CLASSES)
    columns = {"path": [f"train/{p}" for p in paths], "label": before.labels.tolist()}
    write_index(before, tmp_path / "train.csv", columns)
    after = list_index(tmp_path / "train.csv").read(classes=CLASSES, shape=SHAPE)
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.labels, before.labels)


def test_a_flat_folder_has_unknown_labels(tmp_path: Path) -> None:
    write_folder(Pool.of(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)), tmp_path / "flat", flat=True)
    assert read_folder(tmp_path / "flat", classes=CLASSES, shape=SHAPE).labels.tolist() == [UNKNOWN] * 3


def test_subfolders_are_class_names_or_numbers(tmp_path: Path) -> None:
    for name in ("dog", "2"):
        (tmp_path / name).mkdir()
        write_png(PIXELS, tmp_path / name / "x.png")
    assert sorted(read_folder(tmp_path, classes=CLASSES, shape=SHAPE).labels.tolist()) == [1, 2]


@pytest.mark.parametrize("classes", [("a", "a"), ("a/b", "c"), ("", "c"), (".a", "c"), ("é" * 150, "c"), ("a\n", "c")])
def test_names_that_cannot_be_those_of_folders_are_replaced_by_numbers(classes: tuple[str, ...]) -> None:
    assert folder_names(classes) == ["0", "1"]


def good(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(PIXELS, folder / name)


def text(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("not an image")  # type: ignore[return-value]


def truncated(folder: Path) -> None:
    write_png(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), folder / "x.png")
    (folder / "x.png").write_bytes((folder / "x.png").read_bytes()[:200])


def bound_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # Relative to an open folder, as a socket's path may have 108 bytes only.
        handle = os.open(folder, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{handle}/x.png")
        os.close(handle)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "text under an image's name": (text("x.png"), "not an image, whatever its name says (1: x.png)"),
    "truncated": (truncated, "cannot be decoded (1: x.png: "),
    "empty file": (lambda d: (d / "x.PNG").touch(), "empty (1: x.PNG)"),
    "huge": (lambda d: Image.new("1", (7_000, 7_000)).save(d / "x.png"), "more than 40 megapixels"),
    "strip": (lambda d: Image.new("1", (1, 70_000)).save(d / "x.png"), "65,535 pixels a side (1: x.png: 1 x 70000)"),
    "Thumbs.db": (text("Thumbs.db"), "not named like an image (1: Thumbs.db)"),
    "partial download": (text("x.png.part"), "not named like an image (1: x.png.part)"),
    "__MACOSX": (lambda d: good(d, "__MACOSX/._x.png"), "a sub-folder without images (1: __MACOSX/)"),
    "control characters": (text("a\x1b[31m\nb.png"), "not an image, whatever its name says (1: a\ufffd[31m\ufffdb.png)"),
    "right to left": (text("a\u202egnp.png"), "(1: a\ufffdgnp.png)"),
    "undecodable": (lambda d: Path(os.fsdecode(os.fsencode(d) + b"/\xff.png")).touch(), "empty (1: \ufffd.png)"),
    "255 bytes": (text("é" * 125 + "x.png"), "(1: " + "é" * 39 + "…)"),
    "dangling link": (lambda d: (d / "x.png").symlink_to(d / "nowhere"), "a link (1: x.png)"),
    "loop": (lambda d: (d / "x.png").symlink_to(d / "x.png"), "a link (1: x.png)"),
    "link to the folder": (lambda d: (d / "cat").symlink_to(d), "a link (1: cat)"),
    "device": (lambda d: (d / "x.png").symlink_to("/dev/zero"), "a link (1: x.png)"),
    "pipe": (lambda d: os.mkfifo(d / "x.png"), "not a file (1: x.png)"),
    "socket": (bound_socket, "not a file (1: x.png)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_named_and_the_rest_is_read(tmp_path: Path, kind: str) -> None:
    make, expected = ODD[kind]
    good(tmp_path, "a.png", "z.png")
    make(tmp_path)
    notes: list[str] = []
    with pytest.warns(UnusedFiles) as caught:
        pool = read_folder(tmp_path, classes=CLASSES, shape=SHAPE, notes=notes)
    assert (len(pool), len(caught)) == (2, 1)
    assert (pool.images == PIXELS).all()
    assert notes == [str(caught[0].message).replace(str(tmp_path), tmp_path.name)]
    assert f"{tmp_path.name}: 1 of 3 entries are not used: " in notes[0]
    assert expected in notes[0]
    assert notes[0].isprintable()


@pytest.mark.parametrize("kind", ODD)
def test_where_nothing_usable_is_left_that_is_an_error_with_the_reasons(tmp_path: Path, kind: str) -> None:
    make, expected = ODD[kind]
    make(tmp_path)
    with pytest.raises(ImageError, match="no usable images in it") as caught:
        read_folder(tmp_path, classes=CLASSES, shape=SHAPE)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_hidden_files_are_passed_over_without_a_word(tmp_path: Path) -> None:
    good(tmp_path, "a.png", ".hidden.png", ".hidden/b.png")
    (tmp_path / ".DS_Store").touch()
    assert len(read_folder(tmp_path, classes=CLASSES, shape=SHAPE)) == 1


def test_all_sorts_together_make_one_warning_of_bounded_length(tmp_path: Path) -> None:
    good(tmp_path, *(f"cat/{i}.png" for i in range(9)), "dog/x.JPG", "dog/more/deep.png")
    for i in range(50):
        (tmp_path / "dog" / f"{'n' * 200}{i}.txt").touch()
        (tmp_path / "cat" / f"{i}.gif").write_text("GIF89a")
    with pytest.warns(UnusedFiles) as caught:
        pool = read_folder(tmp_path, classes=CLASSES, shape=SHAPE)
    assert pool.labels.tolist() == [0] * 9 + [1]
    message = str(caught[0].message)
    assert "101 of 111 entries" in message
    assert "not named like an image (50: " in message
    assert "a folder within a sub-folder (1: dog/more/)" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images in it"),
        (["wolf/x.png", "cat/x.png"], "the model has no class 'wolf'.*cat, dog, eel"),
        (["3/x.png"], "the model has no class '3'"),
        (["1" * 200 + "/x.png"], "the model has no class '111"),
        (["x.png", "cat/x.png"], "both images and sub-folders"),
    ],
)
def test_what_would_give_wrong_labels_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    """A class that is silently left out is worse than an abort."""
    good(tmp_path, *names)
    with pytest.raises(ImageError, match=message) as caught:
        read_folder(tmp_path, classes=CLASSES, shape=SHAPE)
    assert str(caught.value).isprintable()


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    good(tmp_path, "secret/x.png", "pool/cat/a.png")
    (tmp_path / "pool" / "cat" / "x.png").symlink_to(tmp_path / "secret" / "x.png")
    (tmp_path / "pool" / "dog").symlink_to(tmp_path / "secret")
    with pytest.warns(UnusedFiles, match=r"2 of 3 entries are not used: a link \(2: dog, cat/x.png\)"):
        assert read_folder(tmp_path / "pool", classes=CLASSES, shape=SHAPE).origin == ("cat/a.png",)


def test_the_folder_given_may_be_a_link_itself(tmp_path: Path) -> None:
    good(tmp_path, "pool/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    assert len(read_folder(tmp_path / "link", classes=CLASSES, shape=SHAPE)) == 1


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_link_put_in_place_after_the_listing_is_not_followed(tmp_path: Path, swapped: str) -> None:
    good(tmp_path, "secret/a.png", "pool/cat/a.png", "pool/dog/a.png")
    listed = list_folder(tmp_path / "pool")
    if swapped == "file":
        (tmp_path / "pool/cat/a.png").unlink()
        (tmp_path / "pool/cat/a.png").symlink_to(tmp_path / "secret/a.png")
    else:
        (tmp_path / "pool/cat").rename(tmp_path / "elsewhere")
        (tmp_path / "pool/cat").symlink_to(tmp_path / "secret")
    with pytest.warns(UnusedFiles, match=r"a link.* \(1: cat/a.png\)"):
        assert listed.read(classes=CLASSES, shape=SHAPE).origin == ("dog/a.png",)


def test_a_pipe_put_in_place_after_the_listing_is_not_waited_for(tmp_path: Path) -> None:
    good(tmp_path, "a.png", "b.png")
    listed = list_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.warns(UnusedFiles, match=r"not a file \(1: a.png\)"):
        assert len(listed.read(classes=CLASSES, shape=SHAPE)) == 1


@pytest.mark.parametrize("path", ["../x", "a/../x", "/etc/passwd", "a//x", "./x", "", "x/", "a\0b", "\ud800"])
def test_only_plain_paths_are_opened_below_a_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "x").touch()
    (tmp_path / "a" / "x").touch()
    with open_folder(tmp_path) as folder, pytest.raises(Unusable):
        open_below(folder, path)


def test_reading_leaves_no_file_open_and_writes_nothing(tmp_path: Path) -> None:
    good(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "dog" / "c.png").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    times = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    with pytest.warns(UnusedFiles):
        read_folder(tmp_path, classes=CLASSES, shape=SHAPE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == times


def test_the_common_shape_is_that_of_the_first_usable_image_in_colour_if_any_is(tmp_path: Path) -> None:
    good(tmp_path, "cat/b.png", "dog/a.png")
    (tmp_path / "cat" / "a.png").touch()
    assert list_folder(tmp_path).shape() == SHAPE
    Image.new("RGB", (30, 40)).save(tmp_path / "dog" / "b.png")
    assert list_folder(tmp_path).shape() == (3, 8, 8)


def test_the_classes_of_a_folder_are_those_of_its_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    good(tmp_path, "10/a.png", "9/a.png")
    (tmp_path / "empty").mkdir()
    assert list_folder(tmp_path).classes() == ("9", "10")


def test_pillows_own_warnings_stay_inside(tmp_path: Path) -> None:
    Image.new("P", (8, 8)).save(tmp_path / "x.png", transparency=bytes(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(listing.Listing(tmp_path, tmp_path, ["x.png"], [None]).read(classes=(), shape=SHAPE)) == 1
