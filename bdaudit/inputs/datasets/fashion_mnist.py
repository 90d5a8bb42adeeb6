"""Fashion-MNIST (Xiao et al. 2017), in the IDX files of MNIST."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bdaudit.errors import ImageError, UsageError, one_line
from bdaudit.inputs.datasets.dataset import Dataset, of_splits
from bdaudit.inputs.pool import Pool

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load(root: Path, download: bool) -> Dataset:
    """Look for the IDX files in torchvision's layout, in the folder itself, and where Debian installs them."""
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
            return of_splits("fashion-mnist", train, test, CLASSES, epochs=10)
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
