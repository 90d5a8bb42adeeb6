"""The database: a row a finding, one line of pandas, and what earlier grids left out of the way."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pandas
import pytest
from bench.benches import finished, plan_of, report_of

from bdaudit.bench import store as store_module
from bdaudit.bench.store import FILE, read_store, write_store
from bdaudit.errors import InputError

GONE, LEFT = report_of(0.9, 0.01, 0.6), report_of(0.8, 0.5, 0.9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    finished(tmp_path, plan_of(), {"badnets, ft epochs=1, seed 0": LEFT, "badnets, fst epochs=1, seed 0": GONE})
    return tmp_path


def test_pandas_reads_a_row_a_finding_in_one_line(folder: Path) -> None:
    """The README's line gives the axes beside the figures, and they pivot."""
    frame = pandas.read_sql("SELECT * FROM results", sqlite3.connect(folder / FILE))
    assert len(frame) == 6
    assert {"attack", "defense", "contamination", "budget", "seed", "verdict", "probe", "metric", "value"} <= set(frame)
    table = frame.pivot_table(index="defense", columns="metric", values="value")
    assert table.loc["fst epochs=1", "p_asr"] == 0.6
    assert table.loc["ft epochs=1", "o_asr"] == 0.5


def test_the_database_is_one_file_once_it_is_closed(folder: Path) -> None:
    """Write-ahead logging, so that a reader never waits for a run; nothing of it stays."""
    with write_store(folder) as store:
        assert store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        with read_store(folder) as reader:
            assert len(reader.cells()) == 2
    assert [p.name for p in folder.iterdir() if p.name.startswith(FILE)] == [FILE]


def test_another_grid_in_the_folder_shows_its_own_cells_and_keeps_the_others(folder: Path) -> None:
    """Cells that both grids have stay done; those of the earlier one alone are shown no more, and are not lost."""
    other = plan_of(defenses=["fst epochs=1", "pl"])
    with write_store(folder) as store:
        store.adopt(other)
        assert [(c.coordinates["defense"], c.state) for c in store.cells()] == [
            ("fst epochs=1", "done"),
            ("pl", "left"),
        ]
        assert len(store.results()) == 3
        assert store.connection.execute("SELECT count(*) FROM findings").fetchone() == (6,)
        store.adopt(plan_of())
        assert [c.state for c in store.cells()] == ["done", "done"]


def test_a_failure_is_kept_with_its_reason_until_the_next_run_of_whatever_grid(folder: Path) -> None:
    """A model that failed belongs to no cell: dropped from the grid, it would be listed for ever."""
    plan = plan_of()
    with write_store(folder) as store:
        failed = plan.cells[0].stage
        store.fail(failed, "failed", "it broke")
        [failure] = store.failures()
        assert failure == ("cell", failed.key, "badnets, ft epochs=1, seed 0", "it broke")
        assert failure.said(folder) == "badnets, ft epochs=1, seed 0: it broke"
        (folder / "logs").mkdir()
        (folder / "logs" / f"{failed.key}.log").write_text("Traceback")
        assert failure.said(folder) == f"badnets, ft epochs=1, seed 0: it broke (see logs/{failed.key}.log)"
        assert len(store.results()) == 3
        store.fail(plan.stages[0], "failed", "it diverged")
        assert [f.kind for f in store.failures()] == ["twin", "cell"]
        store.adopt(plan_of(attacks=["blended"], seeds=[1]))
        assert store.failures() == []
        store.adopt(plan)
        assert store.cells()[0].state == "left"


def test_what_is_no_bench_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no bench"), read_store(tmp_path):
        pass
    (tmp_path / FILE).write_text("no database at all, but long enough to be looked at" * 20)
    with pytest.raises(InputError, match="cannot be used as a bench's database"), read_store(tmp_path):
        pass


def test_a_database_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends among its tables leaves none of them, and the next one makes them all."""
    whole = store_module.SCHEMA
    monkeypatch.setattr(store_module, "SCHEMA", whole.replace("CREATE VIEW", "no SQL; CREATE VIEW"))
    with pytest.raises(InputError), write_store(tmp_path):
        pass
    monkeypatch.setattr(store_module, "SCHEMA", whole)
    with write_store(tmp_path) as store:
        assert store.cells() == []


def test_what_goes_wrong_in_a_run_is_not_blamed_on_the_file(folder: Path) -> None:
    """A full disk after hours is no wrong usage: it does not end the command with exit code 2."""
    with pytest.raises(sqlite3.OperationalError), write_store(folder) as store:
        store.connection.execute("INSERT INTO nowhere VALUES (1)")


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match="version 99, this bdaudit reads version 1"), read_store(tmp_path):
        pass
