"""How a run gets on, on stderr: a live bar at a terminal, a line a stage elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from bdaudit.bench.cost import span
from bdaudit.bench.plan import Stage
from bdaudit.bench.process import Outcome
from bdaudit.bench.run import Tally, Watcher
from bdaudit.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def watching(shown: bool) -> Iterator[Watcher | None]:
    """Yield whoever shows progress; None where it is not to be shown."""
    if not shown:
        yield None
    elif not sys.stderr.isatty():
        yield Lines(sys.stderr)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
        with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
            yield Bar(bar, bar.add_task("cells", total=None, said=""))


def said(tally: Tally) -> str:
    """Say how many are done, failed and left, and how long that takes."""
    ahead = f", about {span(tally.seconds_left)}" if tally.left and tally.seconds_left is not None else ""
    return f"{tally.done} done, {tally.failed} failed, {tally.left} left{ahead}"


def news(stage: Stage, outcome: Outcome) -> str:
    """Say what came of one try of a stage."""
    what = one_line(stage.label)
    match outcome.state:
        case "done":
            return f"{what}: {span(outcome.seconds)}"
        case "lost":
            return f"{what} LOST, is tried again: {one_line(outcome.reason)}"
        case "failed":
            return f"{what} FAILED: {one_line(outcome.reason)}"


class Lines:
    """A line for each stage that ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def started(self, tally: Tally) -> None:
        self._print(f"cells: {said(tally)}")

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        self._print(f"[{said(tally)}] {news(stage, outcome)}")

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class Bar:
    """A bar over all cells; what fails is printed above it."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def started(self, tally: Tally) -> None:
        self._update(tally)

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        if outcome.state != "done":
            self.bar.console.print(news(stage, outcome), markup=False, highlight=False)
        self._update(tally)

    def _update(self, tally: Tally) -> None:
        ended = tally.done + tally.failed
        self.bar.update(self.task, completed=ended, total=ended + tally.left, said=said(tally))
