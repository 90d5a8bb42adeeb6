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
            lock = _lock(place)
        except FileNotFoundError:  # another run has already taken it for a leftover, and removed it
            continue
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        if _is_at(lock, place / _LOCK):
            return place, lock
        os.close(lock)


def _lock(place: Path) -> int:
    """Make the lock file and wait for it."""
    lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _is_at(lock: int, path: Path | str, folder: int | None = None) -> bool:
    """Whether a locked file still stands at its path: who waited for a lock may hold one that was removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _lock_dead(place: Path) -> int | None:
    """Lock the place of a run that has ended; None where it lives, or where that cannot be told."""
    with suppress(OSError):
        # Never through a link: this may be a stranger's folder.
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return _lock_in(folder)
        finally:
            os.close(folder)
    return None


def _lock_in(folder: int) -> int | None:
    lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder)
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, _LOCK, folder):
            return lock
    os.close(lock)
    return None


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
    # Removed while it is held: a run that gets the lock later sees that it holds nothing. Closed before the folder
    # goes, for NFS keeps a removed file's name for as long as it is open.
    with suppress(OSError):
        (place / _LOCK).unlink()
    os.close(lock)
    with suppress(OSError):
        place.rmdir()
