"""`bdaudit bench` as it is typed: the documented grid, bad grids, tables, and a folder that is no bench."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from pathlib import Path

import pandas
import pytest
from bench.benches import finish, finished, report_of

from bdaudit.bench.grid_file import read_grid
from bdaudit.bench.opened import write_store
from bdaudit.bench.plan import make_plan
from bdaudit.bench.store import COORDINATES
from bdaudit.cli.main import _run

DOCS = Path(__file__).parents[2] / "docs" / "bench.md"


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The example of docs/bench.md."""
    grid = re.search(r"```toml\n(# grid.toml\n.*?)```", DOCS.read_text(), re.DOTALL)
    assert grid
    (tmp_path / "grid.toml").write_text(grid[1])
    return tmp_path / "grid.toml"


def test_the_documented_grid_plans(documented: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 attacks, 5 defenses of which one is left out once contaminated, 2 contaminations, 2 budgets, 2 seeds."""
    assert call("bench", "plan", documented) == 0
    printed = capsys.readouterr().out
    assert "2 clean twins, 4 backdoored models, 72 cells; every cell is probed with retune" in printed
    assert "6 models are each shared by up to 36 cells" in printed
    assert re.search(r"about [\d.]+ (s|min|h) with \d+ at a time, reckoned", printed)
    assert call("bench", "plan", documented, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cells"], len(document["stages"])) == (72, 78)
    cell = next(s for s in document["stages"] if s["label"] == "blended rate=0.1, fst alpha=0.2, budget 50, seed 1")
    assert {axis: cell[axis] for axis in ("data", "attack", "defense", "contamination", "budget", "seed")} == {
        "data": "digits", "attack": "blended rate=0.1", "defense": "fst alpha=0.2", "contamination": "0", "budget": 50, "seed": 1
    }  # fmt: skip
    assert len({json.dumps([s[axis] for axis in COORDINATES]) for s in document["stages"] if s["kind"] == "cell"}) == 72
    assert call("bench", "plan", documented, "--json", "--seed", "5") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cells"], {s["seed"] for s in document["stages"] if s["kind"] == "cell"}) == (36, {5})


def test_the_documented_cross_attack_grid_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BadNets' own images, Blended's own, and BadNets' for Blended; each with two defenses."""
    [grid] = re.findall(r"```toml\n(data = .*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "grid.toml").write_text(grid)
    assert call("bench", "plan", tmp_path / "grid.toml", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    cells = [s for s in document["stages"] if s["kind"] == "cell"]
    assert len(cells) == 6
    assert {(c["attack"], c["malicious"]) for c in cells} == {
        ("badnets rate=0.1", "own"), ("blended rate=0.1", "own"), ("blended rate=0.1", "badnets rate=0.1")
    }  # fmt: skip


def test_the_documented_line_of_pandas_reads_a_bench(
    documented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(read_grid(documented), "cpu")
    finished(tmp_path / "bench", plan, {plan.cells[0].stage.label: report_of(0.9, 0.1, 0.2)})
    monkeypatch.chdir(tmp_path)
    line = re.search(r"^frame = (.*)$", DOCS.read_text(), re.MULTILINE)
    assert line
    frame = eval(line[1], {"pandas": pandas, "sqlite3": sqlite3})  # noqa: S307 - it is our own page
    assert frame["value"].tolist() == [0.9, 0.1, 0.2]
    assert frame["budget"].tolist() == [100] * 3


def test_the_documented_tables_are_shown(documented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(read_grid(documented), "cpu")
    finished(tmp_path / "bench", plan, {c.stage.label: report_of(0.9, 0.1, 0.2) for c in plan.cells})
    lines = re.findall(r"^bdaudit (bench (?:show|compare) .*)$", DOCS.read_text(), re.MULTILINE)
    shown = [line.split() for line in lines if "compare" not in line and " #" not in line]
    assert len(shown) == 2
    for words in shown:
        out = [str(tmp_path / w) if w in ("bench/", "table.csv") else w for w in words]
        assert call(*out) == 0
    assert "\\toprule" in capsys.readouterr().out
    assert (tmp_path / "table.csv").read_text().startswith("attack,defense,contamination,budget,")
    assert call("bench", "compare", tmp_path / "bench", tmp_path / "bench") == 0
    assert "72 cells in both, 72 of them the same to every option." in capsys.readouterr().out


def test_a_plan_counts_what_is_done(documented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One cell is left, whose models are there: it will take as long as those like it did."""
    plan = make_plan(read_grid(documented))
    *others, last = plan.cells
    finished(tmp_path / "bench", plan, {c.stage.label: report_of(0.9, 0.1, 0.2) for c in others})
    for model in (s for s in plan.stages if s.kind != "cell"):
        (tmp_path / "bench" / model.path).parent.mkdir(exist_ok=True)
        (tmp_path / "bench" / model.path).touch()
    line = ("bench", "plan", documented, "--out", tmp_path / "bench", "--workers", "1")
    assert call(*line) == 0
    assert "left: 1 cell; about 12 s with 1 at a time, by what was measured here" in capsys.readouterr().out
    with write_store(tmp_path / "bench") as store:
        finish(store, tmp_path / "bench", last, report_of(0.9, 0.1, 0.2))
    assert call(*line) == 0
    assert "nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{grid}", "--out", "{folder}", "--executor", "ray", "--workers", "2"), "--workers is for --executor local"),
        (("{grid}", "--out", "{folder}", "--address", "x"), "--address is for --executor ray"),
        (("{grid}",), "Missing option '--out'"),
        (("missing.toml", "--out", "{folder}"), "missing.toml: cannot be read as TOML"),
        (("plan", "{grid}", "--seed", "foo"), "Invalid value for '--seed'"),
        (("show", "{folder}"), "holds no bench"),
        (("show", "{folder}", "--plain", "--format", "csv"), "--plain is for the formats"),
        (("compare", "{folder}", "{folder}"), "holds no bench"),
        (("{grid}", "--out", "{grid}"), "exists and is not a folder"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str, documented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    assert call("bench", *(a.format(grid=documented, folder=folder) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert [line for line in error.splitlines() if not line.startswith("warning: plugin ")] == [error.splitlines()[-1]]
    assert not folder.exists()


def test_an_executor_that_cannot_be_had_leaves_no_folder(
    documented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call("bench", documented, "--out", tmp_path / "b", "--executor", "ray") == 2
    assert "Ray is not installed; pip install 'bdaudit[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_bad_grid_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.toml").write_text('data = "digits"\nattacks = "badnets"\ndefenses = "fts"\n')
    assert call("bench", tmp_path / "g.toml", "--out", tmp_path / "b") == 2
    assert "there is no defense named 'fts'; did you mean" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
