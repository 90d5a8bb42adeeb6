"""Interrupted training ends as uninterrupted training does, bit for bit, and reads nothing that can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import make_tiny

from bdaudit.defenses.abl import ABL
from bdaudit.defenses.asd import ASD
from bdaudit.defenses.bsd import BSD
from bdaudit.defenses.d_br import DBR
from bdaudit.defenses.d_st import DST
from bdaudit.defenses.dbd import DBD
from bdaudit.defenses.splitting import Splitting
from bdaudit.defenses.vab import VaB
from bdaudit.errors import InputError, OutputError, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training import resume
from bdaudit.training.loop import Recipe, Training, tune
from bdaudit.training.resume import checkpoints

RUN = {"seed": 0, "options": {"lr": 0.1}}


class Stopped(Exception):
    """For a test."""


def same(a: Classifier, b: Classifier) -> bool:
    return all(torch.equal(t, b.state_dict()[k]) for k, t in a.state_dict().items())


def train(digits: Pool, stop_after: int = 99, optimizer: str = "adam") -> tuple[Classifier, list[int], float]:
    """Two stages of two models with dropout; returns the second, the epochs that ran, and the next draw of the rng."""
    rng, epochs = generator(3), []

    def note(epoch: int, model: Classifier) -> None:
        epochs.append(epoch)
        keep["seen"] = keep.get("seen", torch.zeros(1)) + epoch
        if len(epochs) == stop_after:
            raise Stopped

    for stage in range(2):
        keep: dict[str, torch.Tensor] = {}
        model = make_tiny(seed=stage)
        model.body.bn1 = torch.nn.Sequential(model.body.bn1, torch.nn.Dropout(0.2))
        recipe = Recipe(3, 0.01, 16, optimizer=optimizer, weight_decay=1e-3)
        tune(model, digits.first(48), recipe, rng, on_epoch=note, keep=keep, what=f"stage {stage}")
        assert keep["seen"] == 6
    return model, epochs, float(torch.rand((), generator=rng))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_resumed_run_ends_with_the_same_bits(
    stop_after: int, optimizer: str, digits: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first stage, at its last epoch and in the second one; only what was not kept is done again."""
    whole, _, draw = train(digits, optimizer=optimizer)
    with pytest.raises(Stopped), checkpoints(tmp_path / "kept", RUN, every=0):
        train(digits, stop_after, optimizer)
    with checkpoints(tmp_path / "kept", RUN, every=0):
        resumed, epochs, drawn = train(digits, optimizer=optimizer)
    assert same(whole, resumed)
    assert drawn == draw
    assert epochs == [1, 2, 3, 1, 2, 3][stop_after - 1 :]
    assert not (tmp_path / "kept").exists()  # the run is over, and its result is kept elsewhere


def bsd(**options: object) -> Callable[[Pool], tuple[Classifier, list[torch.Tensor]]]:
    def run(train: Pool) -> tuple[Classifier, list[torch.Tensor]]:
        defense = BSD.parse({**BSD.quick_options, "completing": 3, **options})
        model, division = defense.divide(make_tiny("small_cnn:width=2"), train, generator(0))
        return model, [division.clean, *division.scores.values(), *division.history.values()]

    return run


def abl(train: Pool) -> tuple[Classifier, list[torch.Tensor]]:
    defense = ABL.parse({**ABL.quick_options, "isolation_epochs": 3, "tuning_epochs": 3})
    return defense.purify(make_tiny("small_cnn:width=2"), train, generator(0)).model, []


def whole(cls: type[Splitting], **options: object) -> Callable[[Pool], tuple[Classifier, list[torch.Tensor]]]:
    def run(train: Pool) -> tuple[Classifier, list[torch.Tensor]]:
        defense = cls.parse({**cls.quick_options, **options})
        inputs = {
            "fresh": make_tiny("small_cnn:width=2"),
            "train": train,
            "clean": train.first(40),
            "rng": generator(0),
        }
        return defense.run(inputs), []

    return run


@pytest.mark.parametrize(
    "run",
    [
        bsd(),
        bsd(approximate="second"),
        bsd(all2all=True),
        bsd(init="random"),
        abl,
        whole(ASD, growing=2, halving=2, meta=2),
        whole(DST, parting_epochs=2, contrast_epochs=3, head_epochs=2),
        whole(DBR, parting_epochs=2, training_epochs=2, removal_epochs=3),
        whole(DBD, contrast_epochs=3, head_epochs=2, epochs=3),
        whole(VaB, epochs=5),
    ],
    ids=["bsd", "bsd, second likely", "bsd, all to all", "bsd, random", "abl", "asd", "d-st", "d-br", "dbd", "vab"],
)
def test_a_defense_goes_on_where_it_was_stopped(
    run: Callable[[Pool], tuple[Classifier, list[torch.Tensor]]],
    digits: Pool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever it is: model, pools by epoch and scores come out as if it had never been."""
    model, tensors = run(digits.first(60))
    usual, epochs, stops = Training.epoch, 0, 0

    def interrupted(self: Training, *args: Any, **kwargs: Any) -> None:
        nonlocal epochs
        epochs += 1
        if epochs % 5 == 0:
            raise Stopped
        usual(self, *args, **kwargs)

    monkeypatch.setattr(Training, "epoch", interrupted)
    for _ in range(20):
        try:
            with checkpoints(tmp_path / "kept", RUN, every=0):
                again, others = run(digits.first(60))
            break
        except Stopped:
            stops += 1
    assert stops >= 1
    assert same(model, again)
    assert len(tensors) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_checkpoints_are_written_no_more_often_than_asked(digits: Pool, tmp_path: Path) -> None:
    """And at the end of each stage, so that a short one is not done again."""
    with pytest.raises(Stopped), checkpoints(tmp_path / "kept", RUN, every=3600):
        train(digits, 5)
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["checkpoints.json", "stage-001.safetensors"]


def another_seed(folder: Path) -> None:
    with checkpoints(folder, {**RUN, "seed": 1}):
        pass


def something_else(folder: Path) -> None:
    (folder / "checkpoints.json").unlink()
    with checkpoints(folder, RUN):
        pass


def a_torn_file(folder: Path) -> None:
    path = folder / "stage-001.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with checkpoints(folder, RUN):
        train(Pool.of(torch.zeros(48, 1, 16, 16, dtype=torch.uint8), [0] * 48))


def another_network(folder: Path) -> None:
    with checkpoints(folder, RUN):
        recipe = Recipe(3, 0.01, 16)
        images = Pool.of(torch.zeros(8, 1, 16, 16, dtype=torch.uint8), [0] * 8)
        tune(make_tiny("small_cnn:width=2"), images, recipe, generator(0), keep={}, what="stage 0")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (another_seed, UsageError, "holds checkpoints of another run (seed differ); give another folder"),
        (something_else, OutputError, "is no folder of checkpoints"),
        (a_torn_file, InputError, "is no checkpoint of stage 0"),
        (another_network, InputError, "is no checkpoint of stage 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_gone_on_from_is_refused_and_kept(
    damage: Callable[[Path], None], error: type[Exception], message: str, digits: Pool, tmp_path: Path
) -> None:
    with pytest.raises(Stopped), checkpoints(tmp_path / "kept", RUN, every=0):
        train(digits, 2)
    with pytest.raises(error) as raised:
        damage(tmp_path / "kept")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "kept" / "stage-001.safetensors").exists()


def test_nothing_is_kept_unless_asked(digits: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resume, "_save", lambda *args: pytest.fail("a checkpoint was written"))
    with checkpoints(None, RUN):
        train(digits)
    assert not list(tmp_path.iterdir())
