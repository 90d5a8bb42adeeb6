"""What a bench's database may hold, checked and cleaned as it leaves it: the folder may have come from anybody.

SQLite holds no column to its type: where a number belongs, there may be text, bytes or an infinity.
"""

from __future__ import annotations

import re
from typing import Any

from bdaudit.errors import quoted
from bdaudit.report.words import clean

NUMBERS = frozenset({"value", "low", "high", "spread", "seconds"})
COUNTS = frozenset({"budget", "seed", "n", "seeds", "oracle"})
KEYS = frozenset({"cell", "key"})
EMPTY = frozenset({"verdict", "oracle", "budget", "low", "high", "n", "spread"})
"""Columns that may be empty; of those not named above every one is text."""

LARGEST = 1e100
"""No figure comes near it, and the squares of those below it do not overflow."""
LONGEST = 2000


def checked(column: str, value: object) -> Any:
    """Return a value as everything after the database may take it; a ValueError says that bdaudit never wrote it.

    Text is one line without control characters.
    """
    if value is None and column in EMPTY:
        return None
    if column in NUMBERS:
        if isinstance(value, int | float) and abs(value) < LARGEST:
            return value
        expected = "a number"
    elif column in COUNTS:
        if isinstance(value, int):
            return value
        expected = "a whole number"
    elif column in KEYS:
        if isinstance(value, str) and re.fullmatch("[0-9a-f]{1,64}", value):  # it becomes part of a path
            return value
        expected = "hexadecimal digits"
    else:
        if isinstance(value, str):
            return clean(value, LONGEST)
        expected = "text"
    raise ValueError(f"{column} is {quoted(value)}, expected {expected}")
