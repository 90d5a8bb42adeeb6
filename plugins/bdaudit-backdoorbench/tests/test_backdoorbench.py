"""BackdoorBench's records become folders to audit; whatever is wrong with one is said in one line."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backdoorbench_records import Made, Split, edit, write_record
from bdaudit_backdoorbench import BackdoorBench

from bdaudit import plugins
from bdaudit.cli.main import _run
from bdaudit.errors import InputError
from bdaudit.importers import Imported
from bdaudit.inputs.folders import read_folder
from bdaudit.inputs.goal import Goal

CLASSES = tuple("0123456789")


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


def read(record: Path, **options: Any) -> Imported:
    return BackdoorBench(**options).run({"record": record})


def test_it_arrives_through_its_entry_point() -> None:
    assert plugins.get("importer", "backdoorbench") is BackdoorBench
    assert plugins.registry().of_kind("importer")["backdoorbench"].origin.distribution == "bdaudit-backdoorbench"


def test_it_keeps_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plugins", "check", "backdoorbench") == 0
    assert re.search(r"^  options round-trip +ok$", capsys.readouterr().out, re.MULTILINE)


class TestReading:
    def test_every_triggered_row_is_listed_with_both_labels(self, made: Made) -> None:
        imported, poisoned = read(made.record), made.implanted.poisoned
        assert imported.train is not None
        assert imported.train.total == len(poisoned.pool)
        rows = imported.train.index
        assert torch.equal(rows, poisoned.poisoned.nonzero().flatten())
        assert torch.equal(imported.train.given, poisoned.pool.labels[rows])
        assert torch.equal(imported.train.true, poisoned.true_labels[rows])
        assert imported.goal == Goal(0, 10)

    def test_images_are_the_attackers_pixel_for_pixel(self, made: Made) -> None:
        imported = read(made.record)
        for rows, pool in ((imported.train, made.implanted.poisoned.pool), (imported.test, made.test.pool)):
            assert rows is not None
            for row in (0, len(rows) - 1):
                assert torch.equal(rows.read(row), pool.images[int(rows.index[row])])

    def test_the_test_split_lists_the_rows_in_use_only(self, made: Made) -> None:
        """`original_index_array` may be a part of the split, while `poison_indicator` covers all of it."""
        imported = read(made.record)
        assert imported.test is not None
        assert torch.equal(imported.test.index, made.test.triggered.nonzero().flatten())
        assert imported.test.total == len(made.test.pool)

    def test_pixels_are_normalised_as_backdoorbench_does_for_the_dataset(self, made: Made) -> None:
        assert read(made.record).preprocessing == made.model.preprocessing

    def test_a_dataset_of_another_name_leaves_normalisation_open(self, made: Made, bare: Path) -> None:
        edit(bare, lambda d: d.update(clean_data="homemade"))
        imported = read(bare)
        assert imported.preprocessing is None
        assert any("'homemade'" in note for note in imported.notes)

    def test_the_model_is_the_one_that_was_trained(self, made: Made) -> None:
        checkpoint = read(made.record).model
        assert checkpoint is not None
        for name, tensor in made.model.body.state_dict().items():
            assert torch.equal(checkpoint.state[name], tensor)

    def test_a_model_behind_a_resize_keeps_its_names_and_takes_224_pixels(self, made: Made, bare: Path) -> None:
        """BackdoorBench's vision transformers are Sequential(Resize(224), network): every name starts with '1.'."""
        edit(bare, lambda d: d.update(model={f"module.1.{k}": v for k, v in d["model"].items()}))
        imported = read(bare)
        assert imported.model is not None
        assert imported.preprocessing is not None
        assert set(imported.model.state) == set(made.model.body.state_dict())
        assert imported.preprocessing.shape == (1, 224, 224)

    def test_a_wrong_architecture_name_is_pointed_out(self, bare: Path) -> None:
        edit(bare, lambda d: d.update(model_name="vgg19_bn"))
        assert "the record calls its model 'vgg19_bn', its weights are those of small_cnn" in read(bare).notes

    def test_all_to_all_labels_are_recognised(self, bare: Path) -> None:
        def shift(document: dict[str, Any]) -> None:
            for part in ("bd_train", "bd_test"):
                for item in document[part]["bd_data_container"]["data_dict"].values():
                    item["other_info"] = [(item["other_info"][1] + 1) % 10, item["other_info"][1]]

        edit(bare, shift)
        assert read(bare).goal == Goal(None, 10)

    def test_labels_by_no_rule_leave_the_goal_open(self, bare: Path) -> None:
        def mix(document: dict[str, Any]) -> None:
            for row, item in document["bd_train"]["bd_data_container"]["data_dict"].items():
                item["other_info"] = [int(row) % 10, item["other_info"][1]]

        edit(bare, mix)
        assert read(bare).goal is None

    def test_cross_samples_that_kept_their_label_are_cover_rows(self, made: Made, bare: Path) -> None:
        """WaNet's cross samples carry a trigger and their own label, and the record flags them as poison."""
        rows = made.implanted.poisoned.poisoned.nonzero().flatten()
        true = made.implanted.poisoned.true_labels[rows]
        crossed = rows[true != 0][:7].tolist()

        def cross(document: dict[str, Any]) -> None:
            items = document["bd_train"]["bd_data_container"]["data_dict"]
            for row in crossed:
                items[row]["other_info"] = [items[row]["other_info"][1]] * 2

        edit(bare, cross)
        imported = read(bare)
        assert imported.train is not None
        assert imported.train.index[imported.covers(imported.train)].tolist() == crossed
        assert imported.goal == Goal(0, 10)

    def test_clean_label_rows_are_poison_and_no_cover(self, made: Made, tmp_path: Path) -> None:
        """Rows of the target class that kept their label are what clean-label attacks (SIG, LC) poison."""
        pool = made.dataset.train
        of_target = (pool.labels == 3) & (torch.arange(len(pool)) % 2 == 0)
        split = Split(pool, pool.labels, of_target)
        imported = read(write_record(tmp_path / "r", model=made.model, train=split, test=None, dataset="mnist"))
        assert imported.train is not None
        assert imported.goal == Goal(3, 10)
        assert not imported.covers(imported.train).any()

    def test_results_of_defenses_come_along_by_name(self, made: Made, bare: Path) -> None:
        for name in ("fst", "ft-sam", "odd name!", "odd-name"):
            save_defense(made, bare / "defense" / name)
        assert list(read(bare).purified) == ["fst", "ft-sam", "odd-name", "odd-name-2"]
        with_limit = read(bare, defenses=1)
        assert list(with_limit.purified) == ["fst"]
        assert any("4 results of defenses, of which 1 were read" in note for note in with_limit.notes)

    def test_a_defenses_result_alone_is_a_purified_model(self, made: Made, tmp_path: Path) -> None:
        path = save_defense(made, tmp_path / "fst")
        for record in (path, path.parent):
            imported = read(record)
            assert imported.model is None
            assert list(imported.purified) == ["fst"]

    def test_a_defenses_result_may_leave_out_the_number_of_classes(self, made: Made, tmp_path: Path) -> None:
        path = tmp_path / "defense_result.pt"
        state = made.model.body.state_dict()
        torch.save({"model_name": "small_cnn", "model": state, "asr": np.float64(0.1), "acc": np.float32(0.9)}, path)
        assert read(path).num_classes == 10

    def test_a_record_without_a_training_set_is_read_and_says_so(self, bare: Path) -> None:
        edit(bare, lambda d: d.update(bd_train=None))
        imported = read(bare)
        assert imported.train is None
        assert imported.test is not None
        assert any("no bd_train" in note for note in imported.notes)


class TestImporting:
    def test_the_folder_can_be_audited_as_the_summary_says(
        self, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """From a record to a verdict: one epoch of fine-tuning leaves the backdoor in, and the audit fails it."""
        out = tmp_path / "imported"
        assert call("import", made.record, "--data", made.data, "--out", out) == 0
        printed = capsys.readouterr().out
        command = printed.strip().splitlines()[-1]
        assert command == (
            f"bdaudit audit {out}/model.pt --defense fst --malicious {out}/flagged --clean {out}/clean --target 0"
        )
        words = command.replace("--defense fst", "--defense ft -o epochs=1").split()[1:]
        quick = ["-o", "retune.epochs=1", "-o", "retune.draws=1", "-o", "qra.epochs=1", "--json"]
        assert call(*words, *quick) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["verdict"] == "fail"
        rates = {(f["subject"], f["metric"]): f["value"] for f in report["findings"] if f["probe"] == "evaluation"}
        assert rates["suspect", "o_asr"] > 0.9
        assert rates["suspect", "c_acc"] > 0.9

    def test_pools_are_laid_out_by_true_class(self, made: Made, tmp_path: Path) -> None:
        out = tmp_path / "imported"
        assert call("import", made.record, "--data", made.data, "--out", out, "--with-train", "--quiet") == 0
        poisoned = made.implanted.poisoned
        mislabelled = poisoned.poisoned & (poisoned.pool.labels != poisoned.true_labels)
        expected = {
            "flagged": poisoned.pool.labelled(poisoned.true_labels).take(mislabelled),
            "test_triggered": made.test.pool.labelled(made.test.true_labels).take(made.test.triggered),
            "clean": made.dataset.test,
            "train": poisoned.pool,
        }
        for name, pool in expected.items():
            assert pool is not None
            written = read_folder(out / name, classes=CLASSES, shape=(1, 16, 16))
            assert sorted(zip(written.fingerprints(), written.labels.tolist(), strict=True)) == sorted(
                zip(pool.fingerprints(), pool.labels.tolist(), strict=True)
            ), name

    def test_train_csv_lists_every_poisoned_row(self, made: Made, tmp_path: Path) -> None:
        out = tmp_path / "imported"
        assert call("import", made.record, "--out", out, "--quiet") == 0
        with (out / "train.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        poisoned = made.implanted.poisoned
        index = poisoned.poisoned.nonzero().flatten()
        assert [int(r["index"]) for r in rows] == index.tolist()
        assert [int(r["true_label"]) for r in rows] == poisoned.true_labels[index].tolist()
        assert {(r["label"], r["poisoned"], r["cover"]) for r in rows} == {("0", "1", "0")}
        assert all((r["path"] == "") == (r["true_label"] == "0") for r in rows)
        assert all((out / r["path"]).is_file() for r in rows if r["path"])
        assert rows[0]["origin"] == f"bd_train_dataset/{rows[0]['true_label']}/{rows[0]['index']}.png"

    def test_import_json_says_what_was_read(
        self, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "imported"
        assert call("import", made.record, "--data", made.data, "--out", out, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed == json.loads((out / "import.json").read_text())
        assert (printed["target"], printed["dataset"], printed["format"]) == (0, "mnist", "backdoorbench")
        assert printed["rows"] == {"train": 1300, "poisoned": 130, "cover": 0}
        assert printed["metrics"]["asr"] > 0.9
        assert printed["metrics"]["c_acc"] > 0.9
        assert len(printed["files"]["attack_result.pt"]) == 64

    def test_the_model_says_how_pixels_go_in(self, made: Made, tmp_path: Path) -> None:
        assert call("import", made.record, "--out", tmp_path / "imported", "--quiet") == 0
        header = torch.load(tmp_path / "imported" / "model.pt", weights_only=True)["bdaudit"]
        assert header["preprocessing"]["mean"] == [0.5]

    def test_normalisation_that_the_record_does_not_tell_is_chosen_on_the_clean_images(
        self, record: Path, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        edit(record, lambda d: d.update(clean_data="homemade"))
        assert call("import", record, "--data", made.data, "--out", tmp_path / "imported") == 0
        assert "clean images best" in capsys.readouterr().err
        assert set(torch.load(tmp_path / "imported" / "model.pt", weights_only=True)) == set(
            made.model.body.state_dict()
        )

    def test_what_a_defense_made_of_the_model_is_audited_beside_it(
        self, made: Made, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_defense(made, record / "defense" / "ft")
        out = tmp_path / "imported"
        assert call("import", record, "--data", made.data, "--out", out) == 0
        assert f"--purified {out}/purified-ft.pt" in capsys.readouterr().out
        assert (out / "purified-ft.pt").is_file()

    def test_an_import_replaces_an_earlier_one_and_nothing_else(self, made: Made, tmp_path: Path) -> None:
        out = tmp_path / "imported"
        assert call("import", made.record, "--out", out, "--quiet") == 0
        assert call("import", made.record, "--out", out, "--quiet") == 0
        (out / "mine.txt").write_text("keep")
        assert call("import", made.record, "--out", out, "--quiet") == 2
        assert (out / "mine.txt").read_text() == "keep"

    @pytest.mark.parametrize("data", ["shuffled", "smaller"])
    def test_another_dataset_than_the_records_is_refused(
        self, data: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Clean images whose labels contradict the record would make every later figure wrong."""
        other = Path(shutil.copytree(made.data, tmp_path / "other"))
        if data == "smaller":
            next((other / "train" / "9").iterdir()).unlink()
        else:
            (other / "test" / "3").rename(other / "test" / "x")
            (other / "test" / "4").rename(other / "test" / "3")
            (other / "test" / "x").rename(other / "test" / "4")
        assert call("import", made.record, "--data", other, "--out", tmp_path / "imported", "--quiet") == 2
        line = one_error(capsys)
        assert "is not what the record was made from" in line
        assert not (tmp_path / "imported").exists()


class TestDamage:
    """What is missing, and images that cannot be used, cost rows and not the import."""

    def test_missing_and_unusable_images_are_named_once_with_a_count(
        self, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = sorted((record / "bd_test_dataset").rglob("*.png"))
        outside = tmp_path / "outside.png"
        shutil.copy(files[0], outside)
        for path in files[:6]:
            path.unlink()
        files[1].symlink_to(outside)
        files[2].write_bytes(b"not an image")
        files[3].mkdir()
        os.mkfifo(files[4])
        from PIL import Image

        Image.new("L", (8, 8)).save(files[5])
        assert call("import", record, "--out", tmp_path / "imported", "--json") == 0
        printed = capsys.readouterr()
        [line] = [line for line in printed.err.splitlines() if "test_triggered:" in line]
        assert line.startswith("warning: test_triggered: 6 of 454 images are not used: ")
        for reason in ("no such file", "a link", "not an image", "not a file", "of another size than the record says"):
            assert reason in line
        assert json.loads(printed.out)["images"]["test_triggered"] == 448

    def test_a_linked_folder_of_images_is_not_followed(
        self, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (record / "bd_test_dataset").rename(tmp_path / "elsewhere")
        (record / "bd_test_dataset").symlink_to(tmp_path / "elsewhere")
        assert call("import", record, "--out", tmp_path / "imported", "--quiet") == 0
        assert "454 of 454 images are not used: a link" in capsys.readouterr().err
        assert not (tmp_path / "imported" / "test_triggered").exists()

    def test_a_record_without_its_images_still_gives_model_and_poison_rows(
        self, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call("import", bare, "--out", tmp_path / "imported", "--quiet") == 0
        printed = capsys.readouterr()
        assert "118 of 118 images are not used: no such file" in printed.err
        assert "--malicious FLAGGED_IMAGES" in printed.out
        assert {p.name for p in (tmp_path / "imported").iterdir()} == {"model.pt", "train.csv", "import.json"}

    @pytest.mark.parametrize(
        "path",
        [
            "/etc/passwd",
            "../../../secret/0/0.png",
            "./record/x/bd_test_dataset/../../secret/0.png",
            "bd_test_dataset/0/\x00.png",
            "bd_test_dataset/" + "x" * 5000,
            "bd_test_dataset/" + "x" * 300 + ".png",
            "\udc80/0.png",
            "",
            7,
            None,
        ],
    )
    def test_a_path_never_leads_out_of_the_record(self, path: object, record: Path, tmp_path: Path) -> None:
        secret = Path(shutil.copytree(record / "bd_test_dataset", tmp_path / "secret"))
        assert secret.is_dir()
        index, item = first_item(record, "bd_test")
        name = f"{index}.png"
        shutil.copy(record / "bd_test_dataset" / str(item["other_info"][1]) / name, secret / "0.png")

        def change(document: dict[str, Any]) -> None:
            document["bd_test"]["bd_data_container"]["data_dict"][index]["path"] = path

        edit(record, change)
        out = tmp_path / "imported"
        assert call("import", record, "--out", out, "--quiet") == 0
        assert not list((out / "test_triggered").rglob(f"{int(index):06d}.png"))

    def test_paths_from_the_authors_machine_are_found_beside_the_record(self, record: Path, tmp_path: Path) -> None:
        roots = ["/home/author/BackdoorBench/record/x/", "C:\\Users\\author\\record\\", "", "../somewhere/"]

        def move(document: dict[str, Any]) -> None:
            items = document["bd_test"]["bd_data_container"]["data_dict"]
            for row, item in items.items():
                tail = item["path"].split("/")[-3:]
                item["path"] = roots[int(row) % 4] + ("\\" if int(row) % 4 == 1 else "/").join(tail)

        edit(record, move)
        imported = read(record)
        assert imported.test is not None
        for row in range(len(imported.test)):
            imported.test.read(row)

    def test_rows_without_an_entry_are_counted(self, bare: Path) -> None:
        def drop(document: dict[str, Any]) -> None:
            items = document["bd_train"]["bd_data_container"]["data_dict"]
            for row in list(items)[:9]:
                del items[row]

        edit(bare, drop)
        imported = read(bare)
        assert imported.train is not None
        assert len(imported.train) == 121
        assert "bd_train: 9 of 130 triggered rows are not in its data_dict and were left out" in imported.notes


def nested(part: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[part].update(changes)


def first_row(document: dict[str, Any]) -> dict[str, Any]:
    items: dict[int, dict[str, Any]] = document["bd_train"]["bd_data_container"]["data_dict"]
    return next(iter(items.values()))


def rename_second(document: dict[str, Any]) -> None:
    first, second, *_ = document["bd_train"]["bd_data_container"]["data_dict"].values()
    second["path"] = first["path"]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no model": (lambda d: d.pop("model"), "its 'model' is a NoneType, expected a dictionary"),
    "no weights": (lambda d: d.update(model={}), "holds no tensors"),
    "weights not finite": (lambda d: d["model"]["linear.bias"].fill_(float("nan")), "linear.bias holds NaN"),
    "num_classes None": (lambda d: d.update(num_classes=None), "num_classes is a NoneType"),
    "num_classes absurd": (lambda d: d.update(num_classes=10**15), "num_classes is 1000000000000000"),
    "num_classes a bool": (lambda d: d.update(num_classes=True), "num_classes is a bool"),
    "num_classes too few": (lambda d: d.update(num_classes=2), "there are 2 classes"),
    "num_classes too many": (lambda d: d.update(num_classes=11), "10 outputs"),
    "img_size missing": (lambda d: d.pop("img_size"), "img_size is None"),
    "img_size absurd": (lambda d: d.update(img_size=(10**9, 10**9, 3)), "img_size is 1000000000, expected 1 to 4096"),
    "img_size channels": (lambda d: d.update(img_size=(32, 32, 7)), "7 channels"),
    "img_size text": (lambda d: d.update(img_size="big\n\x1b[31m"), "img_size is"),
    "bd_train a list": (lambda d: d.update(bd_train=[1]), "bd_train is a list, expected a dictionary"),
    "no container": (nested("bd_train", bd_data_container=None), "bd_train.bd_data_container is a NoneType"),
    "version 1": (lambda d: d.update(bd_train={"x": 1, "y": 2}), "of BackdoorBench's version 2 are read"),
    "no indicator": (nested("bd_train", poison_indicator=None), "bd_train.poison_indicator is a NoneType"),
    "indicator of twos": (nested("bd_train", poison_indicator=np.full(1300, 2.0)), "other numbers than 0 and 1"),
    "indicator of halves": (nested("bd_train", poison_indicator=np.full(1300, 0.5)), "holds fractions or NaN"),
    "indicator of NaN": (nested("bd_train", poison_indicator=np.full(1300, np.nan)), "holds fractions or NaN"),
    "indicator square": (nested("bd_train", poison_indicator=np.zeros((36, 36))), "has the shape (36, 36)"),
    "indicator too short": (nested("bd_train", poison_indicator=np.ones(5)), "does not fit poison_indicator (5 rows)"),
    "index beyond": (nested("bd_test", original_index_array=np.array([10**12])), "does not fit poison_indicator"),
    "index negative": (nested("bd_test", original_index_array=np.array([-1])), "does not fit poison_indicator"),
    "index twice": (nested("bd_test", original_index_array=np.array([4, 4])), "lists a row twice"),
    "label out of range": (lambda d: first_row(d).update(other_info=[11, 3]), "has the given label 11"),
    "label negative": (lambda d: first_row(d).update(other_info=[0, -3]), "a label is -3"),
    "label text": (lambda d: first_row(d).update(other_info=["0", 3]), "a label is a str"),
    "labels missing": (lambda d: first_row(d).pop("other_info"), "its other_info is a NoneType"),
    "labels three": (lambda d: first_row(d).update(other_info=[0, 1, 2]), "expected [label given, true label]"),
    "entry no dictionary": (
        lambda d: d["bd_train"]["bd_data_container"]["data_dict"].update(
            dict.fromkeys(d["bd_train"]["bd_data_container"]["data_dict"], 3)
        ),
        "other_info",
    ),
    "one file for two rows": (rename_second, "name the same file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_record_ends_in_one_line(
    case: str, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = HOSTILE[case]
    edit(bare, change)
    assert call("import", bare, "--out", tmp_path / "imported", "--quiet") == 2
    assert expected in one_error(capsys)
    assert not (tmp_path / "imported").exists()


def test_nothing_in_a_record_is_run(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that asks for a function is refused, wherever in the record it hides."""
    proof = tmp_path / "proof"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(proof),)

    edit(bare, lambda d: d["bd_train"].update(getitem_all=Payload()))
    assert call("import", bare, "--out", tmp_path / "imported", "--quiet") == 2
    assert "refused" in one_error(capsys)
    assert not proof.exists()


def test_numpy_objects_are_no_way_in(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An object array may hold anything at all; only plain numbers are allowed."""
    edit(bare, nested("bd_train", poison_indicator=np.array([{"a": 1}, None], dtype=object)))
    assert call("import", bare, "--out", tmp_path / "imported", "--quiet") == 2
    one_error(capsys)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({"model": 1}), b"\x00" * 100])
def test_a_file_that_is_no_record(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "attack_result.pt").write_bytes(content)
    assert call("import", tmp_path / "attack_result.pt", "--out", tmp_path / "imported") == 2
    assert "attack_result.pt: " in one_error(capsys)


def test_a_linked_result_in_a_folder_is_refused(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record / "attack_result.pt").rename(tmp_path / "real.pt")
    (record / "attack_result.pt").symlink_to(tmp_path / "real.pt")
    assert call("import", record, "--out", tmp_path / "imported") == 2
    assert "is a link" in one_error(capsys)


def save_defense(made: Made, folder: Path) -> Path:
    """Write defense_result.pt as BackdoorBench does."""
    folder.mkdir(parents=True)
    path = folder / "defense_result.pt"
    torch.save({"model_name": "small_cnn", "num_classes": 10, "model": made.model.body.state_dict()}, path)
    return path


def first_item(record: Path, part: str) -> tuple[Any, dict[str, Any]]:
    document = torch.load(record / "attack_result.pt", weights_only=False)
    items = document[part]["bd_data_container"]["data_dict"]
    return next(iter(items.items()))


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, which is printable."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    return line


def test_errors_name_the_record_and_raise_as_input_errors(tmp_path: Path) -> None:
    (tmp_path / "attack_result.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"attack_result\.pt: "):
        read(tmp_path)
