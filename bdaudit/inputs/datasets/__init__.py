"""Datasets by name, read from disk; nothing is downloaded unless that was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.inputs.datasets import digits, fashion_mnist, gtsrb, tiny_imagenet
from bdaudit.inputs.datasets.cifar import CIFAR10, CIFAR100
from bdaudit.inputs.datasets.dataset import Dataset
from bdaudit.inputs.datasets.own import own_images
from bdaudit.inputs.sources import is_source

__all__ = ["DATASETS", "Dataset", "data_root", "load_dataset"]

DATASETS: dict[str, Callable[[Path, bool], Dataset]] = {
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "cifar10": CIFAR10.load,
    "cifar100": CIFAR100.load,
    "gtsrb": gtsrb.load,
    "tiny-imagenet": tiny_imagenet.load,
}
"""Name -> loader of (the folder that dataset files are in, whether to download what is missing)."""


def load_dataset(name: str, *, root: Path | None = None, download: bool = False) -> Dataset:
    """Load one of `DATASETS`, or labelled images: a folder, an .npz file, a .csv index.

    root: where dataset files lie; else the BDAUDIT_DATA environment variable, else ~/.cache/bdaudit.
    download: fetch missing files with torchvision's own downloader. Raises UsageError, ImageError.
    """
    if name in DATASETS:
        return DATASETS[name](data_root(root), download)
    if is_source(name):
        return own_images(name)
    known = ", ".join(DATASETS)
    raise UsageError(
        f"--data {one_line(name, 80)}: neither a dataset ({known}) nor a folder, .npz or .csv file"
        f"{did_you_mean(name, DATASETS)}"
    )


def data_root(root: Path | None = None) -> Path:
    """Resolve the folder that dataset files are looked for in."""
    return root or Path(os.environ.get("BDAUDIT_DATA", "~/.cache/bdaudit")).expanduser()
