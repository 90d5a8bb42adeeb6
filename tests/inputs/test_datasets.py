"""Datasets by name, read from files of the published formats that the tests write."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bdaudit.errors import ImageError, UsageError
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.pool import Pool


def test_digits_are_real_and_complete() -> None:
    data = load_dataset("digits")
    assert data.train.images.shape == (1797, 1, 16, 16)
    assert data.train.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = data.train.images.float() / 255
    assert pixels.mean() == pytest.approx(data.preprocessing.mean[0], abs=1e-3)
    assert pixels.std() == pytest.approx(data.preprocessing.std[0], abs=1e-3)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "fashion-mnist", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_in_torchvisions_layout_and_as_gzip(tmp_path: Path, layout: str, zipped: bool) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    images = {part: generator.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 5), ("t10k", 3))}
    for part, array in images.items():
        for stem, content in (("images-idx3", array), ("labels-idx1", np.arange(len(array), dtype=np.uint8))):
            data = idx(content)
            name = f"{part}-{stem}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(data) if zipped else data)
    loaded = load_dataset("fashion-mnist", root=tmp_path)
    assert torch.equal(loaded.train.images[:, 0], torch.from_numpy(images["train"]))
    assert loaded.test is not None
    assert loaded.test.labels.tolist() == [0, 1, 2]
    assert loaded.classes[9] == "Ankle boot"


@pytest.mark.parametrize("damage", ["truncated", "wrong magic", "not gzip", "cut gzip"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    good = idx(np.zeros((2, 28, 28), dtype=np.uint8))
    name = "train-images-idx3-ubyte"
    content = {"truncated": good[:-1], "wrong magic": b"\0\0\x09\3" + good[4:]}.get(damage)
    if content is None:
        name += ".gz"
        content = b"plain" if damage == "not gzip" else gzip.compress(good)[:-12]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name):
        load_dataset("fashion-mnist", root=tmp_path)


def cifar_batch(n: int, seed: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3072), dtype=np.uint8), generator.integers(0, 10, n).tolist()


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_cifar10_in_both_published_formats(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / f"cifar-10-batches-{kind}"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        pixels, labels = cifar_batch(4, i)
        if kind == "py":
            # Protocol 2 with byte keys, as Python 2 wrote the published files.
            (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2))
        else:
            rows = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
    data = load_dataset("cifar10", root=tmp_path)
    pixels, labels = cifar_batch(4, 2)
    assert torch.equal(data.train.images[8:12], torch.from_numpy(pixels).reshape(4, 3, 32, 32))
    assert data.train.labels[8:12].tolist() == labels
    assert data.test is not None
    assert data.flip


def test_a_cifar_batch_with_code_runs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    bait = tmp_path / "bait"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(bait),)

    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Payload(), b"labels": []}))
    with pytest.raises(ImageError, match="not a CIFAR batch"):
        load_dataset("cifar10", root=tmp_path)
    assert not bait.exists()


def test_a_folder_is_a_dataset(tmp_path: Path, digits: Pool) -> None:
    for part, rows in (("train", range(40)), ("test", range(40, 60))):
        write_folder(digits.take(rows), tmp_path / part)
    data = load_dataset(str(tmp_path))
    assert data.test is not None
    assert (len(data.train), len(data.test), data.train.shape) == (40, 20, (1, 16, 16))
    assert data.classes == tuple(str(c) for c in range(10))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "neither a dataset .* did you mean digits"),
        ("cifar10", "no cifar-10-batches-bin or cifar-10-batches-py"),
        ("/nowhere/at/all", "neither a dataset"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(name, root=tmp_path)


def test_a_folder_without_classes_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="at least two class sub-folders"):
        load_dataset(str(tmp_path))
