"""A bench's folder may come from anybody: what its database says reaches no terminal, spreadsheet or page as it is."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from bench.benches import SMALL, finished, plan_of, report_of, toml_of

from bdaudit.bench.show import FORMATS
from bdaudit.bench.store import FILE
from bdaudit.cli.main import _run

TITLE = "\x1b]0;pwn\x07"
"""Sets a terminal's title."""
TEXTS = [("grid", c) for c in ("title", "probes")]
TEXTS += [("cells", c) for c in ("data", "arch", "attack", "defense", "contamination", "verdict")]
TEXTS += [("stages", c) for c in ("label", "reason")]


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = plan_of(defenses=["ft epochs=1", "fst epochs=1", "ep"])
    finished(
        tmp_path,
        plan,
        {
            "badnets, ft epochs=1, seed 0": report_of(0.90, 0.50, 0.95),
            "badnets, ep, seed 0": report_of(0.95, 0.00, 0.01, oracle="ep", verdict="pass"),
        },
    )
    alter(tmp_path, f"UPDATE stages SET state = 'failed', reason = 'why' WHERE key = '{plan.cells[1].stage.key}'")
    return tmp_path


def alter(folder: Path, line: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / FILE)) as connection, connection:
        connection.execute(line, values)


def say(folder: Path, said: str) -> None:
    """Put it before every text, and before a probe's name of which there is a column."""
    for table, column in TEXTS:
        alter(folder, f"UPDATE {table} SET {column} = ? || {column}", said)
    alter(folder, "UPDATE findings SET probe = ? || probe WHERE metric = 'p_asr'", said)


def shown(folder: Path, out: Path) -> Iterator[tuple[str, str]]:
    """Everything that `bench show` and `bench compare` write of it."""
    for form in FORMATS:
        for axis in ("attack", "defense"):
            out.unlink(missing_ok=True)
            assert call("bench", "show", folder, "--format", form, "--columns", axis, "--out", out) == 0
            yield form, out.read_text()
    assert call("bench", "compare", folder, folder, "--out", out) == 0
    yield "compare", out.read_text()


@pytest.mark.parametrize("said", [TITLE, "\u202egnp.exe", "a\nb\r\x85c"], ids=["escape", "turned", "lines"])
def test_no_text_of_it_commands_a_terminal(folder: Path, said: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wherever it may stand, in every format: control characters are replaced, and what holds them is one line."""
    say(folder, said)
    for form, text in shown(folder, tmp_path_factory.mktemp("out") / "table"):
        assert all(c.isprintable() or c in "\n" for c in text), form
        assert "a\nb" not in text


def test_no_text_of_it_is_a_formula(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Row names, column heads and verdicts: a spreadsheet takes none of them for something to work out."""
    say(folder, "=cmd|' /C calc'!A0")
    for form, text in shown(folder, tmp_path_factory.mktemp("out") / "table"):
        if form == "csv":
            cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
            assert any(cell.startswith("'=cmd") for cell in cells)
            assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r")]


def test_a_link_stays_in_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell's key is a part of a path: one that leads elsewhere is refused."""
    for table, column in (("cells", "cell"), ("stages", "key"), ("findings", "cell")):
        alter(folder, f"UPDATE {table} SET {column} = '../../../' || {column}")
    assert call("bench", "show", folder, "--format", "html") == 2
    assert "expected hexadecimal digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("findings.value", "abc"),
        ("findings.value", "1e400"),
        ("findings.value", 1e400),
        ("findings.value", -1e400),
        ("findings.value", 1e308),
        ("findings.value", b"\x00"),
        ("findings.low", "abc"),
        ("findings.high", 1e400),
        ("findings.n", "many"),
        ("findings.seeds", 0.5),
        ("findings.spread", "\x1b[2J"),
        ("findings.metric", b"o_asr"),
        ("cells.attack", b"\xff"),
        ("cells.seed", "first"),
        ("cells.budget", "\x1b]0;pwn\x07"),
        ("cells.verdict", b"pass"),
        ("cells.oracle", "no"),
        ("grid.title", b"\x00"),
        ("stages.seconds", "abc"),
    ],
)
def test_a_value_of_another_kind_is_one_clear_line(
    folder: Path, column: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite holds no column to its type; what is in it is no unexpected error for that."""
    table, _, name = column.partition(".")
    alter(folder, f"UPDATE {table} SET {name} = ?", value)
    grid = tmp_path / "grid.toml"
    grid.write_text(toml_of(SMALL))
    line = ("plan", grid, "--out", folder) if table == "stages" else ("show", folder, "--format", "html")
    assert call("bench", *line) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: plugin ")]
    assert len(error) == 1
    assert f"{FILE}: {name} is " in error[0]
    assert error[0].isprintable()


def test_a_finding_of_no_cell_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The view that joins the tables may be another as well."""
    alter(folder, "DROP VIEW results")
    alter(folder, "CREATE VIEW results AS SELECT * FROM findings")
    alter(folder, "UPDATE findings SET cell = 'abc'")
    assert call("bench", "show", folder) == 2
    assert "cell is 'abc', expected one of the grid's" in capsys.readouterr().err
