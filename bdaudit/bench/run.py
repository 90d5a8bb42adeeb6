"""Run a plan: what is done stays done, what fails stops nothing but what needs it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bdaudit.bench.cost import Estimate
from bdaudit.bench.opened import write_store
from bdaudit.bench.plan import Plan, Stage
from bdaudit.bench.process import Outcome
from bdaudit.bench.store import FILE, Store
from bdaudit.errors import InputError, OutputError, one_line
from bdaudit.flow.output import REPORT
from bdaudit.inputs.files import check_writable, visible
from bdaudit.report.schema import Report, read_report

LOCK = ".bench-lock"


class Executor(Protocol):
    """Somewhere to do stages.

    workers: how many are done at a time. capacity: how many may be under way, those that queue included.
    """

    workers: int
    capacity: int

    def submit(self, stage: Stage) -> None:
        """Start a stage, or queue it."""

    def wait(self) -> list[Outcome]:
        """Wait for a stage to end."""

    def close(self) -> None:
        """Stop what is under way; more than once does no harm."""


class Watcher(Protocol):
    """Somebody who is told how a run gets on."""

    def started(self, tally: Tally) -> None:
        """Before the first stage."""

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        """After each try of a stage, whatever came of it; one that is lost is followed by another."""


@dataclass
class Tally:
    """How a run stands, in cells, and how long what is left will take with all workers busy (None: unknown)."""

    done: int = 0
    failed: int = 0
    left: int = 0
    seconds_left: float | None = None


@contextmanager
def bench_folder(out: Path) -> Iterator[Store]:
    """Open a bench's folder and its database for this process alone; a new folder is made."""
    check_writable(out)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{one_line(out, 160)}: exists and is not a folder; give another name")
    if out.is_dir() and not (out / FILE).is_file() and visible(out) - {LOCK, FILE}:
        raise OutputError(
            f"{one_line(out, 160)}: exists and holds something else; give another name or an empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(
                f"{one_line(out, 160)}: another bench is running in it; wait for it or give another name"
            ) from None
        with write_store(out) as store:
            yield store


def outstanding(plan: Plan, folder: Path) -> list[Stage]:
    """List the stages that are still to be done: the cells without a report, and what those need that is not there."""
    stages = {s.key: s for s in plan.stages}
    todo: set[str] = set()
    for cell in plan.of_kind("cell"):
        if not _report(folder, cell).is_file():
            todo |= {cell.key, *(key for key in cell.needs if not (folder / stages[key].path).exists())}
    return [s for s in plan.stages if s.key in todo]


def run_plan(
    plan: Plan, store: Store, folder: Path, executor: Executor, *, retries: int = 2, watcher: Watcher | None = None
) -> Tally:
    """Do what is outstanding; a stage whose worker is lost is tried again so many times."""
    todo = outstanding(plan, folder)
    store.adopt(plan)
    store.forget(s.key for s in todo)
    unreadable = _catch_up(plan, store, folder, {s.key for s in todo})
    return _Run(plan, store, folder, executor, retries, watcher, todo, unreadable).go()


def _catch_up(plan: Plan, store: Store, folder: Path, todo: set[str]) -> int:
    """Write down the audits that a run finished which was killed before it did; return how many cannot be read."""
    states, unreadable = store.states(), 0
    for cell in plan.of_kind("cell"):
        if cell.key not in todo and states[cell.key] != "done":
            try:
                store.finish(cell, 0.0, _read(folder, cell))
            except InputError as e:
                store.fail(cell, "failed", str(e))
                unreadable += 1
    return unreadable


def _report(folder: Path, cell: Stage) -> Path:
    return folder / cell.path / REPORT


def _read(folder: Path, cell: Stage) -> Report:
    try:
        return read_report(_report(folder, cell))
    except InputError as e:
        raise InputError(f"{one_line(e, 300)}; delete the folder to make it again") from None


class _Run:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        folder: Path,
        executor: Executor,
        retries: int,
        watcher: Watcher | None,
        todo: Sequence[Stage],
        failed: int,
    ) -> None:
        self.store, self.folder, self.executor, self.watcher = store, folder, executor, watcher
        self.waiting = {s.key: s for s in todo}
        self.running: dict[str, Stage] = {}
        self.tries = dict.fromkeys(self.waiting, 0)
        self.most = 1 + retries
        self.estimate = Estimate(plan.stages, store.seconds())
        cells = sum(s.kind == "cell" for s in todo)
        self.tally = Tally(done=len(plan.cells) - cells - failed, failed=failed, left=cells)

    def go(self) -> Tally:
        self._reckon()
        if self.watcher:
            self.watcher.started(self.tally)
        try:
            while self.waiting or self.running:
                self._submit()
                for outcome in self.executor.wait():
                    self._take(outcome)
        finally:
            self.executor.close()
        return self.tally

    def _submit(self) -> None:
        """Start what can be: cells before further models, so that the first results come early."""
        ready = [s for s in self.waiting.values() if not any(n in self.waiting or n in self.running for n in s.needs)]
        ready.sort(key=lambda s: s.kind != "cell")
        for stage in ready[: self.executor.capacity - len(self.running)]:
            self.running[stage.key] = self.waiting.pop(stage.key)
            self.executor.submit(stage)

    def _take(self, outcome: Outcome) -> None:
        stage = self.running.pop(outcome.key)
        self.tries[stage.key] += 1
        if outcome.state == "done":
            outcome = self._record(stage, outcome)
        elif outcome.state == "lost" and self.tries[stage.key] == self.most:
            outcome = replace(outcome, state="failed", reason=f"{outcome.reason}; tried {self.most} times")
        if outcome.state == "lost":
            self.waiting[stage.key] = stage
        elif stage.kind == "cell":
            self.tally.left -= 1
            self.tally.done += outcome.state == "done"
            self.tally.failed += outcome.state == "failed"
        if outcome.state == "failed":
            self.store.fail(stage, "failed", outcome.reason)
            self._block(stage)
        self._reckon()
        if self.watcher:
            self.watcher.ended(stage, outcome, self.tally)

    def _record(self, stage: Stage, outcome: Outcome) -> Outcome:
        """Put a finished stage's result into the database; one that cannot be read has failed."""
        try:
            report = _read(self.folder, stage) if stage.kind == "cell" else None
        except InputError as e:
            return Outcome(outcome.key, "failed", outcome.seconds, str(e))
        self.store.finish(stage, outcome.seconds, report)
        self.estimate.add(stage, outcome.seconds)
        return outcome

    def _block(self, failed: Stage) -> None:
        """Give up the cells that need a stage which failed, and the models that no other cell needs."""
        for stage in [s for s in self.waiting.values() if failed.key in s.needs]:
            del self.waiting[stage.key]
            self.store.fail(stage, "blocked", f"what it needs failed: {failed.label}")
            self.tally.left -= 1
            self.tally.failed += 1
        needed = {key for s in self.waiting.values() for key in s.needs}
        self.waiting = {k: s for k, s in self.waiting.items() if s.kind == "cell" or k in needed}

    def _reckon(self) -> None:
        ahead = self.estimate.total([*self.waiting.values(), *self.running.values()])
        busy = max(1, min(self.executor.workers, len(self.waiting) + len(self.running)))
        self.tally.seconds_left = None if ahead is None else ahead / busy
