"""Checks of a record's plain fields: what is wrong is said in one line, with what was got and what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import InputError, one_line

MAX_ROWS = 20_000_000
MAX_SIDE = 4096
MAX_CLASSES = 100_000


def a(value: object) -> str:
    """Name a value of a wrong kind."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {one_line(name, 40)}"


def plain_dict(value: object, what: str) -> dict[Any, Any]:
    """Take a dictionary; its contents are still unchecked."""
    if not isinstance(value, dict):
        raise InputError(f"{what} is {a(value)}, expected a dictionary")
    return dict(dict.items(value))


def text(value: object) -> str:
    """Take a string as something printable, '' for anything else."""
    return one_line(value, 60) if isinstance(value, str) else ""


def integer(value: object, what: str, low: int, high: int) -> int:
    """Take an integer within bounds; True and 1.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{what} is {a(value)}, expected an integer")
    if not low <= value <= high:
        raise InputError(f"{what} is {one_line(value, 30)}, expected {low} to {high}")
    return value


def class_count(value: object) -> int:
    """Take `num_classes`."""
    return integer(value, "num_classes", 2, MAX_CLASSES)


def image_shape(value: object) -> tuple[int, int, int]:
    """Turn `img_size`, (height, width, channels), into (channels, height, width)."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise InputError(f"img_size is {one_line(repr(value), 60)}, expected (height, width, channels)")
    height, width, channels = (integer(v, "img_size", 1, MAX_SIDE) for v in value)
    if channels not in (1, 3):
        raise InputError(f"img_size says {channels} channels, expected 1 or 3 as its last number")
    return channels, height, width


def integers(value: object, what: str) -> Tensor:
    """Take a one-dimensional array or list of whole numbers as int64 (N,)."""
    if isinstance(value, (list, tuple)):
        value = torch.tensor([integer(v, what, -(2**62), 2**62) for v in value], dtype=torch.int64)
    if not isinstance(value, Tensor) or value.is_complex():
        raise InputError(f"{what} is {a(value)}, expected an array of integers")
    if value.ndim != 1 or len(value) > MAX_ROWS:
        raise InputError(f"{what} has the shape {tuple(value.shape)}, expected one row of at most {MAX_ROWS} numbers")
    numbers = value.to(torch.int64)
    if value.is_floating_point() and not bool((numbers == value).all()):
        raise InputError(f"{what} holds fractions or NaN, expected integers")
    return numbers
