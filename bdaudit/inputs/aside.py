"""Hidden places that outputs grow in, and how those of living runs differ from what killed ones left.

A place is a folder beside the target, `.TARGET.partial-RANDOM`. It holds what is being written as `new`, and a
file that the run keeps locked: the system lets go of a lock in whatever way a process ends. Where a lock cannot
be had (an old NFS, another user's place) nothing is taken for a leftover.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEW, OLD = "new", "old"
_LOCK = "lock"
_NAMED = re.compile(r"\..+\.partial-[0-9a-f]{12}", re.DOTALL)


def is_partial(path: Path) -> bool:
    """Whether this is a place where a run writes, or wrote when it was killed."""
    return _NAMED.fullmatch(path.name) is not None


def is_living(place: Path) -> bool:
    """Whether a run that has not ended writes here."""
    lock = _lock_dead(place)
    if lock is not None:
        os.close(lock)
    return lock is None


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`; when the block ends it is removed with all it holds."""
    place, lock = _claim(target)
    try:
        yield place
    finally:
        _remove(place, lock)


def sweep(target: Path) -> None:
    """Remove what killed runs left of this target, and put back an old folder that one had just moved away."""
    try:
        places = [p for p in target.parent.iterdir() if p.name.startswith(_start(target)) and is_partial(p)]
    except OSError:  # not there yet, or not ours to list
        return
    for place in places:
        lock = _lock_dead(place)
        if lock is not None:
            if not os.path.lexists(target):
                with suppress(OSError):
                    (place / OLD).rename(target)
            _remove(place, lock)


def _start(target: Path) -> str:
    name = target.name
    if len(name) > 50:  # the whole may not exceed 255 bytes, and two long names may begin alike
        name = f"{name[:40]}{hashlib.sha256(os.fsencode(name)).hexdigest()[:10]}"
    return f".{name}.partial-"


def _claim(target: Path) -> tuple[Path, int]:
    """Make a place and lock it."""
    while True:
        place = target.with_name(_start(target) + secrets.token_hex(6))
        place.mkdir(mode=0o700)
        try:
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Between making and locking it, another run may have taken it for a leftover.
            if os.path.samestat(os.fstat(lock), (place / _LOCK).stat()):
                return place, lock
            os.close(lock)
        except FileNotFoundError:
            continue
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise


def _lock_dead(place: Path) -> int | None:
    """Lock the place of a run that has ended; None where it lives, or where that cannot be told."""
    try:
        # Never through a link: this may be a stranger's folder.
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            lock = os.open(_LOCK, flags, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _remove(place: Path, lock: int) -> None:
    """Empty a place and remove it, the lock last: whoever finds the rest must see that it is taken."""
    with suppress(OSError):
        for path in place.iterdir():
            if path.name == _LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    os.close(lock)  # NFS keeps a removed file's name for as long as it is open
    with suppress(OSError):
        (place / _LOCK).unlink()
        place.rmdir()
