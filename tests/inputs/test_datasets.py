"""Datasets by name, read from files of the published formats that the tests write."""

from __future__ import annotations

import gzip
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.cli.attack import command
from bdaudit.errors import ImageError, UnusedFiles, UsageError
from bdaudit.inputs.datasets import DATASETS, load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.normalisation import NORMALISATIONS
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


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar100_in_both_published_formats_with_its_fine_labels(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / f"cifar-100-{kind}"
    folder.mkdir()
    for i, name in enumerate(("train", "test")):
        pixels, coarse = cifar_batch(4, i)
        fine = [99, 0, 5, 50 + i]
        if kind == "python":
            batch = {b"data": pixels, b"fine_labels": fine, b"coarse_labels": coarse}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            labels = np.array([coarse, fine], dtype=np.uint8).T
            (folder / f"{name}.bin").write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    data = load_dataset("cifar100", root=tmp_path)
    assert torch.equal(data.train.images, torch.from_numpy(cifar_batch(4, 0)[0]).reshape(4, 3, 32, 32))
    assert data.train.labels.tolist() == [99, 0, 5, 50]
    assert data.test is not None
    assert data.test.labels.tolist() == [99, 0, 5, 51]
    assert (len(set(data.classes)), data.classes[0], data.classes[5], data.classes[99]) == (100, "apple", "bed", "worm")
    assert data.preprocessing.mean == NORMALISATIONS["cifar100"][0]


def test_a_cifar_file_of_another_dataset_is_told_by_its_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ImageError, match=r"data_batch_1\.bin: has labels from 10 to 10, 10 classes"):
        load_dataset("cifar10", root=tmp_path)


def picture(path: Path, colour: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 255 - colour)).save(path)


def gtsrb(root: Path, train: str, truth: str) -> None:
    """Write three training images of two signs and two test images, as the archives unpack."""
    for sign, name, colour in (
        ("00000", "00000_00000", 10),
        ("00042", "00000_00000", 20),
        ("00042", "00001_00000", 30),
    ):
        picture(root / train / sign / f"{name}.ppm", colour, (40, 45))
        (root / train / sign / f"GT-{sign}.csv").write_text("Filename;Width;Height;ClassId\n")
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for k, sign in enumerate((14, 2)):
        picture(root / "Final_Test" / "Images" / f"0000{k}.ppm", 100 + k, (30, 29))
        rows.append(f"0000{k}.ppm;30;29;5;5;25;24;{sign}")
    (root / truth).write_text("\r\n".join(rows) + "\r\n")


@pytest.mark.parametrize(
    ("place", "train", "truth"),
    [
        ("gtsrb/GTSRB", "Training", "../GT-final_test.csv"),
        ("GTSRB", "Final_Training/Images", "Final_Test/Images/GT-final_test.csv"),
    ],
    ids=["torchvision", "official"],
)
@pytest.mark.filterwarnings("error")
def test_gtsrb_as_its_archives_and_torchvision_lay_it_out(tmp_path: Path, place: str, train: str, truth: str) -> None:
    gtsrb(tmp_path / place, train, truth)
    data = load_dataset("gtsrb", root=tmp_path)
    assert data.test is not None
    assert data.train.labels.tolist() == [0, 42, 42]
    assert data.test.labels.tolist() == [14, 2]
    assert [data.classes[y] for y in data.test.labels] == ["stop", "speed limit 50"]
    assert data.train.images[:, 0, 16, 16].tolist() == [10, 20, 30]
    assert data.test.images[:, 2, 0, 0].tolist() == [155, 154]
    assert data.train.shape == data.test.shape == (3, 32, 32)
    assert len(set(data.classes)) == 43
    assert not data.flip


def test_what_is_wrong_with_a_copy_of_gtsrb_is_said(tmp_path: Path) -> None:
    place = tmp_path / "GTSRB"
    gtsrb(place, "Training", "truth.csv")
    with pytest.raises(ImageError, match=r"GT-final_test\.csv: missing"):
        load_dataset("gtsrb", root=tmp_path)
    # The archive of test images has a table of the same columns but the last.
    (place / "GT-final_test.csv").write_text("Filename;Width;Height\n00000.ppm;30;29\n")
    with pytest.raises(ImageError, match=r"GT-final_test\.csv: not the table of the test images"):
        load_dataset("gtsrb", root=tmp_path)
    (place / "GT-final_test.csv").write_text("Filename;ClassId\n../../secret.ppm;3\n00000.ppm;2\n")
    with pytest.warns(UnusedFiles, match="outside the folder"):
        data = load_dataset("gtsrb", root=tmp_path)
    assert data.test is not None
    assert data.test.labels.tolist() == [2]
    (place / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;43\n")
    with pytest.raises(ImageError, match="no class '43'"):
        load_dataset("gtsrb", root=tmp_path)


WORDS = "n00000001\tentity\nn01443537\tgoldfish, Carassius auratus\nn02999410\tchain\nn04067472\tchain, string\n"


def tiny_imagenet(place: Path, *, sorted_into_classes: bool) -> None:
    """Write four training and two validation images of three classes, which `wnids.txt` does not sort."""
    for k, wnid in enumerate(("n04067472", "n01443537", "n02999410", "n01443537")):
        picture(place / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 60 * k, (64, 64))
        (place / "train" / wnid / f"{wnid}_boxes.txt").write_text("ignored")
    (place / "wnids.txt").write_text("n04067472\nn01443537\nn02999410\n")
    (place / "words.txt").write_text(WORDS)
    for k, wnid in enumerate(("n02999410", "n04067472")):
        inside = f"{wnid}/images" if sorted_into_classes else "images"
        picture(place / "val" / inside / f"val_{k}.JPEG", 100, (64, 64))
    if not sorted_into_classes:
        lines = ("val_0.JPEG\tn02999410\t0\t32\t44\t62\n", "val_1.JPEG\tn04067472\t0\t0\t63\t63\n")
        (place / "val" / "val_annotations.txt").write_text("".join(lines))
    picture(place / "test" / "images" / "test_0.JPEG", 0, (64, 64))


@pytest.mark.parametrize("sorted_into_classes", [False, True], ids=["as unpacked", "sorted"])
@pytest.mark.filterwarnings("error")
def test_tiny_imagenet_with_its_validation_images_as_the_test_set(tmp_path: Path, sorted_into_classes: bool) -> None:
    tiny_imagenet(tmp_path / "tiny-imagenet-200", sorted_into_classes=sorted_into_classes)
    data = load_dataset("tiny-imagenet", root=tmp_path)
    assert data.test is not None
    assert data.train.labels.tolist() == [0, 0, 1, 2]
    assert data.test.labels.tolist() == [1, 2]
    assert data.classes == ("goldfish", "n02999410", "n04067472")  # two are called "chain"
    assert data.train.shape == (3, 64, 64)
    assert data.train.images[:, 0, 32, 32].tolist() == pytest.approx([60, 180, 120, 0], abs=4)
    assert data.flip


def test_what_is_wrong_with_a_copy_of_tiny_imagenet_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no tiny-imagenet-200/train in .*; there is no downloader for it: unpack http"
    ):
        load_dataset("tiny-imagenet", root=tmp_path, download=True)
    place = tmp_path / "tiny-imagenet-200"
    tiny_imagenet(place, sorted_into_classes=False)
    (place / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")
    with pytest.raises(ImageError, match=r"val_annotations\.txt: not the table of the validation images"):
        load_dataset("tiny-imagenet", root=tmp_path)
    (place / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09999999\t0\n")
    with pytest.raises(ImageError, match="no class 'n09999999'"):
        load_dataset("tiny-imagenet", root=tmp_path)
    (place / "val" / "val_annotations.txt").unlink()
    with pytest.raises(ImageError, match=r"val_annotations\.txt: cannot be read"):
        load_dataset("tiny-imagenet", root=tmp_path)


def test_the_help_names_every_dataset() -> None:
    """It is written out there, as help must not wait for what reads datasets."""
    [data] = [p for p in command.params if p.name == "data"]
    assert set(DATASETS) <= set(re.findall(r"[\w-]+", str(getattr(data, "help", ""))))


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
        ("cifar100", "no cifar-100-binary or cifar-100-python"),
        ("gtsrb", "no GTSRB/Training or GTSRB/Final_Training/Images in .* or give --download"),
        ("/nowhere/at/all", "neither a dataset"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(name, root=tmp_path)


def test_a_folder_without_classes_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="at least two class sub-folders"):
        load_dataset(str(tmp_path))
