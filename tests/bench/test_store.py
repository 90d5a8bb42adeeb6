"""The database: a row a finding, one line of pandas, and what earlier grids left out of the way."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas
import pytest
from bench.benches import finished, plan_of, report_of
from readonly import read_only

from bdaudit.bench import opened
from bdaudit.bench.opened import read_store, write_store
from bdaudit.bench.store import FILE, CellRow, Store
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


def test_a_finished_bench_is_read_where_nothing_may_be_written(folder: Path) -> None:
    """A colleague's folder, or one on a read-only disk: by bdaudit, and by the documented line of pandas."""
    with read_only(folder):
        with pytest.raises(PermissionError):
            (folder / "x").touch()
        with read_store(folder) as reader:
            assert len(reader.results()) == 6
        frame = pandas.read_sql("SELECT * FROM results", sqlite3.connect(folder / FILE))
        assert len(frame) == 6


def test_a_bench_that_was_left_in_wal_mode_is_read_there_too(folder: Path) -> None:
    """As earlier versions left all of theirs: no log beside the file, and none can be made."""
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with read_only(folder), read_store(folder) as reader:
        assert len(reader.results()) == 6


def test_what_a_log_holds_is_never_read_past(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A killed run's log holds its last findings: where it cannot be read, the file is not shown without them."""
    copy = tmp_path_factory.mktemp("copy")
    with write_store(folder) as store:
        store.adopt(plan_of(defenses=["pl"]))
        for name in (FILE, f"{FILE}-wal"):
            shutil.copyfile(folder / name, copy / name)
    with read_only(copy), pytest.raises(InputError, match="cannot be used as"), read_store(copy):
        pass
    with read_store(copy) as reader:
        assert [c.coordinates["defense"] for c in reader.cells()] == ["pl"]


def test_a_run_beside_a_reader_ends_well_and_is_all_in_the_file(folder: Path) -> None:
    """Somebody's notebook holds the file open as the run ends: both go on, and the next run tidies up."""
    plan = plan_of(defenses=["pl"])
    with closing(sqlite3.connect(folder / FILE)) as notebook:
        with write_store(folder) as store:
            assert len(notebook.execute("SELECT * FROM results").fetchall()) == 6
            store.adopt(plan)
            store.finish(plan.cells[0].stage, 1.0, LEFT)
        assert len(notebook.execute("SELECT * FROM results").fetchall()) == 3
        assert (folder / f"{FILE}-wal").stat().st_size == 0
        with read_only(folder), read_store(folder) as reader:
            assert len(reader.results()) == 3
    with write_store(folder):
        pass
    assert [p.name for p in folder.iterdir() if p.name.startswith(FILE)] == [FILE]
    with closing(sqlite3.connect(folder / FILE)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_run_that_is_stopped_leaves_an_ordinary_file_as_well(folder: Path) -> None:
    """Ctrl-C, in the middle of a transaction: nothing of that one, all of those before."""
    with pytest.raises(KeyboardInterrupt), write_store(folder) as store:
        store.connection.execute("DELETE FROM findings")
        raise KeyboardInterrupt
    with read_only(folder), closing(sqlite3.connect(folder / FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM findings").fetchone() == (6,)


def test_all_that_a_reader_sees_is_of_one_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes up a larger grid between two questions: the findings are still those of the cells listed."""
    listed = Store.cells
    with write_store(folder) as run:
        run.adopt(plan_of(defenses=["fst epochs=1"]))

        def cells(store: Store) -> list[CellRow]:
            found = listed(store)
            run.adopt(plan_of())
            return found

        monkeypatch.setattr(Store, "cells", cells)
        with read_store(folder) as reader:
            assert {r.cell.coordinates["defense"] for r in reader.results()} == {"fst epochs=1"}
    monkeypatch.undo()
    with read_store(folder) as reader:
        assert len(reader.results()) == 6


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
    whole = opened.SCHEMA
    monkeypatch.setattr(opened, "SCHEMA", whole.replace("CREATE VIEW", "no SQL; CREATE VIEW"))
    with pytest.raises(InputError), write_store(tmp_path):
        pass
    monkeypatch.setattr(opened, "SCHEMA", whole)
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
    with pytest.raises(InputError, match="version 99, this bdaudit reads version 2"), read_store(tmp_path):
        pass
