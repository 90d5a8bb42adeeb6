"""A CSV file that names images and their labels, beside the images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bdaudit.errors import ImageError, one_line
from bdaudit.inputs.listing import Listing
from bdaudit.inputs.opening import Unusable, open_regular

MAX_LINE = 65_536
"""Bytes; a path has at most 4,096."""
MAX_ROWS = 20_000_000


def list_index(path: Path) -> Listing:
    """List the images that a CSV file names in its column `path`, with their classes in `label`, if it has one.

    The first line names the columns; others are ignored. Paths are relative to the file's folder and stay
    inside it. A label is a class's name or number, or nothing. Raises ImageError where the file is no such table.
    """
    found = Listing(path.parent, path)
    seen: set[str] = set()
    try:
        with open_regular(path) as file:
            for name, label in _rows(file, found.shown):
                inside = _normal(name)
                if inside is None:
                    found.unused.add(name, Unusable("outside the folder"))
                elif inside in seen:
                    found.unused.add(name, Unusable("named before"))
                else:
                    seen.add(inside)
                    found.paths.append(inside)
                    found.labels.append(label or None)
    except Unusable as e:
        raise ImageError(f"{found.shown}: cannot be read ({e})") from e
    except OSError as e:
        raise ImageError(f"{found.shown}: cannot be read ({one_line(e.strerror, 80)})") from e
    return found


def _rows(file: BinaryIO, shown: str) -> Iterator[tuple[str, str]]:
    """Read (path, label), the label '' where there is none."""
    # Strict, since a quotation mark that is never closed would otherwise swallow rows without a word.
    table = csv.reader(_lines(file, shown), strict=True)
    try:
        header = [column.strip().lower() for column in next(table, [])]
        if header.count("path") != 1 or header.count("label") > 1:
            named = one_line(", ".join(header), 80)
            raise ImageError(f"{shown}: the first line must name the columns: path,label; it is {named!r}")
        place = header.index("path")
        labelled = header.index("label") if "label" in header else None
        for count, row in enumerate(table):
            if count == MAX_ROWS:
                raise ImageError(f"{shown}: more than the {MAX_ROWS:,} rows that are read")
            if not row:
                continue
            if len(row) != len(header):
                raise ImageError(f"{shown}: line {table.line_num} has {len(row)} fields, the first one {len(header)}")
            yield row[place], row[labelled].strip() if labelled is not None else ""
    except csv.Error as e:
        raise ImageError(f"{shown}: line {table.line_num}: not CSV ({one_line(e, 80)})") from e


def _lines(file: BinaryIO, shown: str) -> Iterator[str]:
    """Decode line by line; bytes that are no UTF-8 become what file names have in their place."""
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        while line := text.readline(MAX_LINE):
            if len(line) == MAX_LINE:
                raise ImageError(f"{shown}: has a line of more than {MAX_LINE:,} characters")
            yield line


def _normal(path: str) -> str | None:
    """Write a path without `.` and doubled slashes; None if it leads out of the folder."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    return None if path.startswith("/") or ".." in names or not names else "/".join(names)
