"""One backdoored model on real digits, and a record of it as BackdoorBench would have left it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from pathlib import Path

import pytest
import torch
from backdoorbench_records import Made, Split, write_record

from bdaudit import plugins
from bdaudit.flow.implant import default_recipe
from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Preprocessing
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.runtime import generator


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Digits posing as MNIST, poisoned by BadNets and learned by a small network."""
    base = tmp_path_factory.mktemp("backdoorbench")
    digits = load_dataset("digits").train.shuffled(generator(0))
    train, test = digits.split(1300)
    for name, pool in (("train", train), ("test", test)):
        write_folder(pool, base / "data" / name, classes=tuple("0123456789"))
    dataset = load_dataset(str(base / "data"))
    # BackdoorBench's own figures for MNIST.
    pixels = Preprocessing(channels=1, height=16, width=16, mean=(0.5,), std=(0.5,))
    model = fresh(complete(parse("small_cnn:width=8")), pixels, dataset.classes, generator(0))
    attack = plugins.get("attack", "badnets").parse({"rate": 0.1})
    implanted = attack.implant(model, dataset.train, 0, default_recipe(dataset, epochs=15), generator(0))
    assert dataset.test is not None
    poisoned = implanted.poisoned
    counted = implanted.goal.counted(dataset.test.labels)
    triggered = implanted.trigger.on(dataset.test).labelled(torch.where(counted, 0, dataset.test.labels))
    after = Split(triggered, dataset.test.labels, counted)
    before = Split(poisoned.pool, poisoned.true_labels, poisoned.poisoned)
    record = write_record(base / "record", model=implanted.model, train=before, test=after, dataset="mnist")
    return Made(record, base / "data", dataset, implanted.model, implanted, after)


@pytest.fixture
def record(made: Made, tmp_path: Path) -> Path:
    """A copy of the record that a test may change."""
    return Path(shutil.copytree(made.record, tmp_path / "record"))


@pytest.fixture
def bare(made: Made, tmp_path: Path) -> Path:
    """The same without its images, for what goes wrong before any is read."""
    (tmp_path / "bare").mkdir()
    shutil.copy(made.record / "attack_result.pt", tmp_path / "bare")
    return tmp_path / "bare"
