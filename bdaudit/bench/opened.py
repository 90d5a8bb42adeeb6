"""A bench's database opened: by the one who runs the grid, to write, and by anybody, to read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from bdaudit.bench.store import FILE, SCHEMA, VERSION, Store
from bdaudit.errors import InputError, one_line


@contextmanager
def write_store(folder: Path) -> Iterator[Store]:
    """Open a bench folder's database for writing, made if need be."""
    path = folder / FILE
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        with _sound(path):  # a disk that is full hours later is no fault of the file
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                connection.executescript(SCHEMA)
            _check_version(connection, path)
        try:
            yield Store(connection, path)
        finally:
            _settle(connection)


def _settle(connection: sqlite3.Connection) -> None:
    """Leave an ordinary file: in WAL mode SQLite cannot read one where it may not write a log beside it.

    While somebody else has it open it stays in that mode, all that was found in the one file, until the next run ends.
    """
    with suppress(sqlite3.Error):  # nothing is lost by it: the log is read as well
        connection.rollback()
        connection.execute("PRAGMA busy_timeout = 5000")  # for whoever is reading just now
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def read_store(folder: Path) -> Iterator[Store]:
    """Open a bench folder's database for reading, also while a grid is being run: all that is read is of one moment."""
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{one_line(folder, 160)}: holds no bench (there is no {FILE}); make one with: bdaudit bench GRID.toml --out DIR"
        )
    with _sound(path), closing(_reading(path.resolve())) as connection:
        _check_version(connection, path)
        yield Store(connection, path)


def _reading(path: Path) -> sqlite3.Connection:
    """Connect for reading alone, whether or not anything may be written beside the file."""
    try:
        return _begun(f"{path.as_uri()}?mode=ro")
    except sqlite3.OperationalError as e:
        # In WAL mode, with no log there and none that can be made. So nobody writes, and the file is all there is.
        refused = e.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        if not refused or any(_holds(path.with_name(path.name + log)) for log in ("-wal", "-journal")):
            raise
        return _begun(f"{path.as_uri()}?mode=ro&immutable=1")


def _begun(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=30)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # as SQLite advises for a file from somebody else
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # the moment is that of the first look
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _holds(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as e:
        raise InputError(f"{one_line(path, 160)}: cannot be used as a bench's database ({one_line(e, 100)})") from None


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != VERSION:
        raise InputError(f"{one_line(path, 160)}: is of version {found}, this bdaudit reads version {VERSION}")
