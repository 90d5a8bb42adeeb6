"""Trackers hear of every finished audit, and can change nothing about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.reports import audited

from bdaudit import api, plugins
from bdaudit.cli.main import _run
from bdaudit.flow.run import Run
from bdaudit.flow.tracking import tell_trackers
from bdaudit.report.schema import Report, read_report

FAST = {"epochs": 1, "retune.epochs": 1, "retune.draws": 1}


def install(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., object]) -> None:
    origin = plugins.Origin("stranger", "1.0", "stranger")
    trackers = {
        name: plugins.Tracker(f, tuple(f.__code__.co_varnames[: f.__code__.co_argcount]), origin)
        for name, f in functions.items()
    }
    registry = plugins.Registry(dict(plugins.registry().found), trackers=trackers)
    monkeypatch.setattr(plugins, "registry", lambda: registry)


def test_each_tracker_gets_what_it_names_in_the_order_of_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[tuple[str, object]] = []
    install(
        monkeypatch,
        second=lambda report: heard.append(("second", report.verdict)),
        first=lambda folder: heard.append(("first", folder)),
        third=lambda folder, report: heard.append(("third", (folder, report.title))),
    )
    report = audited()
    tell_trackers(report, tmp_path)
    assert heard == [("first", tmp_path), ("second", report.verdict), ("third", (tmp_path, report.title))]


def test_what_a_tracker_does_to_its_report_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Report] = []

    def vandal(report: Report) -> None:
        report.findings.clear()
        report.provenance.clear()

    install(monkeypatch, a_vandal=vandal, honest=lambda report: seen.append(report))
    report = audited()
    before = report.to_json()
    tell_trackers(report, None)
    assert report.to_json() == before
    assert [r.to_json() for r in seen] == [before]


@pytest.mark.parametrize("raised", [ValueError("no\nserver"), SystemExit(0)])
def test_one_that_raises_is_one_warning_and_stops_no_other(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(report: Report) -> None:
        raise raised

    seen: list[Any] = []
    install(monkeypatch, broken=broken, later=lambda report: seen.append(report))
    tell_trackers(audited(), None)
    printed = capsys.readouterr()
    assert printed.err.startswith(f"warning: tracker broken (from stranger 1.0) failed: {type(raised).__name__}: ")
    assert printed.err.count("\n") == 1
    assert len(seen) == 1


def test_an_audit_tells_of_its_report_and_keeps_its_exit_code_and_its_stdout(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is complete when a tracker sees it; what a tracker prints does not spoil --json."""
    heard: list[tuple[Report, Report]] = []

    def notes(report: Report, folder: Path) -> None:
        print("view the run at http://example.org")
        heard.append((report, read_report(folder / "report.json")))
        sys.exit(0)

    install(monkeypatch, notes=notes)
    out = tmp_path / "audit"
    arguments = ["audit", run.model_path, "--defense", "ft", "--attack", run.folder, "--probe", "retune", "--out", out]
    options = [part for key, value in FAST.items() for part in ("-o", f"{key}={value}")]
    code = _run([str(a) for a in [*arguments, *options, "--json", "--quiet"]], debug=True)
    printed = capsys.readouterr()
    report = Report.model_validate_json(printed.out)
    assert code == report.exit_code == 1
    assert heard == [(report, report)]
    assert "view the run" in printed.err
    assert "tracker notes (from stranger 1.0) failed: SystemExit" in printed.err


def test_the_python_interface_may_leave_trackers_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    install(monkeypatch, notes=lambda report, folder: heard.append(folder))
    for track in (True, False):
        api.audit(
            run.model_path, defense="ft", run=run.folder, probes=[], options={"epochs": 1}, track=track, device="cpu"
        )
    assert heard == [None]


def test_trackers_are_listed_and_shown_and_not_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def notes(report: Report) -> None:
        """Write it down."""

    install(monkeypatch, notes=notes)
    assert _run(["plugins", "list", "--kind", "tracker"], debug=True) == 0
    listed = capsys.readouterr().out
    assert "Write it down." in listed
    assert "fst" not in listed
    assert _run(["plugins", "show", "notes"], debug=True) == 0
    assert capsys.readouterr().out == "notes (tracker, from stranger 1.0)\n\nWrite it down.\n"
    assert _run(["plugins", "check", "notes"], debug=False) == 2
    assert "notes is a tracker" in capsys.readouterr().err
