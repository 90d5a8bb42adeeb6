"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in both published formats: bytes, and pickles, whose code is not run."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdaudit.errors import ImageError, UsageError, one_line
from bdaudit.inputs.datasets.dataset import Dataset, of_splits
from bdaudit.inputs.pool import Pool

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """One of the two. binary, pickled: the folders. label_bytes: before each image; the last one is the label."""

    name: str
    binary: str
    pickled: str
    train: tuple[str, ...]
    test: str
    label_bytes: int
    label_key: bytes
    classes: tuple[str, ...]

    def load(self, root: Path, download: bool) -> Dataset:
        """Read whichever of the formats is there; raises UsageError where neither is."""
        binary, pickled = root / self.binary, root / self.pickled
        if download and not (binary.is_dir() or pickled.is_dir()):
            from torchvision import datasets

            getattr(datasets, self.name.upper())(root, download=True)
        if not (binary.is_dir() or pickled.is_dir()):
            raise UsageError(
                f"{self.name}: no {self.binary} or {self.pickled} in {root}; "
                "set BDAUDIT_DATA to the folder that holds it, or give --download"
            )
        read = self._from_bytes if binary.is_dir() else self._from_pickle
        parts = [read(root, name) for name in self.train]
        train = Pool.of(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), f"{self.name}/train")
        test = Pool.of(*read(root, self.test), f"{self.name}/test")
        return of_splits(self.name, train, test, self.classes, flip=True)

    def _from_bytes(self, root: Path, name: str) -> tuple[Tensor, Tensor]:
        path = root / self.binary / f"{name}.bin"
        row = self.label_bytes + PIXELS
        try:
            data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        except OSError as e:
            raise ImageError(f"{path}: cannot be read ({one_line(e, 80)})") from e
        if not len(data) or len(data) % row:
            raise ImageError(f"{path}: not rows of {self.label_bytes} + {PIXELS} bytes, or truncated")
        rows = data.reshape(-1, row)
        return self._checked(path, rows[:, self.label_bytes :].contiguous(), rows[:, self.label_bytes - 1].long())

    def _from_pickle(self, root: Path, name: str) -> tuple[Tensor, Tensor]:
        path = root / self.pickled / name
        try:
            with path.open("rb") as file:
                batch = _ArrayUnpickler(file, encoding="bytes").load()
            pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[self.label_key])
        except Exception as e:  # a damaged pickle can raise anything; nothing but reading it stands above
            raise ImageError(f"{path}: not a CIFAR batch ({one_line(e, 100)})") from e
        integers = labels.dtype.kind in "iu" and labels.ndim == 1
        if pixels.dtype != np.uint8 or not integers or pixels.shape != (len(labels), PIXELS):
            raise ImageError(f"{path}: not a CIFAR batch (its arrays are not rows of 3,072 bytes with integer labels)")
        return self._checked(path, torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64)))

    def _checked(self, path: Path, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        classes = len(self.classes)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ImageError(f"{path}: has labels from {int(labels.min())} to {int(labels.max())}, {classes} classes")
        return pixels.reshape(-1, 3, 32, 32), labels


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


CIFAR10 = Cifar(
    name="cifar10",
    binary="cifar-10-batches-bin",
    pickled="cifar-10-batches-py",
    train=tuple(f"data_batch_{k}" for k in range(1, 6)),
    test="test_batch",
    label_bytes=1,
    label_key=b"labels",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
"""The fine classes in the files' order; a binary row has a coarse label and then the fine one."""
CIFAR100 = Cifar(
    name="cifar100",
    binary="cifar-100-binary",
    pickled="cifar-100-python",
    train=("train",),
    test="test",
    label_bytes=2,
    label_key=b"fine_labels",
    classes=tuple(_FINE.split()),
)
