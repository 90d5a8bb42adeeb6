"""`bdaudit screen`, and --screen: folders, scores, exit codes, one clear line for bad input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from support import snapshot

import bdaudit
from bdaudit.cli.main import _run
from bdaudit.errors import UsageError
from bdaudit.flow.run import Run
from bdaudit.flow.screening import is_screen
from bdaudit.inputs.folders import read_folder, write_folder
from bdaudit.inputs.pool import Pool
from bdaudit.report.schema import read_report
from bdaudit.report.scores import score_chart
from bdaudit.runtime import generator

TARGET = 0
FAST = ["-o", "retune.epochs=1", "-o", "retune.draws=1", "--probe", "retune"]


@pytest.fixture
def case(run: Run, tmp_path: Path) -> Path:
    """model.pt beside contaminated pools: 30 triggered images in clean/0, 8 clean ones in flagged/."""
    folder = tmp_path / "case"
    folder.mkdir()
    shutil.copy(run.model_path, folder / "model.pt")
    spare, kept = run.pool("reserve").shuffled(generator(3)).split(8)
    hidden, malicious = run.pool("flagged").labelled(TARGET).split(30)
    classes = run.record.classes
    write_folder(Pool.concat([kept, hidden]), folder / "clean", classes=classes)
    write_folder(Pool.concat([malicious, spare]), folder / "flagged", flat=True)
    return folder


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


def pixels(folder: Path, run: Run) -> list[bytes]:
    pool = read_folder(folder, classes=run.record.classes, shape=run.record.shape)
    return sorted(pool.fingerprints())


class TestScreen:
    def test_it_writes_both_pools_scores_and_a_chart(
        self, case: Path, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = case / "pools"
        assert call("screen", case / "model.pt", "--malicious", case / "flagged", "--out", out) == 0
        printed = capsys.readouterr().out
        assert "the two pools can be told apart (AUC 0." in printed
        assert "--defense sep --clean" in printed
        assert {p.name for p in out.iterdir()} == {"clean", "flagged", "screen.json", "screen.csv", "scores.svg"}
        record = json.loads((out / "screen.json").read_text())
        assert (record["moved"], record["dropped"]) == (30, 8)
        with (out / "screen.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 275 + 58
        assert [row["decision"] for row in rows].count("moved") == 30
        for row in rows:
            looks_flagged = float(row["score"]) >= 0.5
            judged = row["pool"] == "flagged" or row["label"] == str(TARGET)
            expected = {("flagged", False): "dropped", ("clean", True): "moved"}.get(
                (row["pool"], looks_flagged), "kept"
            )
            assert row["decision"] == (expected if judged else "kept")
        assert ET.fromstring((out / "scores.svg").read_text()).tag.endswith("svg")

    def test_every_image_is_where_the_index_says(self, case: Path, run: Run) -> None:
        """By its pixels: the written file holds the image that the row's origin names."""
        out = case / "pools"
        assert call("screen", case / "model.pt", "--malicious", case / "flagged", "--out", out, "--quiet") == 0
        with (out / "screen.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["path"]]
        for row in rows[::7] + [row for row in rows if row["decision"] == "moved"]:
            original = case / row["pool"] / row["image"]
            assert (out / row["path"]).read_bytes() == original.read_bytes()
        together = pixels(out / "clean", run) + pixels(out / "flagged", run)
        dropped = 8
        assert len(together) == 275 + 58 - dropped

    def test_pools_that_cannot_be_told_apart_end_with_code_4(
        self, case: Path, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And come out as they went in."""
        pool = run.pool("test").shuffled(generator(5))
        write_folder(pool.take(pool.labels != TARGET).first(60), case / "innocent", flat=True)
        line = ["screen", case / "model.pt", "--malicious", case / "innocent", "--target", TARGET]
        assert call(*line, "--out", case / "pools", "--json") == 4
        record = json.loads(capsys.readouterr().out)
        assert record["statement"].startswith("the two pools cannot be told apart, so nothing was moved or dropped: ")
        assert record["doubt"]
        assert record["images"] == {"clean_given": 275, "flagged_given": 60, "clean": 275, "flagged": 60}
        assert pixels(case / "pools" / "clean", run) == pixels(case / "clean", run)
        assert pixels(case / "pools" / "flagged", run) == pixels(case / "innocent", run)

    def test_an_earlier_screening_is_replaced_and_nothing_else(
        self, case: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = case / "pools"
        line = ["screen", case / "model.pt", "--malicious", case / "flagged", "--out", out, "--quiet"]
        assert call(*line) == 0
        first = (out / "screen.csv").read_text()
        assert is_screen(out)
        assert call(*line) == 0
        assert (out / "screen.csv").read_text() == first
        (out / "mine.txt").write_text("precious")
        assert not is_screen(out)
        assert call(*line) == 2
        assert (out / "mine.txt").read_text() == "precious"

    def test_python_gives_pools_and_scores(self, run: Run) -> None:
        result = bdaudit.screen(
            run.model_path, clean=run.folder / "clean", malicious=run.folder / "flagged", device="cpu"
        )
        assert result.record.target == TARGET
        assert result.found.flagged.shape == (80,)
        assert (result.flagged.labels == TARGET).all()


def missing_folder(case: Path) -> list[object]:
    return ["--malicious", case / "nowhere"]


def empty_folder(case: Path) -> list[object]:
    (case / "nothing").mkdir()
    return ["--malicious", case / "nothing"]


def target_out_of_range(case: Path) -> list[object]:
    return ["--malicious", case / "flagged", "--target", "10"]


def unlabelled_clean(case: Path) -> list[object]:
    return ["--malicious", case / "flagged", "--clean", case / "flagged"]


def depth_out_of_range(case: Path) -> list[object]:
    return ["--malicious", case / "flagged", "--depth", "0"]


def nothing_flagged(case: Path) -> list[object]:
    return []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_folder, "no such folder"),
        (empty_folder, "no images in it"),
        (target_out_of_range, "target 10 is out of range"),
        (unlabelled_clean, "need labels"),
        (depth_out_of_range, "--depth"),
        (nothing_flagged, "Missing option '--malicious'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_gives_one_line_exit_code_2_and_no_output(
    damage: Callable[[Path], list[object]], message: str, case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = damage(case)
    before = snapshot(case)
    assert call("screen", case / "model.pt", "--out", case / "pools", "--quiet", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert snapshot(case) == before


def test_a_suspect_cannot_blind_its_own_screening(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At another depth, or for another target, its trigger might not be seen."""
    (case / "bdaudit.toml").write_text("[screen]\ndepth = 0.01\n")
    line = ["screen", case / "model.pt", "--malicious", case / "flagged", "--out", case / "pools"]
    assert call(*line) == 2
    assert "came with the suspect" in capsys.readouterr().err


class TestFlag:
    """--screen gives any defense the screened pools."""

    def test_purify_says_what_was_moved_and_tunes_on_the_rest(
        self, case: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = ["purify", case / "model.pt", "--defense", "pl", "--malicious", case / "flagged", "-o", "epochs=1"]
        models = []
        for extra in ([], ["--screen"]):
            assert call(*line, "--json", *extra) == 0
            row = json.loads(capsys.readouterr().out)
            models.append(torch.load(row["out"], weights_only=True)["state_dict"])
        assert any("30 of 275 benign images look flagged" in note for note in row["notes"])
        assert {g["input"]: g["source"] for g in row["granted"]}["malicious"] == "flagged/, screened"
        assert any(not torch.equal(t, models[1][k]) for k, t in models[0].items())

    def test_a_defense_that_takes_no_flagged_images_gets_the_screened_clean_ones(
        self, case: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = ["purify", case / "model.pt", "--defense", "ft", "-o", "epochs=1", "--screen", "--json"]
        assert call(*line, "--malicious", case / "flagged") == 0
        granted = {g["input"]: g["source"] for g in json.loads(capsys.readouterr().out)["granted"]}
        assert granted["clean"] == "clean/, screened"
        assert "malicious" not in granted

    def test_an_audit_screens_what_the_defense_gets_and_notes_it(self, case: Path) -> None:
        line = ["audit", case / "model.pt", "--defense", "pl", "-o", "epochs=1", "--malicious", case / "flagged"]
        assert call(*line, "--screen", "--out", case / "out", "--quiet", *FAST) in (0, 1, 4)
        report = read_report(case / "out" / "report.json")
        assert any(note.startswith("screening: the two pools can") for note in report.notes)
        assert {g.source for g in report.granted if g.input == "malicious"} == {"a part of --malicious, screened"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["purify", "model.pt", "--defense", "ft"], "no flagged images: give --malicious DIR"),
            (["audit", "model.pt", "--defense", "ft"], "no flagged images: give --malicious DIR"),
            (["audit", "model.pt", "--purified", "x.pt", "--malicious", "flagged"], "no defense: give --defense NAME"),
        ],
    )
    def test_what_it_lacks_is_said(
        self,
        arguments: list[str],
        message: str,
        case: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(case)
        before = snapshot(case)
        assert call(*arguments, "--screen", "--quiet") == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert snapshot(case) == before

    def test_an_all_to_all_backdoor_is_refused(self, run: Run, case: Path, tmp_path: Path) -> None:
        """It has no single target, so no benign label is known to be free of triggers."""
        from bdaudit.flow.evidence import Evidence
        from bdaudit.flow.screening import screened
        from bdaudit.inputs.goal import Goal

        model = bdaudit.load(run.model_path, device="cpu").classifier
        evidence = Evidence(model, goal=Goal(None, 10), clean=run.pool("clean"), malicious=run.pool("flagged"))
        with pytest.raises(UsageError, match="all-to-all backdoor have no common target"):
            screened(evidence, generator(0))


def test_the_chart_stands_alone_and_names_its_groups() -> None:
    """The same bytes each time; a group without scores is left out."""
    groups = {"clean, other classes": [0.0, 0.1, 0.1], "empty": [], "flagged": [0.9, 1.0]}
    drawn = score_chart(groups)
    assert drawn == score_chart(groups)
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    assert "flagged (2)" in drawn
    assert "empty" not in drawn
    assert "var(--" not in drawn
