"""A stage in a process of its own: it can be timed out, may crash, and finds the same state whoever started it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from bdaudit.bench.plan import Stage
from bdaudit.bench.store import log_of
from bdaudit.errors import BdauditError, one_line

State = Literal["done", "failed", "lost"]
GRACE = 10.0
"""Seconds that a process has to clear away what it has half-written."""
_PR_SET_PDEATHSIG = 1

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["bdaudit.bench.preload"])


@dataclass(frozen=True)
class Job:
    """A stage, where its results go, and what of the machine it may use.

    limit: seconds, at most. gpu: the one that it sees; None: whatever the machine shows.
    """

    stage: Stage
    folder: str
    threads: int = 1
    limit: float | None = None
    gpu: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended. lost: its process, or the machine under it, is gone, so that it may be tried again."""

    key: str
    state: State
    seconds: float = 0.0
    reason: str = ""


class Started:
    """A process that does a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.began = time.monotonic()
        self.answer, theirs = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_do, args=(job, theirs), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()

    @property
    def left(self) -> float | None:
        """Seconds until the limit; None without one."""
        return None if self.job.limit is None else self.job.limit - (time.monotonic() - self.began)

    def outcome(self) -> Outcome:
        """Take the answer that has come, or say that none will: to be called once `answer` is ready."""
        key, seconds = self.job.stage.key, time.monotonic() - self.began
        try:
            answer = self.answer.recv()
        except (EOFError, OSError):
            answer = None
        self.process.join(GRACE)
        self.stop()  # one that hangs while it ends would hold on to its cores or its GPU
        if answer is None:
            return Outcome(key, "lost", seconds, f"its process died ({_ended(self.process.exitcode)})")
        state, reason = answer
        return Outcome(key, state, seconds, reason)

    def stop(self) -> None:
        """End the process, if it has not ended; it clears away what it was writing."""
        self.process.terminate()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.answer.close()

    def too_late(self) -> Outcome:
        """End the process because its time is up."""
        self.stop()
        reason = f"took longer than the limit of {self.job.limit:g} s"
        return Outcome(self.job.stage.key, "failed", time.monotonic() - self.began, reason)


def run_to_end(job: Job) -> Outcome:
    """Do a job in a process of its own, and wait for it."""
    started = Started(job)
    try:
        return started.outcome() if started.answer.poll(job.limit) else started.too_late()
    except BaseException:
        started.stop()
        raise


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from importing the program that starts it (a user's script, Ray's worker)."""
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if vars(main).get(name) is not None}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _do(job: Job, answer: Connection) -> None:
    _die_with_parent()
    # As for the command line: what was being written is cleared away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started this decides
    folder = Path(job.folder)
    with _printing_to(folder / log_of(job.stage.key)):
        answer.send(_attempt(job, folder))


def _attempt(job: Job, folder: Path) -> tuple[State, str]:
    if job.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    try:
        import torch
        from threadpoolctl import threadpool_limits

        from bdaudit.bench.work import perform

        torch.set_num_threads(job.threads)
        with threadpool_limits(job.threads):
            perform(job.stage, folder)
    except KeyboardInterrupt:  # by somebody else: whoever ends it on purpose does not ask for the answer
        return "lost", "was stopped (SIGTERM)"
    except Exception as e:
        traceback.print_exc()
        known = isinstance(e, BdauditError)
        return "failed", one_line(e, 500) if known else f"unexpected {type(e).__name__}: {one_line(e, 160)}"
    return "done", ""


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Send what is printed, by C libraries too, to a file, which is removed if nothing was."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not log.stat().st_size:
            log.unlink()


def _die_with_parent() -> None:
    """End when the process that forked this one does, as it does with the one that started it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
