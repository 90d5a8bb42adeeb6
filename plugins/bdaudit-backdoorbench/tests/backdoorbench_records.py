"""Make records as BackdoorBench leaves them, from a model and the bookkeeping of an attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdaudit.attacks.base import Implanted
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import Dataset
from bdaudit.inputs.folders import write_png
from bdaudit.inputs.pool import Pool

AUTHOR = "./record/badnet_0_1"


@dataclass(frozen=True)
class Split:
    """A split as the attacker left it: triggered rows carry their new pixels and the label given."""

    pool: Pool
    true_labels: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class Made:
    """A record, the data folder that it was made from, and the truth about both."""

    record: Path
    data: Path
    dataset: Dataset
    model: Classifier
    implanted: Implanted
    test: Split


def write_record(
    folder: Path, *, model: Classifier, train: Split | None, test: Split | None, dataset: str, **changes: Any
) -> Path:
    """Write attack_result.pt and the images, in the types that BackdoorBench's own code saves."""
    folder.mkdir(parents=True, exist_ok=True)
    channels, height, width = model.preprocessing.shape
    document = {
        "model_name": "small_cnn",
        "num_classes": model.num_classes,
        "model": model.body.state_dict(),
        "data_path": f"../data/{dataset}",
        "img_size": (height, width, channels),
        "clean_data": dataset,
        "bd_train": train and write_split(folder, "bd_train", train, np.arange(len(train.pool))),
        "bd_test": test and write_split(folder, "bd_test", test, np.flatnonzero(test.triggered.numpy())),
        **changes,
    }
    torch.save(document, folder / "attack_result.pt")
    return folder


def write_split(folder: Path, name: str, split: Split, index: np.ndarray) -> dict[str, Any]:
    """Write the triggered images of one split and return its entry; `index` lists the rows in use."""
    save_folder = f"{AUTHOR}/{name}_dataset"
    items = {}
    for row in np.flatnonzero(split.triggered.numpy()):  # numpy integers, as in the real ones
        true, given = split.true_labels[row].item(), split.pool.labels[row].numpy()[()]
        place = folder / f"{name}_dataset" / str(true) / f"{row}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_png(split.pool.images[int(row)], place)
        items[row] = {"path": f"{save_folder}/{true}/{row}.png", "other_info": [given, true]}
    return {
        "bd_data_container": {"save_folder_path": save_folder, "data_dict": items, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": index,
        "poison_indicator": split.triggered.numpy().astype(np.float64),
        "save_folder_path": save_folder,
    }


def edit(record: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a record's document in place; it is ours, so unpickling it is safe."""
    path = record / "attack_result.pt"
    document = torch.load(path, weights_only=False)
    change(document)
    torch.save(document, path)
