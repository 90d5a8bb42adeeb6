"""NumPy's .npz: every layout is told apart; what a file claims is checked before memory is taken."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bdaudit.errors import ImageError
from bdaudit.inputs import scratch
from bdaudit.inputs.arrays import open_arrays
from bdaudit.inputs.folders import read_folder, write_folder
from bdaudit.inputs.pool import UNKNOWN, Pool

CLASSES = ("cat", "dog", "eel")
IMAGES = np.arange(4 * 8 * 9, dtype=np.uint8).reshape(4, 8, 9)
COLOUR = np.stack([IMAGES, 255 - IMAGES, IMAGES // 2], axis=-1)


def save(path: Path, packed: bool = False, **named: Any) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **named)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (IMAGES, (1, 8, 9)),
        (IMAGES[..., None], (1, 8, 9)),
        (IMAGES[:, None], (1, 8, 9)),
        (COLOUR, (3, 8, 9)),
        (COLOUR.transpose(0, 3, 1, 2).copy(), (3, 8, 9)),
    ],
)
def test_every_layout_gives_the_same_images(tmp_path: Path, images: Any, shape: tuple[int, ...], packed: bool) -> None:
    opened = open_arrays(save(tmp_path / "x.npz", packed, images=images, labels=np.array([2, 0, 1, -1], dtype=np.int8)))
    assert opened.shape() == shape
    pool = opened.read(classes=CLASSES, shape=opened.shape())
    expected = IMAGES[:, None] if shape[0] == 1 else COLOUR.transpose(0, 3, 1, 2)
    assert np.array_equal(pool.images.numpy(), expected)
    assert pool.labels.tolist() == [2, 0, 1, UNKNOWN]
    assert pool.origin[3] == "x.npz/000003"


def test_x_and_y_are_names_as_well_and_labels_may_be_missing(tmp_path: Path) -> None:
    opened = open_arrays(save(tmp_path / "x.npz", x=IMAGES, y=np.arange(4, dtype=">u2")))
    assert opened.classes() == ("0", "1", "2", "3")
    assert opened.read(classes=opened.classes(), shape=(1, 8, 9)).labels.tolist() == [0, 1, 2, 3]
    plain = open_arrays(save(tmp_path / "plain.npz", x=IMAGES))
    assert plain.classes() == ()
    assert plain.read(classes=CLASSES, shape=(1, 8, 9)).labels.tolist() == [UNKNOWN] * 4


def test_named_classes_are_found_among_the_models(tmp_path: Path) -> None:
    labels = np.array([0, 1, -1, 0])
    opened = open_arrays(save(tmp_path / "x.npz", images=IMAGES, labels=labels, classes=["eel", "cat", "unused"]))
    assert opened.read(classes=CLASSES, shape=(1, 8, 9)).labels.tolist() == [2, 0, UNKNOWN, 2]
    with pytest.raises(ImageError, match="the model has no class 'eel'"):
        opened.read(classes=("cat", "dog"), shape=(1, 8, 9))


def test_images_of_another_size_or_colour_are_converted_as_those_of_a_folder_are(tmp_path: Path) -> None:
    pool = Pool.of(torch.from_numpy(COLOUR.transpose(0, 3, 1, 2).copy()))
    write_folder(pool, tmp_path / "folder", flat=True)
    path = save(tmp_path / "x.npz", images=COLOUR)
    for shape in ((3, 8, 9), (1, 8, 9), (3, 16, 5), (1, 4, 4)):
        expected = read_folder(tmp_path / "folder", classes=CLASSES, shape=shape).images
        assert torch.equal(open_arrays(path).read(classes=CLASSES, shape=shape).images, expected)


class Bait:
    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("/tmp/bdaudit-bait", "w")  # never called


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"labels": np.zeros(4, dtype=int)}, "no array named images"),
        ({"images": IMAGES, "x": IMAGES}, "has both images and x"),
        ({"images": IMAGES.astype(np.float32)}, "images are float32 of shape .4, 8, 9.; expected uint8"),
        ({"images": IMAGES[0]}, r"expected \(N, H, W\)"),
        ({"images": np.zeros((4, 8, 8, 4), dtype=np.uint8)}, "with 1 or 3 channels"),
        ({"images": np.zeros((4, 3, 8, 3), dtype=np.uint8)}, "channels could be in both places"),
        ({"images": IMAGES[:0]}, "there are no images"),
        ({"images": np.zeros((4, 0, 8), dtype=np.uint8)}, "there are no images"),
        ({"images": np.zeros((1, 1, 70_000), dtype=np.uint8)}, "larger than images are read"),
        ({"images": np.asfortranarray(IMAGES)}, "Fortran"),
        ({"images": np.array([Bait()] * 4)}, "images are object"),
        ({"images": IMAGES, "labels": np.zeros(3, dtype=int)}, "3 labels for 4 images"),
        ({"images": IMAGES, "labels": np.zeros(4)}, "expected integers"),
        ({"images": IMAGES, "labels": np.zeros((4, 1), dtype=int)}, "expected integers"),
        ({"images": IMAGES, "labels": np.array([Bait()] * 4)}, "expected integers"),
        ({"images": IMAGES, "labels": np.array([0, 0, 0, -2])}, "labels from -2 to 0"),
        ({"images": IMAGES, "labels": np.array([0, 0, 0, 2**63], dtype=np.uint64)}, "labels from 0 to 9223"),
        ({"images": IMAGES, "labels": np.arange(4), "classes": ["a", "b"]}, "label 3 is none of the file's 2 classes"),
        ({"images": IMAGES, "labels": np.arange(4), "classes": ["a", "a"]}, "some of them the same"),
        ({"images": IMAGES, "classes": np.array([Bait()])}, "expected up to 100,000 strings"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, named: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "x.npz", **named)
    with pytest.raises(ImageError, match=message) as caught:
        open_arrays(path).read(classes=CLASSES, shape=(1, 8, 9))
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    assert not Path("/tmp/bdaudit-bait").exists()


def header(shape: str, descr: str = "'|u1'", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text


def archive(path: Path, content: bytes, name: str = "images.npy", compress: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr(name, content)
    return path


def lying(content: bytes, size: int) -> bytes:
    """Rewrite both places where a zip file states the unpacked size of its only member."""
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    out = bytearray(content)
    out[local + 22 : local + 26] = out[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(out)


def hostile(path: Path, kind: str) -> None:
    if kind == "terabytes":
        archive(path, header("(1000000, 1000, 1000)") + bytes(1000))
    elif kind == "overflow":
        archive(path, header(f"({2**47}, {2**47}, 3)"))
    elif kind == "negative":
        archive(path, header("(-4, 8, 8)") + bytes(256))
    elif kind == "claimed in both places":
        archive(path, header("(4000000, 32, 32)") + bytes(100))
        path.write_bytes(lying(path.read_bytes(), 4_096_000_000 + len(header("(4000000, 32, 32)"))))
    elif kind == "bomb":
        path.write_bytes(b"")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("images.npy", "w") as member:
            member.write(header("(4000, 32, 32)"))
            member.write(bytes(4000 * 1024))
    elif kind == "long header":
        archive(path, b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * 50_000)
    elif kind == "deep header":
        archive(path, header("(" * 4000 + ")" * 4000))
    elif kind == "cut":
        archive(path, header("(4, 8, 8)") + bytes(256), compress=zipfile.ZIP_STORED)
        content = path.read_bytes()
        path.write_bytes(content[:150] + content[200:])
    elif kind == "checksum":
        archive(path, header("(4, 8, 8)") + b"\7" * 256, compress=zipfile.ZIP_STORED)
        path.write_bytes(path.read_bytes().replace(b"\7" * 9, b"\7" * 8 + b"\6", 1))
    elif kind == "bzip2":
        archive(path, header("(4, 8, 8)") + bytes(256), compress=zipfile.ZIP_BZIP2)
    elif kind == "encrypted":
        archive(path, header("(4, 8, 8)") + bytes(256))
        content = bytearray(path.read_bytes())
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(content)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bait()))
    elif kind == "fields":
        archive(path, header("(4,)", "[('a', '|u1')]", b"\x03\x00") + bytes(4))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("terabytes", "claims 1,000,000,000,000 bytes, there are 1,000"),
        ("overflow", "larger than images are read|makes no sense"),
        ("negative", "makes no sense"),
        ("claimed in both places", "decompression bomb"),
        ("bomb", "decompression bomb"),
        ("long header", "header of an array is too long"),
        ("deep header", "damaged"),
        ("cut", "damaged"),
        ("checksum", "damaged .Bad CRC-32"),
        ("bzip2", "compressed in a way"),
        ("encrypted", "damaged"),
        ("pickle", "not an .npz file"),
        ("fields", "has fields"),
        ("nothing", "no such file"),
    ],
)
def test_hostile_archives_are_refused_before_memory_is_taken(
    tmp_path: Path, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    hostile(path, kind)
    monkeypatch.setattr("bdaudit.inputs.arrays.BOMB_SIZE", 2**20)
    made: list[int] = []
    empty = scratch.empty
    monkeypatch.setattr(scratch, "empty", lambda n, shape: (made.append(n), empty(n, shape))[1])
    with pytest.raises(ImageError, match=message) as caught:
        open_arrays(path).read(classes=CLASSES, shape=(1, 8, 8))
    assert str(caught.value).isprintable()
    assert sum(made) <= 4


@given(
    arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3)),
    st.booleans(),
    st.data(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_numpy_saves_is_read_back(tmp_path: Path, images: Any, packed: bool, data: st.DataObject) -> None:
    labels = data.draw(arrays.arrays(np.int16, len(images), elements=st.integers(-1, 2)))
    opened = open_arrays(save(tmp_path / "x.npz", packed, images=images, labels=labels))
    pool = opened.read(classes=CLASSES, shape=opened.shape())
    assert np.array_equal(pool.images[:, 0].numpy(), images)
    assert np.array_equal(pool.labels.numpy(), labels)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_one_error_or_does_not_matter(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=IMAGES[:2], labels=np.array([1, 2]), classes=["a", "b", "c"])
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npz"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    try:
        pool = open_arrays(path).read(classes=("a", "b", "c"), shape=(1, 8, 9))
    except ImageError as e:
        assert str(e).isprintable()
    else:
        assert len(pool) <= 2
