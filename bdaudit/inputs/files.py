"""Files and folders that appear whole or not at all.

Everything is written aside, under a hidden name with `.partial-` in it, and renamed once complete, so a
reader sees the old content or the new one. On any exception, Ctrl-C included, what was written aside is
removed. Python dies of SIGTERM without raising anything; a program that wants the same then turns it into an
exception first: `signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))`. After SIGKILL or a power cut a
`.partial-` name may stay behind; nothing ever reads one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bdaudit.errors import OutputError, one_line

PARTIAL = ".partial-"


def is_partial(path: Path) -> bool:
    """Whether this is something half-written that a killed run left behind."""
    return path.name.startswith(".") and PARTIAL in path.name


def sha256(path: Path | str) -> str:
    """Hash a file's content: 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(path: Path | str) -> None:
    """Raise OutputError, before any work, where a file or folder could not be created at `path`.

    Missing parents are fine as long as they can be created. Nothing is left behind.
    """
    target = _resolved(path)
    ancestor = next((p for p in target.parents if os.path.lexists(p)), target)
    if not ancestor.is_dir():
        raise OutputError(f"{_shown(path)}: cannot be written, {_shown(ancestor)} is not a folder")
    try:
        with suppress(FileNotFoundError):
            target.lstat()  # tells whether the name is too long
        # Asking the system misses full and odd file systems, and says yes to root everywhere: so try.
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as e:
        raise _unwritable(path, e) from e


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a path to write a file to, which becomes `path` when the block ends without an exception.

    Missing parents are created. An existing file is replaced, a symbolic link followed.
    Raises OutputError when `path` is something else than a file or cannot be written.
    """
    target = _resolved(path)
    if os.path.exists(target) and not os.path.isfile(target):  # noqa: PTH110, PTH113  # pathlib's raise on long names
        # Renaming over /dev/null would remove the device.
        raise OutputError(f"{_shown(path)}: exists and is not a file; give another name")
    with _aside(target, path) as partial:
        yield partial
        _sync(partial)
        partial.replace(target)


@contextmanager
def atomic_folder(path: Path | str, replace_if: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `path` when the block ends without an exception.

    Missing parents are created. An existing folder is replaced when it is empty or `replace_if(it)` says that
    it is an earlier output of ours; otherwise, or when `path` cannot be written, raises OutputError before
    the block runs.
    """
    target = _resolved(path)
    if not target.name:
        raise OutputError(f"{_shown(path)}: is not a place for a new folder")
    check_writable(path)
    _check_replaceable(target, path, replace_if)
    with _aside(target, path) as partial:
        partial.mkdir()
        yield partial
        os.sync()  # once for all: a run folder holds thousands of images, and waiting for each takes minutes
        _check_replaceable(target, path, replace_if)  # something else may have appeared meanwhile
        _swap_in(partial, target)


def _check_replaceable(target: Path, path: Path | str, replace_if: Callable[[Path], bool]) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputError(f"{_shown(path)}: exists and is not a folder; give another name")
    try:
        foreign = any(target.iterdir()) and not replace_if(target)
    except OSError as e:
        raise _unwritable(path, e) from e
    if foreign:
        raise OutputError(f"{_shown(path)}: exists and holds something else; give another name or an empty folder")


def _swap_in(new: Path, target: Path) -> None:
    """Put `new` where the folder `target` is, if it is, and delete that one."""
    if not target.exists():
        new.rename(target)
        return
    old = _partial_name(target)
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _aside(target: Path, path: Path | str) -> Iterator[Path]:
    """Yield a hidden name beside `target`; when the block raises, remove it and its new parents."""
    created: list[Path] = []
    partial = _partial_name(target)
    try:
        for parent in reversed([p for p in target.parents if not p.is_dir()]):
            parent.mkdir()
            created.append(parent)
        yield partial
        _sync(target.parent)
    except BaseException as e:
        _remove(partial)
        for parent in reversed(created):
            with suppress(OSError):
                parent.rmdir()
        # Only the failures of writing here are about `path`; others passing through keep their own words.
        if isinstance(e, OSError) and _is_about(e, partial, target):
            raise _unwritable(path, e) from e
        raise


def _partial_name(target: Path) -> Path:
    # Long names are cut, as the whole may not exceed 255 bytes.
    return target.with_name(f".{target.name[:50]}{PARTIAL}{secrets.token_hex(6)}")


def _is_about(error: OSError, partial: Path, target: Path) -> bool:
    """Whether an error is about the disk, or about the place where we write."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
    place = Path(os.fsdecode(error.filename))
    return place in (target, *target.parents) or place.is_relative_to(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _resolved(path: Path | str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links, a null byte
        raise _unwritable(path, e) from e


def _shown(path: Path | str) -> str:
    return one_line(path, 160)


def _unwritable(path: Path | str, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"{_shown(path)}: cannot be written ({one_line(reason, 120)})")
