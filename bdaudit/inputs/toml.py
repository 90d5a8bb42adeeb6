"""TOML files that may come from strangers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from bdaudit.errors import InputError, one_line
from bdaudit.inputs.files import read_small

MAX_BYTES = 1 << 20
MAX_DOTS = 100
"""Dots on a line: Python's parser takes a time that grows with the square of a dotted name's length."""


def read_toml(path: Path | str, shown: str) -> dict[str, Any]:
    """Read a TOML file. shown: how to call it in the InputError that says, in one line, why it is none."""
    try:
        text = read_small(path, MAX_BYTES).decode()
        if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
            raise ValueError(f"more than {MAX_DOTS} dots on one line")
        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as e:  # not every bad number is a TOMLDecodeError
        reason = getattr(e, "strerror", None) or e
        raise InputError(f"{shown}: cannot be read as TOML ({one_line(reason, 100)})") from None
