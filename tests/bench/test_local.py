"""Stages in real processes: the same result as a call, a limit that ends them, and workers that are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bench.benches import SMALL, plan_of

from bdaudit import api
from bdaudit.bench.local import Local
from bdaudit.bench.plan import Plan, Stage
from bdaudit.bench.process import Outcome
from bdaudit.bench.run import Tally, bench_folder, run_plan
from bdaudit.bench.store import CellRow
from bdaudit.flow.output import REPORT
from bdaudit.report.schema import read_report


def run(plan: Plan, folder: Path, *, watcher: Any = None, **more: Any) -> tuple[Tally, list[CellRow]]:
    with bench_folder(folder) as store:
        executor = Local(str(folder), **({"workers": 2} | more))
        tally = run_plan(plan, store, folder, executor, watcher=watcher)
        return tally, store.cells()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small grid that was run for real; one of its defenses cannot purify such a network."""
    folder = tmp_path_factory.mktemp("local") / "bench"
    plan = plan_of(defenses=["ft epochs=1", "npd from_end=9"])
    tally, cells = run(plan, folder)
    assert (tally.done, tally.failed) == (1, 1)
    assert "npd stands behind a convolution" in cells[1].reason
    return folder


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
    """Kills a stage's process as soon as it has begun."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.thread = threading.Thread(target=self._kill)

    def started(self, tally: Tally) -> None:
        self.thread.start()

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        self.reasons.append(outcome.reason)

    def _kill(self) -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid or 0, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_leaves_nothing(tmp_path: Path) -> None:
    """A clean twin's process is killed at its start; the run goes on and ends as if nothing had been."""
    killer = Killer()
    tally, _ = run(plan_of(defenses=["ft epochs=1"]), tmp_path, watcher=killer, workers=1)
    killer.thread.join()
    assert (tally.done, tally.failed) == (1, 0)
    assert killer.reasons == ["", "", ""]
    assert not [p for p in tmp_path.rglob("*") if ".partial-" in p.name]
    assert not multiprocessing.active_children()


def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Its cells are given up, with the limit in the reason, and what it was writing is cleared away."""
    tally, cells = run(plan_of(victim=SMALL["victim"] | {"epochs": 5000}), tmp_path, limit=2.0)
    assert (tally.done, tally.failed) == (0, 2)
    assert cells[0].reason.endswith("failed: clean twin, seed 0") or cells[0].reason.endswith("badnets, seed 0")
    assert not [p for p in tmp_path.rglob("*") if ".partial-" in p.name]
    with bench_folder(tmp_path) as store:
        assert "took longer than the limit of 2 s" in {reason for _, _, reason in store.failures()}
