"""What comes of a stage by the way in which its process ends."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench.benches import plan_of

from bdaudit.bench import work
from bdaudit.bench.process import Job, Started, _attempt


def ended(folder: Path) -> tuple[str, str]:
    """State and reason of a stage that is done in this very process."""
    return _attempt(Job(plan_of().stages[0], str(folder)), folder)


def test_a_stage_that_somebody_else_stops_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, as of a preempted job, unwinds as KeyboardInterrupt: nothing is wrong with the stage."""

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "perform", stopped)
    assert ended(tmp_path) == ("lost", "was stopped (SIGTERM)")


def test_what_cannot_be_imported_is_a_failure_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another try would end in the same way. Its traceback is printed, and so gets into the stage's log."""
    monkeypatch.setitem(sys.modules, "bdaudit.bench.work", None)
    state, reason = ended(tmp_path)
    assert state == "failed"
    assert "bdaudit.bench.work" in reason
    assert "Traceback" in capsys.readouterr().err


class Hanging:
    """A process that has answered and does not end, whatever it is told, until it is killed."""

    exitcode = None
    alive = True

    def join(self, timeout: float | None = None) -> None:
        pass

    terminate = join

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.alive = False


def test_a_process_that_hangs_while_it_ends_is_killed_before_its_place_is_given_on(tmp_path: Path) -> None:
    started: Any = Started.__new__(Started)
    started.job, started.began, started.process = Job(plan_of().stages[0], str(tmp_path)), time.monotonic(), Hanging()
    started.answer, theirs = multiprocessing.Pipe(duplex=False)
    theirs.send(("done", ""))
    assert started.outcome().state == "done"
    assert not started.process.alive
