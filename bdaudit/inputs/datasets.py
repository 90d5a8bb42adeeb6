"""Datasets by name, read from disk; nothing is downloaded unless that was asked for."""

from __future__ import annotations

import gzip
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdaudit.errors import ImageError, UsageError, did_you_mean, one_line
from bdaudit.inputs.classifier import Preprocessing
from bdaudit.inputs.normalisation import NORMALISATIONS
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.inputs.sources import is_source, open_source, source_path

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Dataset:
    """Images with an official (or no) test split, and how the field feeds them to a network.

    test: None where there is no official split. flip: whether mirrored images are still the same class.
    arch, epochs: what a network is trained with unless the user says otherwise.
    """

    name: str
    train: Pool
    test: Pool | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    flip: bool = False
    arch: str = "resnet18"
    epochs: int = 20


def load_dataset(name: str, *, root: Path | None = None, download: bool = False) -> Dataset:
    """Load `digits`, `fashion-mnist`, `cifar10`, or labelled images: a folder, an .npz file, a .csv index.

    root: where dataset files lie; else the BDAUDIT_DATA environment variable, else ~/.cache/bdaudit.
    download: fetch missing files with torchvision's own downloader.
    """
    if name in _LOADERS:
        return _LOADERS[name](data_root(root), download)
    if is_source(name):
        return _own(name)
    known = ", ".join(_LOADERS)
    raise UsageError(
        f"--data {one_line(name, 80)}: neither a dataset ({known}) nor a folder, .npz or .csv file"
        f"{did_you_mean(name, _LOADERS)}"
    )


def data_root(root: Path | None = None) -> Path:
    """Resolve the folder that dataset files are looked for in."""
    return root or Path(os.environ.get("BDAUDIT_DATA", "~/.cache/bdaudit")).expanduser()


def dataset_names() -> tuple[str, ...]:
    """Name the datasets that are known besides folders."""
    return tuple(_LOADERS)


def _preprocessing(pool: Pool, normalisation: str) -> Preprocessing:
    c, h, w = pool.shape
    mean, std = NORMALISATIONS[normalisation]
    return Preprocessing(channels=c, height=h, width=w, mean=mean, std=std)


def _digits(root: Path, download: bool) -> Dataset:
    # The optical digits that scikit-learn ships: real scans, counted ink of 0..16 on an 8 x 8 grid.
    from sklearn.datasets import load_digits

    ink, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(ink).float().reshape(-1, 1, 8, 8) * (255 / 16)
    # Twice the size, so that a 3 x 3 trigger is a corner of the image and not a third of it.
    images = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    train = Pool.of(images, torch.from_numpy(labels), "digits")
    return Dataset(
        "digits", train, None, tuple("0123456789"), _preprocessing(train, "digits"), arch="small_cnn", epochs=20
    )


def _fashion_mnist(root: Path, download: bool) -> Dataset:
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    places = [root / "FashionMNIST" / "raw", root / "fashion-mnist", root, DEBIAN_FASHION_MNIST]
    if download and not any(_idx_file(p, "train-images-idx3-ubyte") for p in places):
        from torchvision.datasets import FashionMNIST

        FashionMNIST(root, download=True)
    for place in places:
        if _idx_file(place, "train-images-idx3-ubyte"):
            train, test = (
                Pool.of(
                    _idx(place, f"{part}-images-idx3-ubyte", 3).unsqueeze(1),
                    _idx(place, f"{part}-labels-idx1-ubyte", 1),
                    f"fashion-mnist/{part}",
                )
                for part in ("train", "t10k")
            )
            return Dataset("fashion-mnist", train, test, classes, _preprocessing(train, "fashion-mnist"), epochs=10)
    raise UsageError(
        f"fashion-mnist: no files in {root} or {DEBIAN_FASHION_MNIST}; apt-get install dataset-fashion-mnist, "
        "or set BDAUDIT_DATA to torchvision's root, or give --download"
    )


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _idx(folder: Path, stem: str, ndim: int) -> Tensor:
    """Read one IDX file of unsigned bytes, gzipped or not (LeCun's MNIST format)."""
    path = _idx_file(folder, stem)
    if path is None:
        raise ImageError(f"{folder / stem}: missing (its sibling files are there)")
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        raise ImageError(f"{path}: cannot be read ({one_line(e, 80)})") from e
    sizes = np.frombuffer(data[4 : 4 + 4 * ndim], dtype=">u4").astype(np.int64)
    # The first four bytes: two zeros, 8 for "unsigned byte", the number of dimensions.
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) != 4 + 4 * ndim + int(sizes.prod()):
        raise ImageError(f"{path}: not an IDX file of {ndim}-dimensional bytes, or truncated")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * ndim).reshape(sizes.tolist())


def _cifar10(root: Path, download: bool) -> Dataset:
    classes = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    if download and not any((root / f"cifar-10-batches-{kind}").is_dir() for kind in ("bin", "py")):
        from torchvision.datasets import CIFAR10

        CIFAR10(root, download=True)
    for kind, read, names in (("bin", _cifar_bin, "{}.bin"), ("py", _cifar_py, "{}")):
        folder = root / f"cifar-10-batches-{kind}"
        if folder.is_dir():
            parts = [read(folder / names.format(f"data_batch_{i}")) for i in range(1, 6)]
            train = Pool.of(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), "cifar10/train")
            test = Pool.of(*read(folder / names.format("test_batch")), "cifar10/test")
            return Dataset("cifar10", train, test, classes, _preprocessing(train, "cifar10"), flip=True)
    raise UsageError(
        f"cifar10: no cifar-10-batches-bin or cifar-10-batches-py in {root}; "
        "set BDAUDIT_DATA to the folder that holds it, or give --download"
    )


def _cifar_bin(path: Path) -> tuple[Tensor, Tensor]:
    try:
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    except OSError as e:
        raise ImageError(f"{path}: cannot be read ({one_line(e, 80)})") from e
    if not len(data) or len(data) % 3073:
        raise ImageError(f"{path}: not rows of 1 + 3072 bytes, or truncated")
    rows = data.reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32).contiguous(), rows[:, 0].long()


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle numpy arrays and plain containers, and nothing else: no other name is ever imported."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.array(0).__reduce__()[0]  # numpy's own name for it differs between its versions
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")


def _cifar_py(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as e:  # a damaged pickle can raise anything; nothing but reading it stands above
        raise ImageError(f"{path}: not a CIFAR batch ({one_line(e, 100)})") from e
    integers = labels.dtype.kind in "iu" and labels.ndim == 1
    if pixels.dtype != np.uint8 or not integers or pixels.shape != (len(labels), 3 * 32 * 32):
        raise ImageError(f"{path}: not a CIFAR batch (its arrays are not rows of 3,072 bytes with integer labels)")
    return torch.from_numpy(pixels.copy()).reshape(-1, 3, 32, 32), torch.from_numpy(labels.astype(np.int64))


def _own(name: str) -> Dataset:
    """Take somebody's own images; a folder may be split into train/ and test/."""
    where = source_path(name)
    parts = [where / "train", where / "test"]
    split = all(p.is_dir() for p in parts)
    source = open_source(parts[0] if split else where)
    classes = source.classes()
    if len(classes) < 2:
        raise ImageError(
            f"{one_line(name, 160)}: needs at least two class sub-folders with images, or labels of two classes"
        )
    shape = source.shape()
    if shape is None:
        raise ImageError(f"{one_line(name, 160)}: no usable images in it")
    train = source.read(classes=classes, shape=shape)
    if (train.labels == UNKNOWN).any():
        raise ImageError(f"{one_line(name, 160)}: {int((train.labels == UNKNOWN).sum())} images have no label")
    test = open_source(parts[1]).read(classes=classes, shape=shape) if split else None
    c = shape[0]
    # No published statistics: plain [0, 1] pixels, centred.
    preprocessing = Preprocessing(channels=c, height=shape[1], width=shape[2], mean=(0.5,) * c, std=(0.5,) * c)
    kind = "folder:" if where.is_dir() else ""
    shown = tuple(one_line(n, 100) for n in classes)
    return Dataset(f"{kind}{one_line(where.resolve())}", train, test, shown, preprocessing)


_LOADERS: dict[str, Callable[[Path, bool], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
