"""`bdaudit split`: from an untrusted training set to pools, and from the pools to a purified model."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from support import snapshot

import bdaudit
from bdaudit.cli.main import _run
from bdaudit.flow.run import Run, known_poison
from bdaudit.flow.splitting import SplitRecord, is_split
from bdaudit.inputs.folders import read_folder
from bdaudit.inputs.pool import Pool
from bdaudit.report.scores import epoch_chart, score_charts
from bdaudit.training import resume
from bdaudit.training.metrics import attack_rates

# A twentieth instead of a hundredth of the rows is isolated: the eleven that this would be teach PL little.
QUICK = ["--by", "abl", "-o", "isolation_epochs=6", "-o", "share=0.05"]
BRIEF_BSD = [
    "--by", "bsd", "-o", "altruistic_epochs=1", "-o", "warm_up=1", "-o", "settling=2", "-o", "completing=1", "-o", "dropping=1"
]  # fmt: skip


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pools(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ABL makes of the run's poisoned training set, by way of the command line."""
    out = tmp_path_factory.mktemp("split") / "pools"
    line = ["split", "--train", run.folder / "train", "--model", run.model_path, *QUICK, "--out", out, "--quiet"]
    assert call(*line, "--seed", 1) == 0
    return out


def test_pools_index_charts_and_record_say_the_same(pools: Path, run: Run) -> None:
    """Precision and recall are those of the files that lie there, by the run's own list of poisoned rows."""
    assert {p.name for p in pools.iterdir()} == {"clean", "flagged", "split.csv", "split.json", "scores.svg"}
    record = SplitRecord.model_validate(json.loads((pools / "split.json").read_text()))
    assert (record.by, record.target, record.doubt) == ("abl", 0, "")
    rows = rows_of(pools)
    assert len(rows) == record.images["train"] == run.record.rows["train"]
    for name in ("clean", "flagged"):
        chosen = [row for row in rows if row["pool"] == name]
        files = [p for p in (pools / name).rglob("*") if p.is_file()]
        assert len(chosen) == len(files) == record.images[name]
        right = sum(row["poisoned"] == str(int(name == "flagged")) for row in chosen)
        assert record.found[f"{name}_precision"] == (right, len(chosen))
    assert record.found["flagged_precision"][0] >= 0.8 * record.found["flagged_precision"][1]
    assert record.found["clean_recall"][1] == run.record.rows["train"] - run.record.rows["poisoned"]
    assert max(float(r["loss"]) for r in rows if r["pool"] == "flagged") <= min(
        float(r["loss"]) for r in rows if r["pool"] != "flagged"
    )
    assert ET.fromstring((pools / "scores.svg").read_text()).tag.endswith("svg")


def test_images_are_links_to_the_sets_own_files(pools: Path, run: Run) -> None:
    """Each the file that the index names, in the sub-folder of its label."""
    placed = [row for row in rows_of(pools) if row["path"]]
    for row in placed:
        assert (pools / row["path"]).samefile(run.folder / "train" / row["image"])
    for row in placed[::40]:
        if row["pool"] == "clean":
            assert row["path"].split("/")[1] == run.record.classes[int(row["label"])]


def test_the_pools_purify_the_model_without_human_labels(
    pools: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loop from a poisoned set to a purified model, as typed."""
    out = tmp_path / "purified.pt"
    shutil.copy(run.model_path, tmp_path / "model.pt")
    line = ["purify", tmp_path / "model.pt", "--defense", "pl", "--clean", pools / "clean"]
    assert call(*line, "--malicious", pools / "flagged", "--out", out) == 0
    model = bdaudit.load(out, device="cpu").classifier
    triggered = run.trigger.on(run.pool("test"))
    assert attack_rates(bdaudit.load(run.model_path, device="cpu").classifier, triggered, run.goal)[0].value > 0.95
    assert attack_rates(model, triggered, run.goal)[0].value < 0.2


def test_bsd_shows_its_pools_by_epoch(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And from a file of arrays, where nothing tells which rows are poisoned, it writes copies."""
    pool = run.pool("train").sample(120, torch.Generator().manual_seed(0))
    import numpy as np

    np.savez(tmp_path / "set.npz", images=pool.images.permute(0, 2, 3, 1).numpy(), labels=pool.labels.numpy())
    out = tmp_path / "pools"
    line = ["split", "--train", tmp_path / "set.npz", *BRIEF_BSD, "-o", "iterations=2", "--arch", "small_cnn:width=2"]
    assert call(*line, "--out", out) in (0, 4)
    printed = capsys.readouterr()
    assert "in the clean pool" in printed.err
    assert "precision" not in printed.out
    record = json.loads((out / "split.json").read_text())
    assert record["found"] == {}
    assert len(record["history"]["rows"]) == 5  # warm-up, two to settle, completing, dropping
    assert {"discrepancy", "altruistic_loss", "main_fit", "distance"} <= set(rows_of(out)[0])
    assert ET.fromstring((out / "epochs.svg").read_text()).tag.endswith("svg")
    back = read_folder(out / "clean", classes=[str(k) for k in range(10)], shape=(1, 16, 16))
    assert set(back.fingerprints()) <= set(pool.fingerprints())


def test_what_should_not_be_relied_on_ends_with_code_4(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["split", "--train", run.folder / "train", "--model", run.model_path, "--by", "abl", "-o", "share=0.9"]
    assert call(*line, "-o", "isolation_epochs=1", "--out", tmp_path / "pools", "--quiet") == 4
    assert "not to be relied on: no more than" in capsys.readouterr().out


def test_an_earlier_split_is_replaced_and_nothing_else(run: Run, tmp_path: Path) -> None:
    line = ["split", "--train", run.folder / "train", "--model", run.model_path, "--by", "abl", "--quiet"]
    line += ["-o", "isolation_epochs=1", "--out", tmp_path / "pools"]
    assert call(*line) in (0, 4)
    first = (tmp_path / "pools" / "split.csv").read_text()
    assert is_split(tmp_path / "pools")
    assert call(*line) in (0, 4)
    assert (tmp_path / "pools" / "split.csv").read_text() == first
    (tmp_path / "pools" / "mine.txt").write_text("precious")
    assert call(*line) == 2
    assert (tmp_path / "pools" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("command", ["split", "purify"])
def test_an_interrupted_command_goes_on_from_its_checkpoints(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same result; the checkpoints of another run are refused."""
    shutil.copy(run.model_path, tmp_path / "model.pt")
    common = ["--train", run.folder / "train", "-o", "isolation_epochs=4", "--checkpoints", tmp_path / "kept"]
    if command == "split":
        line = ["split", "--by", "abl", "--model", tmp_path / "model.pt", *common]
    else:
        line = ["purify", tmp_path / "model.pt", "--defense", "abl", "-o", "tuning_epochs=1", *common]
    monkeypatch.setattr(resume, "EVERY", 0.0)
    assert call(*line, "--out", tmp_path / "whole") in (0, 4)
    assert not (tmp_path / "kept").exists()
    usual, saved = resume._save, 0

    def interrupted(*args: object) -> None:
        nonlocal saved
        usual(*args)  # type: ignore[arg-type]
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume, "_save", interrupted)
    assert call(*line, "--out", tmp_path / "again") == 3
    capsys.readouterr()
    assert call(*line, "--seed", 5, "--out", tmp_path / "again") == 2
    assert "holds checkpoints of another run (seed" in capsys.readouterr().err
    assert call(*line, "--out", tmp_path / "again") in (0, 4)
    assert "abl: isolation: going on after epoch 2 of 4" in capsys.readouterr().err
    if command == "split":
        assert (tmp_path / "again" / "split.csv").read_text() == (tmp_path / "whole" / "split.csv").read_text()
    else:
        assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def one_class(run: Run, tmp_path: Path) -> list[object]:
    shutil.copytree(run.folder / "train" / "3", tmp_path / "set" / "3")
    return ["--train", tmp_path / "set", *QUICK, "--arch", "small_cnn"]


def one_class_of_the_models(run: Run, tmp_path: Path) -> list[object]:
    return [*one_class(run, tmp_path), "--model", run.model_path]


def a_class_that_the_model_lacks(run: Run, tmp_path: Path) -> list[object]:
    shutil.copytree(run.folder / "train" / "3", tmp_path / "set" / "cat")
    return ["--train", tmp_path / "set", *QUICK, "--model", run.model_path]


def no_labels(run: Run, tmp_path: Path) -> list[object]:
    return ["--train", run.folder / "flagged", *QUICK, "--model", run.model_path]


def no_splitter(run: Run, tmp_path: Path) -> list[object]:
    return ["--train", run.folder / "train", "--by", "ft"]


def no_seeds(run: Run, tmp_path: Path) -> list[object]:
    return ["--train", run.folder / "train", "--by", "asd", "--model", run.model_path]


def missing(run: Run, tmp_path: Path) -> list[object]:
    return ["--train", tmp_path / "nowhere", *QUICK]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_class, "needs at least two class sub-folders"),
        (one_class_of_the_models, "holds label 3 alone"),
        (a_class_that_the_model_lacks, "the model has no class 'cat'"),
        (no_labels, "need labels"),
        (no_splitter, "--by ft: does not split a training set; these do: "),
        (no_seeds, "asd needs clean (clean images with true labels, for tuning): give --clean DIR"),
        (missing, "neither a dataset"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_gives_one_line_exit_code_2_and_no_output(
    damage: Callable[[Run, Path], list[object]],
    message: str,
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = damage(run, tmp_path)
    before = snapshot(tmp_path)
    assert call("split", "--out", tmp_path / "pools", "--quiet", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [error] = [line for line in printed.err.splitlines() if not line.startswith("warning: plugin")]
    assert message in error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("like_a_model", [True, False])
def test_of_a_folder_with_a_training_and_a_test_set_the_training_set_is_split(run: Run, like_a_model: bool) -> None:
    """Whatever says what model to train: its rows, their files, and which of them are poisoned."""
    like: dict[str, Any] = {"model": run.model_path} if like_a_model else {"arch": "small_cnn:width=2"}
    made = bdaudit.split(run.folder, by="abl", options={"isolation_epochs": 1}, device="cpu", **like)
    assert made.train.digest() == run.pool("train").digest()
    assert made.poisoned is not None
    assert made.record.provenance["train"]["source"] == "train"


def test_poisoned_rows_are_known_of_a_runs_own_set_alone(run: Run, tmp_path: Path) -> None:
    train = run.pool("train")
    marked = known_poison(run.folder / "train", train)
    assert marked is not None
    assert int(marked.sum()) == run.record.rows["poisoned"]
    assert known_poison(tmp_path, train) is None
    assert known_poison(run.folder / "train", Pool.of(train.images[:3], [0, 1, 2])) is None


def test_the_charts_stand_alone() -> None:
    """The same bytes each time, one panel a score, whatever its scale."""
    scores = {"loss": {"clean": [-3.0, 2.0], "flagged": [9.0]}, "even": {"clean": [1.0, 1.0], "flagged": [1.0]}}
    drawn = score_charts(scores)
    assert drawn == score_charts(scores)
    assert all(word in drawn for word in ("loss", "even", "flagged (1)"))
    assert ET.fromstring(epoch_chart({"share": [0.2, 0.4]})).tag == "{http://www.w3.org/2000/svg}svg"
