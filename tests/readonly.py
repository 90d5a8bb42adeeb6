"""A folder that may be read and not written, for root as for anybody."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION_3 = 0x20080522
_OVERRIDE = 1 << 1
"""CAP_DAC_OVERRIDE: what lets root write where the permissions say no."""


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write from a folder and its files; root, as tests in a container run, is held to it as well."""
    kept = {p: p.stat().st_mode for p in (folder, *folder.iterdir())}
    for p, mode in kept.items():
        p.chmod(mode & ~0o222)
    try:
        with _held_to_permissions():
            yield
    finally:
        for p, mode in kept.items():
            p.chmod(mode)


@contextmanager
def _held_to_permissions() -> Iterator[None]:
    """Lay down this thread's power to pass over permissions; what it may take up again stays."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~_OVERRIDE
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0
