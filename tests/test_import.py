"""What another tool left becomes a folder to audit: the hook, the checks that every importer gets, the command."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bdaudit import plugins
from bdaudit.cli.main import _run
from bdaudit.errors import InputError, UsageError
from bdaudit.flow.importing import find_importer
from bdaudit.flow.run import Run
from bdaudit.importers import Imported, Importer, Rows
from bdaudit.inputs.checkpoint import read_checkpoint, weights_in
from bdaudit.inputs.checkpoint_read import open_checkpoint
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.opening import Unusable
from bdaudit.inputs.pool import Pool


class Notes(Importer):
    """Read a file that ends in .note, whose content the test has put into `holds`."""

    name = "notes"
    holds: ClassVar[Any] = None

    @classmethod
    def recognises(cls, record: Path) -> bool:
        return record.suffix == ".note"

    def read(self, record: Path) -> Any:
        if record.read_text() == "bad":
            raise InputError("is bad")
        return type(self).holds


class Others(Notes):
    """Also reads whatever ends in .note."""

    name = "others"


@pytest.fixture
def note(tmp_path: Path) -> Path:
    (tmp_path / "a.note").write_text("good")
    return tmp_path / "a.note"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    """The importer above, as if it had been installed."""
    install(monkeypatch, Notes)
    return Notes


def install(monkeypatch: pytest.MonkeyPatch, *classes: type[Importer]) -> None:
    found = {("importer", cls.name): plugins.Found(cls, plugins.Origin("strangers", "1", __name__)) for cls in classes}
    registry = plugins.Registry(dict(plugins.registry().found) | found)
    monkeypatch.setattr(plugins, "registry", lambda: registry)


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


def rows_of(pool: Pool, true: Tensor, index: Tensor, total: int | None = None) -> Rows:
    return Rows(
        index=index, given=pool.labels, true=true, origin=pool.origin, read=lambda row: pool.images[row], total=total
    )


def labels(given: list[int], true: list[int]) -> Rows:
    pool = Pool.of(torch.zeros(len(given), 1, 8, 8, dtype=torch.uint8), given)
    return rows_of(pool, torch.tensor(true), torch.arange(len(given)))


@pytest.fixture
def imported(run: Run) -> Imported:
    """The run's model and its triggered test images, as an importer would hand them over."""
    checkpoint = read_checkpoint(run.model_path)
    model = weights_in(dict(checkpoint.state), open_checkpoint(run.model_path))
    test = run.pool("test")
    counted = run.goal.counted(test.labels)
    index = counted.nonzero().flatten()
    triggered = run.trigger.on(test.take(index))
    rows = rows_of(triggered.labelled(0), triggered.labels, index, total=len(test))
    return Imported(model=model, preprocessing=checkpoint.preprocessing, num_classes=10, dataset="digits", test=rows)


def test_importers_arrive_through_their_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooked_importer.py").write_text(
        "from bdaudit.hookspecs import hookimpl\nfrom test_import import Notes\n"
        "@hookimpl\ndef bdaudit_importers():\n    return [Notes]"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = plugins.load([EntryPoint("importer.notes", "hooked_importer", plugins.GROUP)])
    assert not loaded.broken
    assert loaded.get("importer", "notes").name == "notes"


class TestFinding:
    def test_the_one_that_recognises_the_record_is_taken(self, note: Path, installed: type[Notes]) -> None:
        assert find_importer(note) is installed

    def test_those_that_the_allow_list_keeps_out_are_named(self, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        left_out = ("defense.x (from other 1)", "importer.notes (from noted 1)")
        monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry(left_out=left_out))
        with pytest.raises(UsageError, match=r"none; .*; BDAUDIT_PLUGINS leaves out importer\.notes \(from noted 1\)$"):
            find_importer(note)

    def test_none_says_what_is_installed(self, note: Path, installed: type[Notes]) -> None:
        with pytest.raises(UsageError, match=r"no installed importer recognises it \(installed: .*notes\)"):
            find_importer(note.parent)

    def test_one_that_recognises_nothing_is_taken_by_name_alone(
        self, note: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Silent(Importer):
            """Writes no `recognises`."""

            name = "silent"

            def read(self, record: Path) -> Any:
                return None

        install(monkeypatch, Silent)
        with pytest.raises(UsageError, match=r"no installed importer recognises it \(installed: .*silent\)"):
            find_importer(note)
        assert find_importer(note, "silent") is Silent

    def test_several_ask_for_a_name(self, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, Notes, Others)
        with pytest.raises(UsageError, match=r"several importers recognise it \(notes, others\)"):
            find_importer(note)
        assert find_importer(note, "others") is Others

    def test_a_record_that_is_not_there(self, note: Path, installed: type[Notes]) -> None:
        with pytest.raises(InputError, match=r"b\.note: no such file or folder"):
            find_importer(note.with_name("b.note"), "notes")


class TestChecks:
    """What holds of every import, whoever wrote the importer."""

    @pytest.mark.parametrize(
        ("given", "true", "goal"),
        [
            ([2, 2, 2], [0, 1, 2], Goal(2, 4)),
            ([2, 2, 1], [0, 3, 1], Goal(2, 4)),
            ([1, 2, 3, 0], [0, 1, 2, 3], Goal(None, 4)),
            ([3, 3], [3, 3], Goal(3, 4)),
            ([1, 2], [3, 3], None),
            ([1, 2], [1, 2], None),
        ],
        ids=["all to one", "with a cover row", "all to all", "clean-label", "no rule", "only cover rows"],
    )
    def test_the_goal_is_read_off_the_labels(
        self, given: list[int], true: list[int], goal: Goal | None, imported: Imported
    ) -> None:
        found = Imported(model=imported.model, num_classes=4, train=labels(given, true))
        assert found.goal == goal

    def test_rows_with_a_trigger_and_their_own_label_are_covers(self, imported: Imported) -> None:
        rows = labels([2, 2, 1], [0, 2, 1])
        found = Imported(model=imported.model, num_classes=4, train=rows)
        assert found.covers(rows).tolist() == [False, False, True]

    @pytest.mark.parametrize(
        ("given", "true", "index", "message"),
        [
            ([4], [0], [0], "row 0 has the given label 4, but there are 4 classes"),
            ([0], [-1], [0], "row 0 has the true label -1"),
            ([0, 0], [1, 1], [3, 3], "no number twice"),
            ([0], [1], [-2], "from 0 up"),
            ([0], [1], [9], "row 9 is triggered, but the split has only 9 rows"),
            ([0], [1, 1], [0], "as many int64 indices"),
        ],
    )
    def test_impossible_rows_are_refused(
        self, given: list[int], true: list[int], index: list[int], message: str, imported: Imported
    ) -> None:
        pool = Pool.of(torch.zeros(len(given), 1, 8, 8, dtype=torch.uint8), given)
        with pytest.raises(InputError, match=message):
            Imported(
                model=imported.model, num_classes=4,
                train=rows_of(pool, torch.tensor(true), torch.tensor(index), total=9),
            )  # fmt: skip

    def test_an_import_without_a_model_is_refused(self) -> None:
        with pytest.raises(InputError, match="holds no model"):
            Imported(num_classes=4)

    def test_what_is_no_import_is_the_plugins_fault(
        self, note: Path, installed: type[Notes], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call("import", note, "--out", note.parent / "out") == 3
        assert "notes.read returned NoneType, expected Imported" in capsys.readouterr().err

    def test_errors_name_the_record(
        self, note: Path, installed: type[Notes], capsys: pytest.CaptureFixture[str]
    ) -> None:
        note.write_text("bad")
        assert call("import", note, "--out", note.parent / "out") == 2
        assert "a.note: is bad" in capsys.readouterr().err
        assert not (note.parent / "out").exists()


class TestWriting:
    @pytest.fixture(autouse=True)
    def held(self, installed: type[Notes], imported: Imported, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(installed, "holds", imported)

    def test_the_model_is_tried_as_an_audit_would_open_it(
        self, note: Path, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = note.parent / "out"
        assert call("import", note, "--out", out, "--json") == 0
        record = json.loads(capsys.readouterr().out)
        assert record["metrics"]["asr"] == pytest.approx(run.record.metrics["model"]["asr"], abs=0.1)
        assert record["metrics"]["asr_n"] == 100
        assert record["images"] == {"test_triggered": int(run.goal.counted(run.pool("test").labels).sum())}

    def test_without_a_test_split_clean_images_are_untriggered_training_rows(
        self, note: Path, installed: type[Notes], imported: Imported, run: Run, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        data = note.parent / "data"
        write_folder(run.pool("reserve"), data, classes=run.record.classes)
        pool = run.pool("reserve")  # as the folder is read: class by class
        index = torch.arange(0, len(pool), 5)
        counted = index[run.goal.counted(pool.labels[index])]
        triggered = run.trigger.on(pool.take(counted))
        train = rows_of(triggered.labelled(0), triggered.labels, counted, total=len(pool))
        monkeypatch.setattr(installed, "holds", Imported(model=imported.model, num_classes=10, train=train))
        assert call("import", note, "--data", data, "--out", note.parent / "out", "--json") == 0
        printed = capsys.readouterr()
        record = json.loads(printed.out)
        assert record["images"] == {"flagged": len(counted), "clean": len(pool) - len(counted)}
        assert "has no test split: clean/ holds training rows" in printed.err

    def test_an_unknown_architecture_leaves_the_weights_as_they_came(
        self, note: Path, installed: type[Notes], imported: Imported, run: Run, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        state = {"first.weight": torch.zeros(4, 1, 3, 3), "last.weight": torch.ones(10, 4)}
        model = weights_in(state, open_checkpoint(run.model_path))
        monkeypatch.setattr(installed, "holds", Imported(model=model, num_classes=10, test=imported.test))
        assert call("import", note, "--out", note.parent / "out") == 0
        printed = capsys.readouterr()
        assert "its architecture is not known" in printed.err
        assert "--arch ARCHITECTURE" in printed.out
        written = torch.load(note.parent / "out" / "model.pt", weights_only=True)
        assert all(torch.equal(written[name], tensor) for name, tensor in state.items())

    def test_the_users_own_network_is_tried_and_named_in_the_next_command(
        self, note: Path, installed: type[Notes], imported: Imported, run: Run, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        source = note.with_name("mine.py")
        source.write_text(
            "from torch import nn\ndef make(num_classes):\n    return nn.Sequential(nn.Conv2d(1, 4, 3), "
            "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
        )
        state = {"0.weight": torch.ones(4, 1, 3, 3), "0.bias": torch.ones(4)}
        state |= {"3.weight": torch.ones(10, 4), "3.bias": torch.eye(10)[0]}  # always class 0, the target
        model = weights_in(state, open_checkpoint(run.model_path))
        pixels = imported.preprocessing
        monkeypatch.setattr(
            installed, "holds", Imported(model=model, preprocessing=pixels, num_classes=10, test=imported.test)
        )
        assert call("import", note, "--arch", f"{source}:make", "--out", note.parent / "out") == 0
        printed = capsys.readouterr().out
        assert "ASR 100.0%" in printed
        assert f"--arch {source}:make" in printed

    def test_unreadable_images_are_counted_and_end_no_import(
        self, note: Path, installed: type[Notes], imported: Imported, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        rows = imported.test
        assert rows is not None

        def fail_below(limit: int) -> Imported:
            def read(row: int) -> Tensor:
                if row < limit:
                    raise Unusable("gone")
                return rows.read(row)

            broken = Rows(index=rows.index, given=rows.given, true=rows.true, origin=rows.origin, read=read)
            return Imported(model=imported.model, num_classes=10, test=broken)

        monkeypatch.setattr(installed, "holds", fail_below(3))
        assert call("import", note, "--out", note.parent / "out") == 0
        assert f"3 of {len(rows)} images are not used: gone (3: " in capsys.readouterr().err
        monkeypatch.setattr(installed, "holds", fail_below(len(rows)))
        assert call("import", note, "--out", note.parent / "none") == 0
        assert f"{len(rows)} of {len(rows)} images are not used: gone" in capsys.readouterr().err

    def test_the_training_set_needs_its_dataset(self, note: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("import", note, "--with-train", "--out", note.parent / "out") == 2
        assert "--data is given" in capsys.readouterr().err

    def test_the_number_of_classes_must_be_the_models(
        self, note: Path, installed: type[Notes], imported: Imported, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr(installed, "holds", Imported(model=imported.model, num_classes=12))
        assert call("import", note, "--out", note.parent / "out") == 2
        assert "has 10 outputs, the record says 12 classes" in capsys.readouterr().err
