"""Opening files that somebody hostile may have named or placed: regular files only, and nothing outside a folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bdaudit.errors import ImageError, one_line

# Not blocking: to open a pipe would wait for a writer. What was opened is looked at, not what was listed,
# since one may have been put in the other's place.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MEANING = {errno.ENOENT: "no such file", errno.ELOOP: "a link", errno.ENXIO: "not a file"}


class Unusable(Exception):
    """A file is not used. reason: one of a few, by which files are counted. detail: what this one file has."""

    def __init__(self, reason: str, detail: object = "") -> None:
        self.reason = reason
        self.detail = one_line(detail, 80)
        super().__init__(f"{reason} ({self.detail})" if self.detail else reason)


def open_regular(path: Path) -> BinaryIO:
    """Open the file that the user named, through links if need be; raises Unusable if it is not a regular file."""
    try:
        return _regular(os.open(path, _FILE))
    except (OSError, ValueError) as e:
        raise _unusable(e) from e


@contextmanager
def open_folder(path: Path | str, below: int | None = None) -> Iterator[int]:
    """Open the folder that the user named, or one `below` an open folder, which then may not be a link."""
    try:
        handle = os.open(path, _FOLDER | (0 if below is None else os.O_NOFOLLOW), dir_fd=below)
    except (OSError, ValueError) as e:
        raise ImageError(f"{one_line(path)}: the folder cannot be opened ({_unusable(e)})") from e
    try:
        yield handle
    finally:
        os.close(handle)


def open_below(folder: int, path: str) -> BinaryIO:
    """Open a regular file by its path below an open folder; no link on the way is followed; raises Unusable."""
    *parents, name = path.split("/")
    if not all(parents) or not name or {".", ".."} & {*parents, name}:
        raise Unusable("outside the folder")
    opened = folder
    try:
        for parent in parents:
            inner = os.open(parent, _FOLDER | os.O_NOFOLLOW, dir_fd=opened)
            if opened != folder:
                os.close(opened)
            opened = inner
        return _regular(os.open(name, _FILE | os.O_NOFOLLOW, dir_fd=opened))
    except (OSError, ValueError) as e:
        raise _unusable(e) from e
    finally:
        if opened != folder:
            os.close(opened)


def _regular(handle: int) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unusable("not a file")
    return os.fdopen(handle, "rb")


def _unusable(error: OSError | ValueError) -> Unusable:
    if not isinstance(error, OSError):  # a NUL, or what no file's name can hold
        return Unusable("not a path")
    if error.errno == errno.ENOTDIR:  # what a link says as well, where only a folder was wanted
        return Unusable("a link or no folder on the way")
    return Unusable(
        _MEANING.get(error.errno or 0, "cannot be opened"), error.strerror if error.errno not in _MEANING else ""
    )
