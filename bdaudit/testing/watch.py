"""Watch what a plugin does to the process while it runs: sockets, files, the global random generators."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch

from bdaudit.errors import one_line

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events (docs.python.org/3/library/audit_events.html): where the paths stand among an event's arguments, and
# the folder that they are relative to, if there is one.
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((1, 3),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
ADDRESSED = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}
RESOLVED = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}


class Blocked(PermissionError):
    """A plugin reached for something that it may not have."""


@dataclass
class Watch:
    """What was attempted, in words; nothing of it came to pass."""

    folder: Path
    network: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        """Take an audit event of the interpreter; raise Blocked where it must not go on."""
        if name == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & WRITING:
                self.write(path)
        elif name == "os.mkdir" and Path(os.fsdecode(args[0])).is_dir():
            pass  # makedirs(exist_ok=True) tries, and changes nothing
        elif name in CHANGES:
            for place, relative_to in CHANGES[name]:
                self.write(args[place], args[relative_to] if relative_to is not None else -1)
        elif name in ADDRESSED and isinstance(args[1], tuple):  # else it is the path of a local socket
            self.connect(args[1])
        elif name in RESOLVED:
            self.connect(args[0] if isinstance(args[0], tuple) else args)

    def connect(self, address: tuple[Any, ...]) -> None:
        """Block a connection to, or a look-up of, a host."""
        self.network.append(one_line(":".join(str(part) for part in address[:2]), 80))
        raise Blocked(f"the network was asked for {self.network[-1]}")

    def write(self, path: Any, folder: int = -1) -> None:
        """Block a change to a path outside the temporary folder."""
        if isinstance(path, int):
            return  # it is open already
        base = Path(f"/proc/self/fd/{folder}") if folder >= 0 else Path()
        where = (base / os.fsdecode(path)).resolve()
        if not any(where.is_relative_to(place) for place in (self.folder, "/dev/null", "/dev/shm")):
            self.files.append(one_line(where, 120))
            raise Blocked(f"{self.files[-1]} was to be changed")


_watch: Watch | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watch is not None:
        _watch.event(event, args)


_install: list[Callable[[], None]] = [lambda: sys.addaudithook(_hook)]
"""Emptied when used: an audit hook cannot be removed, so there is one for the process, idle most of the time."""


@contextmanager
def watched() -> Iterator[Watch]:
    """Block and name attempts to use the network, or to change files outside a temporary folder."""
    global _watch
    while _install:
        _install.pop()()
    with tempfile.TemporaryDirectory(prefix="bdaudit-check-") as name, ExitStack() as stack:
        watch = Watch(Path(name).resolve())
        # Caches that libraries keep for later are no doing of the plugin's.
        caches = ("TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")
        homes = dict.fromkeys(caches, str(watch.folder))
        stack.enter_context(mock.patch.dict(os.environ, homes))
        stack.enter_context(mock.patch.object(tempfile, "tempdir", str(watch.folder)))
        stack.enter_context(mock.patch.object(sys, "dont_write_bytecode", True))
        # These two open files in C++ and Rust, unseen by the interpreter.
        for module, function, argument in (
            (torch._C, "PyTorchFileWriter", 0),
            (safetensors.torch, "serialize_file", 1),
        ):
            spy = _spy(watch, getattr(module, function), argument)
            stack.enter_context(mock.patch.object(module, function, spy))
        _watch = watch
        try:
            yield watch
        finally:
            _watch = None


def _spy(watch: Watch, function: Callable[..., Any], argument: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if isinstance(args[argument], str | os.PathLike):
            watch.write(args[argument])
        return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class GlobalState:
    """The state of every random generator that the process shares."""

    states: dict[str, tuple[Any, ...]]

    @classmethod
    def now(cls) -> GlobalState:
        kind, key, *rest = np.random.get_state()  # noqa: NPY002 - the legacy generator is what is watched
        return cls(
            {
                "torch": tuple(torch.get_rng_state().tolist()),
                "numpy": (kind, tuple(key), *rest),
                "random": random.getstate(),
            }
        )

    def restore(self) -> None:
        torch.set_rng_state(torch.tensor(self.states["torch"], dtype=torch.uint8))
        kind, key, *rest = self.states["numpy"]
        np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002
        random.setstate(self.states["random"])


@contextmanager
def global_seed(seed: int) -> Iterator[list[str]]:
    """Seed every global generator inside the block; yields a list that names, after it, those that moved."""
    before = GlobalState.now()
    moved: list[str] = []
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    start = GlobalState.now()
    try:
        yield moved
    finally:
        end = GlobalState.now()
        moved += [name for name, state in start.states.items() if state != end.states[name]]
        before.restore()
