"""Fixtures on real digits: one backdoored run for the whole suite, made by the command line's own flow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

# Tiny models: a second thread costs more in waiting than it computes, and ten times that on a busy machine.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from programs import CHROMIUM
from support import make_tiny

from bdaudit import api
from bdaudit.flow.implant import Sizes
from bdaudit.flow.run import Run
from bdaudit.inputs import checkpoint_read, unpack
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, generator

if TYPE_CHECKING:
    from playwright.sync_api import Browser


CHOSEN = Runtime.of
"""How precision is chosen outside of tests."""


@pytest.fixture(scope="session", autouse=True)
def full_precision() -> Iterator[None]:
    """Compute in fp32, in which equations hold to the last digits, on processors with bf16 too; programs choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Runtime, "of", lambda device: Runtime(device, bf16=False) if device.type == "cpu" else CHOSEN(device)
        )
        yield


@pytest.fixture
def precision_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as ever."""
    monkeypatch.setattr(Runtime, "of", CHOSEN)


@pytest.fixture(scope="session")
def digits() -> Pool:
    """All 1,797 real digits, 16 x 16 grey."""
    return load_dataset("digits").train


@pytest.fixture(scope="session")
def parts(digits: Pool) -> tuple[Pool, Pool]:
    """1,000 digits to poison, and the others to test with."""
    train, test = digits.shuffled(generator(7)).split(1000)
    return train, test


@pytest.fixture
def rng() -> torch.Generator:
    return generator(0)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A BadNets run on digits with a clean twin."""
    out = tmp_path_factory.mktemp("runs") / "badnets"
    return api.attack(
        "badnets",
        data="digits",
        out=out,
        options={"rate": 0.1},
        sizes=Sizes(flagged=80),
        epochs=20,
        with_reference=True,
        seed=1,
        device="cpu",
    )


@pytest.fixture(scope="session")
def suspect(run: Run) -> Classifier:
    """The backdoored model; tests must not change it."""
    return api.load(run.model_path, device="cpu").classifier


@pytest.fixture
def tiny() -> Classifier:
    """An untrained small CNN for 16 x 16 digits."""
    return make_tiny()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe model files without a child process, where a test reads hundreds of them."""

    def ask(module: str, arguments: list[str], file: IO[bytes], limits: object) -> bytes:
        return unpack.main(file, os.fstat(file.fileno()).st_size, arguments)

    monkeypatch.setattr(checkpoint_read, "ask", ask)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a file of tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()
