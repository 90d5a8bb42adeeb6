"""A progress bar on stderr that any long loop can ask for and any caller can turn off."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

FIRST, NEXT = 10.0, 60.0
"""Seconds after which a log hears of a loop, and between two such lines."""

_shown: ContextVar[bool] = ContextVar("bdaudit_progress", default=False)


@contextmanager
def progress_shown(shown: bool = True) -> Iterator[None]:
    """Show bars inside the block (the command line does; the Python API is silent unless asked)."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, steps: int = 1, said: str = "") -> None:
        """Move by so many steps; said: what to show beside the bar from now on."""


def still(steps: int = 1, said: str = "") -> None:
    """Move no bar."""


@contextmanager
def track(what: str, total: int) -> Iterator[Advance]:
    """Show `what` advancing to `total` with the time left; yields the function that advances it.

    A bar where there is a terminal; in a log, a line now and then of what takes long.
    """
    if not _shown.get():
        yield still
        return
    if not sys.stderr.isatty():
        yield _Log(what, total).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int = 1, said: str = "") -> None:
            bar.update(task, advance=steps, description=f"{what}: {said}" if said else None)

        yield advance


class _Log:
    """Say how far a loop is after `FIRST` seconds and every `NEXT` seconds from then on."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.said, self.total, self.done = what, "", total, 0
        self.start = time.monotonic()
        self.due = self.start + FIRST

    def advance(self, steps: int = 1, said: str = "") -> None:
        self.done += steps
        self.said = said or self.said
        now = time.monotonic()
        if now < self.due or self.done >= self.total:
            return
        self.due = now + NEXT
        left = (now - self.start) / self.done * (self.total - self.done)
        said = f" ({self.said})" if self.said else ""
        say(f"{self.what}: {self.done:,} of {self.total:,}, about {_duration(left)} left{said}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def say(text: str) -> None:
    """Print one line of progress to stderr, if progress is shown."""
    if _shown.get():
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints progress


def warn(text: str) -> None:
    """Print one line to stderr whether or not progress is shown: something went wrong that changes no result."""
    print(f"warning: {text}", file=sys.stderr, flush=True)  # noqa: T201
