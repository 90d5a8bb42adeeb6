"""A progress bar on stderr that any long loop can ask for and any caller can turn off."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_shown: ContextVar[bool] = ContextVar("bdaudit_progress", default=False)


@contextmanager
def progress_shown(shown: bool = True) -> Iterator[None]:
    """Show bars inside the block (the command line does; the Python API is silent unless asked)."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def track(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show `what` advancing to `total` with the time left; yields the function that advances it by one."""
    if not _shown.get() or not sys.stderr.isatty():
        yield lambda: None
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
        yield lambda: bar.advance(task)


def say(text: str) -> None:
    """Print one line of progress to stderr, if progress is shown."""
    if _shown.get():
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints progress


def warn(text: str) -> None:
    """Print one line to stderr whether or not progress is shown: something went wrong that changes no result."""
    print(f"warning: {text}", file=sys.stderr, flush=True)  # noqa: T201
