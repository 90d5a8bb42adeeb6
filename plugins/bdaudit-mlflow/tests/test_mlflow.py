"""An audit from the command line arrives in MLflow's own SQLite store, and a broken store changes no verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from bdaudit_mlflow import metrics, params, tags
from mlflow import MlflowClient
from mlflow.entities import Run

import bdaudit
from bdaudit import plugins
from bdaudit.cli.main import _run
from bdaudit.report.schema import read_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small backdoored model on real digits."""
    out = tmp_path_factory.mktemp("runs") / "badnets"
    bdaudit.attack("badnets", data="digits", out=out, options={"rate": 0.1}, epochs=3, seed=1, device="cpu")
    return out


def audit(run: Path, out: Path) -> int:
    options = ["epochs=1", "retune.epochs=1", "retune.draws=1"]
    pairs = [part for option in options for part in ("-o", option)]
    command = ["audit", run / "model.pt", "--defense", "ep", "--attack", run, "--probe", "retune", *pairs, "--quiet"]
    return _run([str(a) for a in [*command, "--device", "cpu", "--out", out]], debug=True)


def test_it_arrives_as_a_tracker() -> None:
    assert plugins.registry().broken == {}
    assert plugins.registry().trackers["mlflow"].origin.distribution == "bdaudit-mlflow"


def test_an_audit_is_one_run_with_everything_in_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow keeps artefacts of a SQLite store beside it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    code = audit(run, tmp_path / "audit")
    assert "warning: tracker" not in capsys.readouterr().err
    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("bdaudit")
    assert experiment is not None
    [logged] = client.search_runs([experiment.experiment_id])
    report = read_report(tmp_path / "audit" / "report.json")
    assert code == report.exit_code
    assert_holds(logged, report)
    names = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert names == {"report.json", "report.html"}
    back = client.download_artifacts(logged.info.run_id, "report.json", str(tmp_path))
    assert read_report(Path(back)) == report

    audit(run, tmp_path / "again")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def assert_holds(logged: Run, report: bdaudit.Report) -> None:
    data = logged.data
    assert logged.info.status == "FINISHED"
    row = report.find("p_asr", probe="retune")
    assert row is not None
    assert data.metrics["retune.purified.p_asr"] == row.value
    assert data.metrics["retune.purified.p_asr.low"] == row.low
    assert data.metrics["retune.purified.p_asr.n"] == row.n
    assert len(data.metrics) == len(metrics(report)) > len(report.findings) > 5
    assert data.params["defense.name"] == "ep"
    assert data.params["defense.epochs"] == "1"
    assert data.params["probes.retune.draws"] == "1"
    assert data.params["seed"] == "0"
    assert data.params["bdaudit"] == bdaudit.__version__
    assert "bdaudit-mlflow 0.1.0 sha256:" in data.params["plugins"]
    assert not any("times" in key for key in data.params)
    assert data.tags["bdaudit.verdict"] == report.verdict
    assert data.tags["bdaudit.reason.1"] == report.reasons[0]
    assert data.tags["bdaudit.oracle"] == "trigger"
    assert data.tags["policy.max_p_asr"] == "0.2"
    assert data.tags["input.model_file.sha256"] == report.inputs["model_file"]["sha256"]
    assert data.tags["input.evaluation.sha256"] == report.inputs["evaluation"]["sha256"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [("", "nothing was logged: set MLFLOW_TRACKING_URI"), ("nonsense://store", "nonsense")],
)
def test_without_a_store_there_is_one_warning_and_the_same_exit_code(
    uri: str,
    said: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    code = audit(run, tmp_path / "audit")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "tracker mlflow (from bdaudit-mlflow 0.1.0) failed" in warnings[0]
    assert said in warnings[0]
    verdict = read_report(tmp_path / "audit" / "report.json").verdict
    assert code == {"pass": 0, "fail": 1, "inconclusive": 4}[verdict]
    assert {p.name for p in tmp_path.iterdir()} == {"audit"}


def test_names_are_such_as_mlflow_takes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finding has a name of its own, of letters that MLflow allows, whatever its variant says."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    audit(run, tmp_path / "audit")
    report = read_report(tmp_path / "audit" / "report.json")
    odd = report.findings[0].model_copy(update={"variant": "<patch> on \u2028purified"})
    report = report.model_copy(update={"findings": [*report.findings, odd]})
    named = [name for name in metrics(report) if not name.endswith((".low", ".high", ".n"))]
    assert len(named) == len(report.findings)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-/")
        for name in [*named, *params(report), *tags(report)]
    )
