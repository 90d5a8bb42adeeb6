"""Every error bdaudit raises on purpose, and the exit code that each one ends the command with.

    BdauditError            3  something went wrong while running
    ├── UsageError          2  the request cannot be met as typed
    │   ├── OptionError     2  an option's name or value is wrong
    │   └── MissingInput    2  a plugin needs an input that was not given
    ├── InputError          2  a file or folder from outside is unusable
    │   ├── ImageError      2  an image, a folder of images or its labels
    │   └── CheckpointError 2  a model file
    ├── OutputError         2  the place to write to cannot be written
    ├── PluginError         3  a plugin broke its contract
    └── BackendError        3  the compiled extension is present but broken

A message says what was got, what was expected and what to do, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

WARNING = "warning: "
"""How a note begins that is shown even where progress is not: it changes what a result means."""


class BdauditError(Exception):
    """An error with one clear line for the user; the base of all others."""

    exit_code = 3


class UsageError(BdauditError):
    """The request cannot be met as typed."""

    exit_code = 2


class OptionError(UsageError):
    """An option's name or value is wrong."""


class MissingInput(UsageError):
    """A plugin needs an input that was not given."""


class InputError(BdauditError):
    """A file or folder from outside is unusable."""

    exit_code = 2


class ImageError(InputError):
    """An image, a folder of images or its labels is unusable."""


class CheckpointError(InputError):
    """A model file is unusable."""


class OutputError(BdauditError):
    """The place to write to cannot be written."""

    exit_code = 2


class PluginError(BdauditError):
    """A plugin broke its contract."""


class BackendError(BdauditError):
    """The compiled extension is present but broken."""


class UnusedFiles(UserWarning):
    """Some of the files that were given are not used; the text says how many, which and why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the closest known words, ready to append to a message ('' if none is close)."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def first_mistake(e: ValidationError) -> str:
    """Word the first thing that pydantic found wrong: `epochs: input should be greater than 0, got -1`."""
    first = e.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"][:2])
    said = first["msg"].removeprefix("Value error, ").lower()
    got = f", got {quoted(first['input'])}" if where else ""
    return f"{one_line(where or 'options', 60)}: {said}{got}"


def quoted(value: object, limit: int = 60) -> str:
    """Show a value from outside as Python would write it, on one line."""
    try:
        return one_line(repr(value), limit)
    except (ValueError, RecursionError):  # as in `one_line`, which then says so
        return one_line(value, limit)


def one_line(text: object, limit: int = 300) -> str:
    """Make text from outside safe to print on one line: no control characters, bounded length."""
    try:
        text = str(text)
    except (ValueError, RecursionError):  # a number of thousands of digits, a container without bottom
        text = f"({type(text).__name__} too large to show)"
    clean = text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
