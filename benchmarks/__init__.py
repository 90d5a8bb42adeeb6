"""Measurements of bdaudit's parts, each run as `python -m benchmarks.NAME`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def named(spec: str) -> tuple[str, dict[str, str]]:
    """Read a plugin with options, `NAME option=value ...`."""
    name, *words = spec.split()
    return name, {key: value for key, _, value in (word.partition("=") for word in words)}


def rows_of(*files: Path) -> list[dict[str, Any]]:
    """Read the rows that benchmarks wrote."""
    return [row for file in files for row in json.loads(file.read_text())]


class Rows:
    """Figures measured so far: rows of a JSON file, which is written anew with each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = rows_of(file) if file.exists() else []

    def holds(self, at: Mapping[str, Any]) -> bool:
        """Whether a row with these entries was measured already."""
        return any(at.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and show it."""
        self.rows.append(row)
        self.file.write_text(json.dumps(self.rows, indent=1) + "\n")
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Write the mean and, of several, the least and the largest: `12.3 (4.5 to 67.8)`; '' for none."""
    found = list(values)
    if not found:
        return ""
    mean, least, most = (f"{v:.{digits}f}" for v in (statistics.fmean(found), min(found), max(found)))
    return f"{mean} ({least} to {most})" if len(found) > 1 else mean
