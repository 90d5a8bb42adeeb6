"""Stages in real processes: the same result as a call, a limit that ends them, and workers that are killed."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bench.benches import SMALL, plan_of, toml_of

from bdaudit import api
from bdaudit.bench.local import Local
from bdaudit.bench.plan import Plan, Stage
from bdaudit.bench.process import Outcome
from bdaudit.bench.progress import watching
from bdaudit.bench.run import Tally, bench_folder, run_plan
from bdaudit.bench.store import CellRow
from bdaudit.cli.main import _run
from bdaudit.flow.output import REPORT
from bdaudit.report.schema import read_report


def run(
    plan: Plan, folder: Path, *, workers: int = 2, limit: float | None = None, watcher: Any = None
) -> tuple[Tally, list[CellRow]]:
    with bench_folder(folder) as store:
        tally = run_plan(plan, store, folder, Local(str(folder), [None] * workers, limit=limit), watcher=watcher)
        return tally, store.cells()


def typed(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `bdaudit bench`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _run(["bench", *map(str, arguments), "--device", "cpu"], debug=False)
    return code, out.getvalue(), err.getvalue()


Typed = tuple[tuple[int, str, str], Path]
"""What a command came to, and the folder with its grid and its bench."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """A small grid that was run for real, as it is typed; one of its defenses cannot purify such a network."""
    base = tmp_path_factory.mktemp("local")
    (base / "grid.toml").write_text(toml_of({**SMALL, "defenses": ["ft epochs=1", "npd from_end=9"]}))
    return typed(base / "grid.toml", "--out", base / "bench", "--workers", 2, "--json"), base


@pytest.fixture(scope="module")
def bench(command: Typed) -> Path:
    return command[1] / "bench"


def test_the_command_runs_a_grid_and_says_what_failed_and_where_to_read_of_it(command: Typed) -> None:
    """Exit code 3, one JSON document, a line a stage on stderr, and the page; the log has the traceback."""
    (code, out, err), base = command
    assert code == 3
    document = json.loads(out)
    assert (document["done"], document["failed"]) == (1, 1)
    [failure] = document["failures"]
    assert (failure["kind"], failure["label"]) == ("cell", "badnets, npd from_end=9, seed 0")
    assert "npd stands behind a convolution" in failure["reason"]
    assert "UsageError" in (base / "bench" / "logs" / f"{failure['key']}.log").read_text()
    lines = [line for line in err.splitlines() if not line.startswith("warning: plugin ")]
    assert lines[0] == "cells: 0 done, 0 failed, 2 left"
    assert len(lines) == 5
    assert any(re.fullmatch(r"\[.*\] clean twin, seed 0: \d+ s", line) for line in lines)
    assert any("badnets, npd from_end=9, seed 0 FAILED: npd stands behind" in line for line in lines)
    page = (base / "bench" / "bench.html").read_text()
    assert f"(see logs/{failure['key']}.log)" in page
    assert f"cells/{plan_of().cells[0].stage.key}/report.html" in page


def test_the_command_again_tries_what_failed_and_says_so_in_words(command: Typed) -> None:
    _, base = command
    code, out, err = typed(base / "grid.toml", "--out", base / "bench", "--workers", 1, "--quiet")
    assert code == 3
    assert out.startswith("1 cells done, 1 failed\n  badnets, npd from_end=9, seed 0: npd stands behind")
    assert f"to see them: bdaudit bench show {base / 'bench'}" in out
    assert "FAILED" not in err


def test_at_a_terminal_a_bar_counts_cells_and_failures_stay_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, stage = Terminal(), plan_of().stages[0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with watching(True) as watcher:
        assert watcher is not None
        watcher.started(Tally(left=2))
        watcher.ended(stage, Outcome(stage.key, "done", 1.0), Tally(done=1, left=1, seconds_left=30.0))
        watcher.ended(stage, Outcome(stage.key, "failed", reason="no [memory]"), Tally(done=1, failed=1))
    shown = screen.getvalue()
    assert "clean twin, seed 0 FAILED: no [memory]" in shown
    assert "1 done, 1 failed, 0 left" in shown
    assert "clean twin, seed 0: 1 s" not in shown


@pytest.mark.usefixtures("precision_of_the_processor")
def test_a_cell_is_the_audit_that_a_call_makes(bench: Path) -> None:
    """To the last figure: what a stage's process finds is what `api.audit` finds here, on the same files."""
    cell = plan_of().cells[0].stage
    spec = cell.spec
    run_folder = bench / spec["victim"]
    mine = api.audit(
        run_folder / "model.pt",
        defense="ft",
        run=run_folder,
        malicious=run_folder / "flagged",
        reference=bench / spec["reference"],
        probes=["retune"],
        options={"epochs": 1, **{f"retune.{k}": v for k, v in SMALL["options"]["probe"]["retune"].items()}},
        evaluate=60,
        device="cpu",
    )
    theirs = read_report(bench / cell.path / REPORT)
    assert [f.model_dump() for f in theirs.findings] == [f.model_dump() for f in mine.findings]
    assert theirs.find("p_asr", probe="retune") is not None
    assert theirs.inputs == mine.inputs
    assert theirs.provenance["threads"] == 1


def test_a_probe_of_another_option_needs_neither_the_models_nor_the_purification_again(bench: Path) -> None:
    """With all models gone but the one that is audited, the cell is made from what was kept."""
    options = {"probe": {"retune": SMALL["options"]["probe"]["retune"] | {"epochs": 2}}}
    plan = plan_of(defenses=["ft epochs=1"], options=options)
    before = {p: p.stat().st_mtime_ns for p in (bench / "victims").rglob("*")}
    tally, _ = run(plan, bench)
    assert tally.done == 1
    assert {p: p.stat().st_mtime_ns for p in (bench / "victims").rglob("*")} == before
    assert read_report(bench / plan.cells[0].stage.path / REPORT).provenance["from_earlier_audits"] == ["ft"]


class Killer:
    """Kills a stage's process as soon as it has begun, and remembers how the tries of all stages ended."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.thread = threading.Thread(target=self._kill)

    def started(self, tally: Tally) -> None:
        self.thread.start()

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        self.states.append(outcome.state)

    def _kill(self) -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        assert children[0].pid  # 0 would be the tests' own group
        os.kill(children[0].pid, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_leaves_nothing(tmp_path: Path) -> None:
    """A clean twin's process is killed at its start; the run goes on and ends as if nothing had been."""
    killer = Killer()
    tally, _ = run(plan_of(defenses=["ft epochs=1"]), tmp_path, watcher=killer, workers=1)
    killer.thread.join()
    assert (tally.done, tally.failed) == (1, 0)
    assert killer.states == ["lost", "done", "done", "done"]
    assert not [p for p in tmp_path.rglob("*") if ".partial-" in p.name]
    assert not multiprocessing.active_children()


def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Its cells are given up, with the limit in the reason, and what it was writing is cleared away."""
    tally, cells = run(plan_of(victim=SMALL["victim"] | {"epochs": 5000}), tmp_path, limit=2.0)
    assert (tally.done, tally.failed) == (0, 2)
    assert cells[0].reason.endswith("failed: clean twin, seed 0") or cells[0].reason.endswith("badnets, seed 0")
    assert not [p for p in tmp_path.rglob("*") if ".partial-" in p.name]
    with bench_folder(tmp_path) as store:
        assert "took longer than the limit of 2 s" in {failure.reason for failure in store.failures()}


def test_a_forked_stage_finds_all_of_torch_imported_that_training_needs() -> None:
    """torch imports its compiler with the first optimiser: 2.8 s of processor time, once instead of in every stage."""
    code = (
        "import sys; from bdaudit.bench import preload; before = set(sys.modules); import torch; "
        "w = torch.zeros(2, requires_grad=True); optimizers = torch.optim.SGD([w], 0.1), torch.optim.Adam([w], 0.1); "
        "w.sum().backward(); [(o.step(), o.zero_grad()) for o in optimizers]; print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
