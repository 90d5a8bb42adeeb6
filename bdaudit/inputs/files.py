"""Files and folders that appear whole or not at all.

Everything is written aside, in a hidden folder with `.partial-` in its name, and renamed once complete, so a
reader sees the old content or the new one at every moment, and of several runs that write the same target the
last one wins whole. On any exception, Ctrl-C included, what was written aside is removed. Python dies of SIGTERM
without raising anything; a program that wants the same then turns it into an exception first:
`signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))`. After SIGKILL or a power cut a `.partial-` folder may stay
behind (as may new parent folders, empty); nothing ever reads one, and the next run that writes the same target
removes it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bdaudit.errors import OutputError, one_line
from bdaudit.inputs.aside import NEW, OLD, aside, is_living, is_partial, sweep

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def visible(folder: Path) -> set[str]:
    """Name what a folder holds, but for what runs write or wrote aside."""
    return {p.name for p in folder.iterdir() if not is_partial(p)}


def sha256(path: Path | str) -> str:
    """Hash a file's content: 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_small(path: Path | str, most: int) -> bytes:
    """Read a file that should be small: a regular one, of no more than `most` bytes. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would keep us waiting for ever
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"longer than {most >> 20} MiB")
    return data


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
    sweep(target)
    with _aside(target, path) as place:
        partial = place / NEW
        yield partial
        _sync(partial)
        partial.replace(target)


@contextmanager
def atomic_folder(path: Path | str, replace_if: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `path` when the block ends without an exception.

    Missing parents are created. An existing folder is replaced when it is empty or `replace_if(it)` says that
    it is an earlier output of ours, and no other run writes in it; otherwise, or when `path` cannot be written,
    raises OutputError before the block runs.
    """
    target = _resolved(path)
    if not target.name or target.is_mount():
        raise OutputError(f"{_shown(path)}: is not a place for a new folder; give a folder in it")
    check_writable(path)
    sweep(target)
    _check_replaceable(target, path, replace_if)
    with _aside(target, path) as place:
        partial = place / NEW
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
        foreign = bool(visible(target)) and not replace_if(target)
        busy = any(is_partial(p) and is_living(p) for p in target.iterdir())
    except OSError as e:
        raise _unwritable(path, e) from e
    if foreign:
        raise OutputError(f"{_shown(path)}: exists and holds something else; give another name or an empty folder")
    if busy:
        raise OutputError(f"{_shown(path)}: another run is writing in it; wait for it or give another name")


def _swap_in(new: Path, target: Path) -> None:
    """Put `new` where the folder `target` is, if it is, in one step; the old one goes with the place aside."""
    while True:
        try:
            new.rename(target)  # which replaces nothing but an empty folder
            return
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # gone this moment
            if not _exchange(new, target):
                _swap_in_two_steps(new, target)
            return


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    # Old kernels, NFS and others, and sandboxes that know no such call.
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), os.fspath(b))


def _swap_in_two_steps(new: Path, target: Path) -> None:
    """Move the old folder away and the new one in; `sweep` puts the old one back after a kill between the two."""
    old = new.with_name(OLD)
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise


@contextmanager
def _aside(target: Path, path: Path | str) -> Iterator[Path]:
    """Yield a hidden folder beside `target`; when the block raises, remove the new parents too."""
    created: list[Path] = []
    try:
        for parent in reversed([p for p in target.parents if not p.is_dir()]):
            parent.mkdir(exist_ok=True)
            created.append(parent)
        with aside(target) as place:
            yield place
            _sync(target.parent)
    except BaseException as e:
        for parent in reversed(created):
            with suppress(OSError):
                parent.rmdir()
        # Only the failures of writing here are about `path`; others passing through keep their own words.
        if isinstance(e, OSError) and _is_about(e, target):
            raise _unwritable(path, e) from e
        raise


def _is_about(error: OSError, target: Path) -> bool:
    """Whether an error is about the disk, or about the place where we write."""
    if error.filename is None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
    place = Path(os.fsdecode(error.filename))
    if place in (target, *target.parents):
        return True
    return any(p.parent == target.parent and is_partial(p) for p in (place, *place.parents))


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
