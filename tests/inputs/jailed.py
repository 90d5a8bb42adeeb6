"""What a parser that was taken over would try, run in the sandboxed child by test_jail."""

from __future__ import annotations

import ctypes
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO


def fork() -> object:
    return os.fork()


TRICKS: dict[str, Callable[[str], object]] = {
    "read a file": lambda place: Path("/etc/hostname").read_text(),
    "write a file": lambda place: Path(place).write_text("x"),
    "list a folder": lambda place: list(Path("/").iterdir()),
    "remove a file": lambda place: Path(place).unlink(),
    "look a file up": lambda place: Path("/etc/passwd").stat(),
    "connect": lambda place: socket.socket().connect(("127.0.0.1", 9)),
    "fork": lambda place: fork(),
    "run a program": lambda place: os.execv("/bin/true", ["true"]),
    "kill its parent": lambda place: os.kill(os.getppid(), 0),
    "import": lambda place: __import__("sqlite3"),
    "raise its own limits": lambda place: ctypes.CDLL(None, use_errno=True).setrlimit(7, b"\xff" * 16) and 1 / 0,
}


def main(file: IO[bytes], size: int, arguments: list[str]) -> bytes:
    what, *rest = arguments
    if what == "echo":
        return file.read()
    if what == "tricks":
        outcome = {}
        for name, trick in TRICKS.items():
            try:
                trick(rest[0])
                outcome[name] = "worked"
            except Exception as e:
                outcome[name] = type(e).__name__
        return json.dumps(outcome).encode()
    if what == "memory":
        return bytes(len(bytearray(1 << 40)))
    if what == "hoard":
        hoard: list[object] = []
        while True:
            hoard.append([hoard])
    if what == "spin":
        while True:
            pass
    if what == "talk":
        return bytes(1 << 22)
    if what == "crash":
        ctypes.string_at(0)
    raise ValueError(what)
