"""What a bench knows, in one SQLite file beside its artefacts: a row a stage, a cell and a finding.

    pandas.read_sql("SELECT * FROM results", sqlite3.connect("DIR/bench.sqlite"))

`results` has a row for each finding of the grid that was run last, with the cell's place on every axis; `findings` and
`cells` also hold what earlier grids left in the same folder. Only the process that runs the grid writes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bdaudit.bench.checked import checked
from bdaudit.errors import InputError, one_line, quoted
from bdaudit.report.schema import Report

if TYPE_CHECKING:
    from bdaudit.bench.grid import Place
    from bdaudit.bench.plan import Plan, Stage

Kind = Literal["twin", "victim", "cell"]

FILE = "bench.sqlite"
VERSION = 2
COORDINATES = ("data", "arch", "attack", "malicious", "defense", "contamination", "budget", "seed")
"""The columns that say where in the grid a cell is."""
FIGURES = ("probe", "subject", "variant", "metric", "value", "low", "high", "n", "seeds", "spread")

SCHEMA = f"""
BEGIN;
CREATE TABLE grid (title TEXT NOT NULL, probes TEXT NOT NULL);
CREATE TABLE stages (
  key TEXT PRIMARY KEY, kind TEXT NOT NULL, label TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
  seconds REAL
);
CREATE TABLE cells (
  cell TEXT PRIMARY KEY, place INTEGER, data TEXT NOT NULL, arch TEXT NOT NULL, attack TEXT NOT NULL,
  malicious TEXT NOT NULL, defense TEXT NOT NULL, contamination TEXT NOT NULL, budget INTEGER, seed INTEGER NOT NULL,
  verdict TEXT, oracle INTEGER
);
CREATE TABLE findings (
  cell TEXT NOT NULL, probe TEXT NOT NULL, subject TEXT NOT NULL, variant TEXT NOT NULL, metric TEXT NOT NULL,
  value REAL NOT NULL, low REAL, high REAL, n INTEGER, seeds INTEGER NOT NULL, spread REAL
);
CREATE INDEX findings_of_a_cell ON findings (cell);
CREATE VIEW results AS
  SELECT {", ".join(COORDINATES)}, verdict, oracle, {", ".join(FIGURES)}, cells.cell
  FROM cells JOIN findings USING (cell) JOIN stages ON stages.key = cells.cell
  WHERE place IS NOT NULL AND state = 'done' ORDER BY place, findings.rowid;
PRAGMA user_version = {VERSION};
COMMIT;
"""


def place_of(kind: Kind, key: str) -> Path:
    """Name the file or folder of a stage's result, below the bench's folder."""
    return Path(f"{kind}s", f"{key}.pt" if kind == "twin" else key)


def log_of(key: str) -> Path:
    """Name the file of what a stage printed, tracebacks included, below the bench's folder."""
    return Path("logs", f"{key}.log")


@dataclass(frozen=True)
class CellRow:
    """A cell of the grid that was run last: its place on every axis, and how it stands.

    state: done, failed, blocked (what it needs failed) or left (not done yet). oracle: its defense was given what no
    defender has.
    """

    cell: str
    coordinates: Mapping[str, Any]
    state: str
    reason: str
    verdict: str | None
    oracle: bool


@dataclass(frozen=True)
class Result:
    """One finding, with its cell."""

    cell: CellRow
    probe: str
    subject: str
    variant: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    seeds: int
    spread: float | None


class Failure(NamedTuple):
    """A stage that failed, and why."""

    kind: Kind
    key: str
    label: str
    reason: str

    def said(self, folder: Path) -> str:
        """Say what failed, why, and where in the bench's folder to read more, if it printed anything."""
        more = f" (see {log_of(self.key)})" if (folder / log_of(self.key)).is_file() else ""
        return f"{self.label}: {self.reason}{more}"


class Store:
    """The database of one bench folder, open for writing or for reading; what it answers is checked and cleaned."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path

    def adopt(self, plan: Plan) -> None:
        """Make this plan the grid that the folder is for; what earlier ones measured stays, what failed does not."""
        with self.connection as db:
            db.execute("UPDATE stages SET state = 'left', reason = '' WHERE state != 'done'")
            db.execute("DELETE FROM grid")
            db.execute(
                "INSERT INTO grid VALUES (?, ?)", (plan.grid.title, ", ".join(c.label for c in plan.grid.probes))
            )
            db.execute("UPDATE cells SET place = NULL")
            names = ("cell", "place", *COORDINATES)
            kept = ", ".join(f"{n} = excluded.{n}" for n in names[1:])
            db.executemany(
                f"INSERT INTO cells ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
                f"ON CONFLICT (cell) DO UPDATE SET {kept}",
                [(c.stage.key, i, *coordinates(c.place).values()) for i, c in enumerate(plan.cells)],
            )
            db.executemany(
                "INSERT INTO stages (key, kind, label, state) VALUES (?, ?, ?, 'left') "
                "ON CONFLICT (key) DO UPDATE SET label = excluded.label",
                [(s.key, s.kind, s.label) for s in plan.stages],
            )

    def finish(self, stage: Stage, seconds: float, report: Report | None = None) -> None:
        """Record a stage that is done, and what its report found."""
        with self.connection as db:
            db.execute("UPDATE stages SET state = 'done', reason = '', seconds = ? WHERE key = ?", (seconds, stage.key))
            if report is None:
                return
            oracle = any(g.oracle for g in report.granted if g.plugin == stage.spec["defense"])
            db.execute("UPDATE cells SET verdict = ?, oracle = ? WHERE cell = ?", (report.verdict, oracle, stage.key))
            db.execute("DELETE FROM findings WHERE cell = ?", (stage.key,))
            db.executemany(
                f"INSERT INTO findings VALUES ({', '.join('?' * (1 + len(FIGURES)))})",
                [(stage.key, *(getattr(f, name) for name in FIGURES)) for f in report.findings],
            )

    def fail(self, stage: Stage, state: str, reason: str) -> None:
        """Record a stage that failed, or that is blocked by one that did."""
        with self.connection as db:
            db.execute("UPDATE stages SET state = ?, reason = ? WHERE key = ?", (state, reason, stage.key))

    def forget(self, keys: Iterable[str]) -> None:
        """Let stages be done again, whose artefacts are gone."""
        with self.connection as db:
            db.executemany("UPDATE stages SET state = 'left', reason = '' WHERE key = ?", [(k,) for k in keys])

    def states(self) -> dict[str, str]:
        """Map the keys of all stages to how they stand."""
        return dict(self.connection.execute("SELECT key, state FROM stages"))

    def seconds(self) -> dict[str, float]:
        """Map the keys of finished stages to how long they took."""
        return dict(self._select(("key", "seconds"), "FROM stages WHERE state = 'done' AND seconds > 0"))

    def title(self) -> tuple[str, str]:
        """The grid's title, and its probes in words."""
        title, probes = next(self._select(("title", "probes"), "FROM grid"), ("", ""))
        return title, probes

    def cells(self) -> list[CellRow]:
        """List the cells of the grid that was run last, in its order."""
        rows = self._select(
            ("cell", "state", "reason", "verdict", "oracle", *COORDINATES),
            "FROM cells JOIN stages ON stages.key = cells.cell WHERE place IS NOT NULL ORDER BY place",
        )
        return [
            CellRow(cell, dict(zip(COORDINATES, where, strict=True)), state, reason, verdict, bool(oracle))
            for cell, state, reason, verdict, oracle, *where in rows
        ]

    def results(self) -> list[Result]:
        """List the findings of the grid that was run last, cell by cell."""
        cells = {c.cell: c for c in self.cells()}
        rows = list(self._select(("cell", *FIGURES), "FROM results"))
        if stray := next((cell for cell, *_ in rows if cell not in cells), None):
            raise self._refused(f"cell is {quoted(stray)}, expected one of the grid's")
        return [Result(cells[cell], *figures) for cell, *figures in rows]

    def failures(self) -> list[Failure]:
        """List what failed of the last grid, models first; what those block is not listed."""
        rows = self._select(
            ("kind", "key", "label", "reason"),
            "FROM stages LEFT JOIN cells ON cells.cell = stages.key "
            "WHERE state = 'failed' AND (kind != 'cell' OR place IS NOT NULL) ORDER BY kind = 'cell', place",
        )
        return [Failure(*row) for row in rows]

    def _select(self, columns: Sequence[str], rest: str) -> Iterator[list[Any]]:
        """Ask for columns; every value passes through `checked`."""
        for row in self.connection.execute(f"SELECT {', '.join(columns)} {rest}"):
            try:
                yield [checked(column, value) for column, value in zip(columns, row, strict=True)]
            except ValueError as e:
                raise self._refused(e) from None

    def _refused(self, why: object) -> InputError:
        return InputError(f"{one_line(self.path, 160)}: {why}; it is no bench as bdaudit wrote it")


def coordinates(place: Place) -> dict[str, Any]:
    """Map each axis to what a cell has there."""
    malicious = place.malicious if isinstance(place.malicious, str) else place.malicious.label
    where = (place.data, place.arch, place.attack.label, malicious, place.defense.label, str(place.contamination))
    return dict(zip(COORDINATES, (*where, place.budget, place.seed), strict=True))
