"""Folders, .npz files and .csv indices are told apart in one place and give the same data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.errors import ImageError, UsageError
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.pool import Pool
from bdaudit.inputs.sources import open_source


@pytest.fixture
def own(tmp_path: Path, digits: Pool) -> dict[str, Path]:
    """The same sixty digits three times."""
    rows = digits.first(60)
    paths = write_folder(rows, tmp_path / "folder")
    np.savez(tmp_path / "x.npz", images=rows.images.numpy(), labels=rows.labels.numpy())
    lines = [f"folder/{path},{label}" for path, label in zip(paths, rows.labels.tolist(), strict=True)]
    (tmp_path / "x.CSV").write_text("\n".join(["path,label", *lines]))
    return {"folder": tmp_path / "folder", "npz": tmp_path / "x.npz", "csv": tmp_path / "x.CSV"}


@pytest.mark.parametrize("kind", ["folder", "npz", "csv"])
@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_each_kind_is_the_same_dataset(own: dict[str, Path], digits: Pool, kind: str, prefix: str) -> None:
    data = load_dataset(f"{prefix}{own[kind]}")
    assert data.classes == tuple("0123456789")
    assert data.train.shape == data.preprocessing.shape == (1, 16, 16)
    order = sorted(range(60), key=lambda i: (int(digits.labels[i]), i)) if kind == "folder" else list(range(60))
    assert torch.equal(data.train.images, digits.take(order).images)
    assert torch.equal(data.train.labels, digits.take(order).labels)


def test_a_folder_may_have_the_prefix_in_its_name(own: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own["folder"].parent)
    own["folder"].rename(own["folder"].with_name("folder:x"))
    assert len(load_dataset("folder:x").train) == len(load_dataset("folder:folder:x").train) == 60


@pytest.mark.parametrize("name", ["x.txt", "model.pt", "pipe.npz", "pipe.csv", "nowhere.npz", "a\0b", "n" * 5000])
def test_what_is_none_of_the_three_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    import os

    for file in ("x.txt", "model.pt"):
        (tmp_path / file).touch()
    for pipe in ("pipe.npz", "pipe.csv"):
        os.mkfifo(tmp_path / pipe)
    with pytest.raises(ImageError) as caught:
        open_source(f"{tmp_path}/{name}")
    assert str(caught.value).isprintable()


def test_data_without_labels_or_with_some_missing_is_no_dataset(tmp_path: Path, digits: Pool) -> None:
    write_folder(digits.first(4), tmp_path / "flat", flat=True)
    np.savez(tmp_path / "some.npz", images=digits.images[:4].numpy(), labels=np.array([0, 1, -1, 1]))
    with pytest.raises(ImageError, match="at least two class sub-folders with images, or labels of two classes"):
        load_dataset(str(tmp_path / "flat"))
    with pytest.raises(ImageError, match="1 images have no label"):
        load_dataset(str(tmp_path / "some.npz"))
    with pytest.raises(UsageError, match=r"neither a dataset \(.*\) nor a folder, .npz or .csv file"):
        load_dataset(str(tmp_path / "none.npz"))


def test_hostile_class_names_come_out_printable(tmp_path: Path) -> None:
    for name in ("a\x1b[31m", "b\n", "\udcff"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "x.png")
    data = load_dataset(str(tmp_path))
    assert len(data.classes) == 3
    assert all(name.isprintable() for name in data.classes)
    assert data.train.labels.tolist() == [0, 1, 2]
