"""Run a parser on a stranger's bytes in a child process that can do nothing else.

The child is a bare interpreter: no site-packages, no environment, nothing of torch. Before it looks at the
file it limits its own memory and time, may create no files and no processes, and asks the kernel to refuse
every system call but reading, writing and memory (seccomp, on Linux for x86-64 and aarch64). It holds two
things: the file, already open for reading, and a pipe to answer through. The parent bounds the answer's size
and the time until it comes, and trusts nothing in it.

This file runs on both sides and imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import platform
import selectors
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

EXHAUSTED = 41
"""The child's exit status when it ran out of memory."""


@dataclass(frozen=True)
class Limits:
    """What a child may use: bytes of address space, seconds of processor and of waiting, bytes of answer."""

    memory: int = 1 << 30
    cpu: int = 60
    wall: float = 180.0
    answer: int = 64 << 20


class JailError(Exception):
    """The child gave no answer; the message says why."""


def ask(module: str, arguments: list[str], file: IO[bytes], limits: Limits) -> bytes:
    """Run `module`'s `main(arguments)` in a child, with `file` as its standard input; return what it wrote.

    Raises JailError where it exceeds a limit, dies, or cannot be started.
    """
    root = str(Path(__file__).resolve().parents[2])
    # Appended, so that nothing beside the package stands in for a module of the standard library.
    start = f"import sys; sys.path.append({root!r}); from bdaudit.inputs.jail import enter; enter()"
    command = [sys.executable, "-I", "-S", "-B", "-c", start, module, str(limits.memory), str(limits.cpu), *arguments]
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        child = subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept, cwd="/",
            start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        raise JailError(f"no process could be started to read it in ({e.strerror})") from e
    try:
        answer = _answer(child, limits)
        status = child.wait(timeout=max(limits.wall, 1))
    except subprocess.TimeoutExpired as e:
        raise JailError(f"took more than {limits.wall:g} s to read") from e
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    if status == EXHAUSTED:
        raise JailError(f"needs more than {limits.memory >> 20} MiB to be understood")
    if status == -signal.SIGXCPU:
        raise JailError(f"took more than {limits.cpu} s to read")
    if status != 0:
        raise JailError(f"made its reader fail (status {status})")
    return answer


def _answer(child: subprocess.Popen[bytes], limits: Limits) -> bytes:
    assert child.stdout is not None
    deadline = time.monotonic() + limits.wall
    parts: list[bytes] = []
    total = 0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise JailError(f"took more than {limits.wall:g} s to read")
            part = os.read(child.stdout.fileno(), 1 << 20)
            if not part:
                return b"".join(parts)
            total += len(part)
            if total > limits.answer:
                raise JailError(f"holds more than {limits.answer >> 20} MiB besides its weights")
            parts.append(part)


def strength() -> str:
    """Start a child and say what holds it: `limits and system calls`, `limits alone`, or why there is none."""
    with Path(os.devnull).open("rb") as file:
        try:
            return ask("bdaudit.inputs.jail", [], file, Limits(wall=30)).decode()
        except JailError as e:
            return f"BROKEN: {e}"


# The child's side


def main(file: IO[bytes], size: int, arguments: list[str]) -> bytes:
    """Try to look around, and say whether that was possible."""
    try:
        os.stat("/")  # noqa: PTH116  # the bare call
    except PermissionError:
        return b"limits and system calls"
    return b"limits alone"


def enter() -> None:
    """Import the parser, lock the door, parse, answer and leave: the child's whole life."""
    module, memory, cpu, *arguments = sys.argv[1:]
    # All that a parser may need must be there before the door is locked.
    from codecs import lookup
    from importlib import import_module

    main = import_module(module).main
    for encoding in ("ascii", "cp437", "latin-1", "raw-unicode-escape", "unicode-escape", "utf-32-be", "utf-32-le"):
        lookup(encoding)
    out = os.fdopen(os.dup(1), "wb")
    with os.fdopen(0, "rb", closefd=False) as file:
        size = os.fstat(0).st_size
        lock(int(memory), int(cpu))
        status = 0
        try:
            out.write(main(file, size, arguments))
            out.flush()
        except MemoryError:
            status = EXHAUSTED
        os._exit(status)


def lock(memory: int, cpu: int) -> bool:
    """Limit this process for good; returns whether the kernel filters its system calls too."""
    import resource

    used = 0
    with contextlib.suppress(OSError):  # the interpreter's own part does not count, where that can be told
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        # At the hard limit of time the kernel kills without telling why; a little earlier it says so.
        grace = 2 if kind == resource.RLIMIT_CPU and allowed == most else 0
        with contextlib.suppress(OSError, ValueError):  # some systems lack some limits
            resource.setrlimit(kind, (allowed, allowed + grace))
    return _filter()


def _linux() -> bool:
    return sys.platform == "linux"


# System calls by number. What is not listed fails with EPERM.
_ALLOWED = {
    # read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 mremap
    # madvise exit sigaltstack futex clock_gettime exit_group getrandom rseq
    "x86_64": (0xC000003E, (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 25, 28, 60, 131, 202, 228, 231, 318, 334)),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 216, 233, 93, 132, 98, 113, 94, 278, 293),
    ),
}
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_EPERM = 0x00050000 | 1
_ALLOW = 0x7FFF0000


def _filter() -> bool:
    """Leave this process no system calls but those in the list; False where that cannot be had."""
    if not _linux() or platform.machine() not in _ALLOWED:
        return False
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    arch, calls = _ALLOWED[platform.machine()]

    def step(code: int, true: int, false: int, value: int) -> bytes:
        return struct.pack("<HBBI", code, true, false, value)

    load, equal, give = 0x20, 0x15, 0x06  # BPF: load a word of the call, compare and jump, return
    code = step(load, 0, 0, 4) + step(equal, 1, 0, arch) + step(give, 0, 0, _EPERM) + step(load, 0, 0, 0)
    for i, call in enumerate(calls):
        code += step(equal, len(calls) - i, 0, call)
    code += step(give, 0, 0, _EPERM) + step(give, 0, 0, _ALLOW)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    if prctl(_SET_NO_NEW_PRIVS, 1, None, 0, 0) != 0:
        return False
    return bool(prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program), 0, 0) == 0)
