"""What may happen when a stranger's file is read: one clear line, or a result. Everything else is a finding."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

from bdaudit.errors import BdauditError

SECONDS = 5.0
"""More than any of these small inputs may take."""

_WRITES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"}
    | {"os.utime", "os.mkfifo", "os.mknod", "os.setxattr", "os.removexattr"}
)
_RUNS = (
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "socket.",
    "subprocess.",
    "webbrowser.",
)
_RUNS_EXACTLY = frozenset({"pickle.find_class", "ctypes.dlopen", "code.__new__", "marshal.loads", "os.startfile"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OURS = tuple(
    {sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), str(Path(__file__).parents[2])}
    | {"/proc", "/dev/urandom", "/dev/null", "/sys", "/usr", "/lib", "/etc/mime.types", "/etc/magic"}
)
"""Where Python, the packages and this repository lie: read at any time, as modules are imported late."""


class Hang(BaseException):
    """An input took longer than it may."""


@dataclass
class Watch:
    """What the audit hook saw while it was on. folder: the one place that may be read and written."""

    folder: str = ""
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event in _RUNS_EXACTLY or event.startswith(_RUNS):
            if not (event == "marshal.loads" and _importing()):
                self.seen.append(f"{event} {str(arguments)[:200]}")
        elif event == "exec":  # to compile runs nothing: numpy reads literals so
            code = arguments[0]
            name = code.co_filename if isinstance(code, CodeType) else "?"
            if not name.startswith(_OURS) and not name.startswith("<frozen") and not _importing():
                self.seen.append(f"{event} {name}")
        elif event == "open" and not isinstance(arguments[0], int):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            path = os.path.abspath(os.fsdecode(arguments[0]))  # type: ignore[arg-type]  # noqa: PTH100
            if not path.startswith(self.folder) and (flags & _WRITING or not path.startswith(_OURS)):
                self.seen.append(f"open {path} {flags:o}")
        elif event in _WRITES and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if not path.startswith(self.folder):
                self.seen.append(f"{event} {path}")


def _importing() -> bool:
    """Whether an import statement of ours is under way, which runs modules."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" and frame.f_code.co_name == "_find_and_load":
            return True
        frame = frame.f_back
    return False


WATCH = Watch()
_installed: list[bool] = []


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Note everything forbidden that happens in the block: code run, files touched outside `folder`."""
    if not _installed:
        sys.addaudithook(WATCH.hook)  # for good: a hook cannot be taken back
        _installed.append(True)
    WATCH.folder, WATCH.on, WATCH.seen = os.path.realpath(folder), True, []
    try:
        yield WATCH.seen
    finally:
        WATCH.on = False


@contextmanager
def hurried(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after so long."""

    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Outcome:
    """How one input ended. kind: `used`, the name of an error of ours, or `FINDING`; what: in which way."""

    kind: str
    what: str = ""
    seconds: float = 0.0


def judge(run: Callable[[], object], folder: Path, allowed: tuple[type[BaseException], ...] = ()) -> Outcome:
    """Run one input and judge it. allowed: further exceptions that are an answer of this reader."""
    begun = time.perf_counter()
    kind, what = "used", ""
    with watched(folder) as seen:
        try:
            with hurried(SECONDS):
                run()
        except BdauditError as e:
            kind, what = type(e).__name__, _unclear(e)
        except allowed as e:
            kind = type(e).__name__
        except Hang:
            kind, what = "FINDING", f"hang: more than {SECONDS:g} s"
        except Exception as e:
            kind, what = "FINDING", _place(e)
    took = time.perf_counter() - begun
    if seen:
        return Outcome("FINDING", f"forbidden: {seen[0]}", took)
    if what:
        return Outcome("FINDING", what, took)
    if took > SECONDS:
        return Outcome("FINDING", f"slow: more than {SECONDS:g} s", took)
    return Outcome(kind, "", took)


def _unclear(error: BdauditError) -> str:
    """Say what is wrong with an error's words, '' if nothing."""
    text = str(error)
    if error.exit_code != 2:
        return f"exit code {error.exit_code}: {text[:200]}"
    if not text.isprintable() or not text or len(text) > 1500:
        return f"not one clear line: {_place(error)}: {ascii(text)[:200]}"
    return ""


def _place(error: BaseException) -> str:
    """Name an exception by its type and the line of ours that it went through last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/bdaudit/" in f.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "nowhere"
    return f"{type(error).__name__} in {where}: {ascii(str(error))[:120]}"
