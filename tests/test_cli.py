"""The command line as a user types it: files, exit codes, one clear line for bad input."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from report.reports import audited
from support import snapshot

from bdaudit.cli.main import COMMANDS, _run
from bdaudit.flow import proxy
from bdaudit.flow.output import is_audit
from bdaudit.flow.run import Run
from bdaudit.inputs.folders import write_folder, write_png
from bdaudit.report.formats import FORMATS
from bdaudit.report.schema import read_report
from bdaudit.training.inversion import Search

FAST = ["-o", "retune.epochs=1", "-o", "retune.draws=1", "-o", "qra.epochs=1"]


@pytest.fixture
def case(run: Run, tmp_path: Path) -> Path:
    """A folder like the one a team has: model.pt, clean/, flagged/."""
    folder = tmp_path / "case"
    folder.mkdir()
    shutil.copy(run.model_path, folder / "model.pt")
    shutil.copytree(run.folder / "clean", folder / "clean")
    shutil.copytree(run.folder / "flagged", folder / "flagged")
    return folder


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


class TestPurify:
    def test_exactly_as_typed(
        self, case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(case)
        assert call("purify", "model.pt", "--defense", "pl", "--malicious", "flagged/") == 0
        printed = capsys.readouterr()
        assert printed.out == "model.purified.pt\n"
        assert "target: class 0" in printed.err
        assert "we recommend --defense sep" in printed.err
        before, after = (torch.load(case / f"{n}.pt", weights_only=True) for n in ("model", "model.purified"))
        assert before["state_dict"].keys() == after["state_dict"].keys()
        assert after["bdaudit"]["provenance"]["purified_by"] == "pl"

    def test_a_foreign_state_dict_comes_back_as_one(self, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
        state = torch.load(case / "model.pt", weights_only=True)["state_dict"]
        torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in state.items()}}, case / "foreign.pth")
        assert call("purify", case / "foreign.pth", "--defense", "ft", "-o", "epochs=1", "--json") == 0
        printed = capsys.readouterr()
        row = json.loads(printed.out)
        assert row["out"].endswith("foreign.purified.pth")
        assert "architecture recognised" in printed.err
        assert "clean images best (" in printed.err
        after = torch.load(row["out"], weights_only=True)
        assert after["epoch"] == 3
        assert after["model"].keys() == {f"module.{k}" for k in state}

    def test_a_second_copy_of_the_weights_is_told_even_quietly(
        self, case: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nothing purifies it, and this command leaves no report that could say so."""
        ours = torch.load(case / "model.pt", weights_only=True)
        torch.save({"model": ours["state_dict"], "ema": dict(ours["state_dict"])}, case / "two.pt")
        line = ["purify", case / "two.pt", "--defense", "ft", "-o", "epochs=1", "--quiet", "--json"]
        assert call(*line) == 0
        printed = capsys.readouterr()
        assert printed.err.startswith("warning: two.pt: the file holds this model's weights again under ema")
        assert printed.err.count("\n") == 1
        row = json.loads(printed.out)
        assert row["arch"].startswith("small_cnn(")
        assert row["preprocessing"]["height"] == 16
        assert any("under ema" in note for note in row["notes"])
        assert any("preprocessing is not in the file" in note for note in row["notes"])

    def test_quiet_says_nothing_on_stderr(self, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("purify", case / "model.pt", "--defense", "ft", "-o", "epochs=1", "--quiet") == 0
        assert capsys.readouterr().err == ""

    def test_the_suspect_is_never_overwritten(self, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (case / "model.pt").read_bytes()
        assert call("purify", case / "model.pt", "--defense", "ft", "--out", case / "model.pt") == 2
        assert (case / "model.pt").read_bytes() == before

    def test_inverted_triggers_are_kept_beside_the_model_and_in_the_report(
        self, case: Path, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["-o", "steps=150", "-o", "images=12", "-o", "epochs=1"]
        assert call("purify", case / "model.pt", "--defense", "nc", *options, "--json") == 0
        printed = capsys.readouterr()
        kept = {p.name for p in case.iterdir() if ".purified" in p.name}
        pictures = {"model.purified.nc-triggers.safetensors", "model.purified.nc-anomaly_index.png"}
        assert kept == {"model.purified.pt", *pictures}
        assert all(f"also wrote {case / name}" in printed.err for name in pictures)
        row = json.loads(printed.out)
        assert row["findings"][0]["variant"] == "class 0 (0)"
        assert any("nc detects a backdoor: class 0" in note for note in row["notes"])
        line = ["audit", case / "model.pt", "--defense", "nc", *options, "--attack", run.folder, "--probe", "weights"]
        call(*line, "--out", case / "audit", "--quiet")
        report = read_report(case / "audit" / "report.json")
        assert report.findings[0].probe != "nc"
        assert report.find("anomaly_index", probe="nc", subject="suspect") is not None
        assert any("nc detects a backdoor" in note for note in report.notes)
        assert (case / "audit" / "nc-triggers.safetensors").is_file()
        html = (case / "audit" / "report.html").read_text()
        assert "Triggers that NC inverted from the suspect" in html

    def test_an_oracle_is_announced(self, case: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        code = call("purify", case / "model.pt", "--defense", "ep", "-o", "epochs=1", "--attack", run.folder)
        assert code == 0
        said = capsys.readouterr().err
        assert "ORACLE: ep uses trigger" in said
        assert "we recommend" not in said


class TestAudit:
    def test_it_writes_a_report_and_ends_with_the_verdict(
        self, case: Path, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = call("audit", case / "model.pt", "--defense", "ft", "--attack", run.folder, "--json", *FAST)
        report = json.loads(capsys.readouterr().out)
        assert (report["verdict"], code) == ("fail", 1)
        out = case / "audit-ft"
        kept = "qra-generator.safetensors"
        assert {p.name for p in out.iterdir()} == {"report.json", "report.html", "model.purified.pt", kept}
        assert report["provenance"]["artifacts"] == {kept: hashlib.sha256((out / kept).read_bytes()).hexdigest()}
        assert is_audit(out)
        (out / "model.safetensors").write_bytes(b"somebody's own")
        assert not is_audit(out)
        (out / "model.safetensors").unlink()
        (out / kept).write_bytes(b"not what the probe left")
        assert not is_audit(out)
        for form in FORMATS:
            assert call("report", out / "report.json", "--format", form) == 1
            assert capsys.readouterr().out

    def test_a_good_model_passes(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The clean twin, audited as a purification, with the clean twin as reference."""
        code = call(
            "audit", run.model_path, "--purified", run.folder / "reference.pt", "--attack", run.folder,
            "--out", tmp_path / "out", "--probe", "retune", "-o", "retune.draws=2",
        )  # fmt: skip
        assert code == 0, capsys.readouterr().out
        assert not (tmp_path / "out" / "model.purified.pt").exists()

    def test_one_flagged_image_is_inconclusive(self, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in sorted((case / "flagged").iterdir())[1:]:
            path.unlink()
        assert call("audit", case / "model.pt", "--defense", "pl", "--malicious", case / "flagged") == 4
        assert "29 more" in capsys.readouterr().out

    def test_with_nothing_flagged_an_inverted_trigger_stands_in(
        self, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real search on the backdoored model: class 0 is found and audited, and nothing it shows is a pass."""
        monkeypatch.setattr(proxy, "Search", lambda **given: Search(steps=150, batch_size=12, **given))
        out = tmp_path / "out"
        code = call("audit", case / "model.pt", "--defense", "ft", "--out", out, "--probe", "retune", *FAST[:4])
        report = read_report(out / "report.json")
        assert code == int(report.exit_code) in (1, 4)
        assert report.inputs["goal"] == "all-to-one, target 0"
        assert report.find("o_asr", subject="suspect").value > 0.5  # type: ignore[union-attr]
        assert {g.source for g in report.granted if g.input == "backdoor"} == {"inverted from model.pt, a proxy"}
        assert not any(g.oracle for g in report.granted)
        nulls = {f.variant for f in report.findings if (f.probe, f.subject) == ("retune", "null")}
        assert sum(v.startswith("inverted for ") for v in nulls) == 3
        printed = capsys.readouterr()
        assert "inverting a trigger for each of 10 classes" in printed.err
        assert "rests on a proxy: a trigger inverted from model.pt for class 0" in " ".join(printed.out.split())
        assert "the real trigger" not in printed.out
        assert "Inverted triggers (a proxy)" in (out / "report.html").read_text()

    def test_a_policy_file_decides(
        self, case: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        policy = tmp_path / "policy.toml"
        policy.write_text("max_o_asr = 1.0\nmax_p_asr = 1.0\nmax_accuracy_drop = 1.0\n")
        arguments = ["audit", case / "model.pt", "--defense", "ft", "--attack", run.folder, "--policy", policy, *FAST]
        assert call(*arguments) == 0
        policy.write_text("max_asr = 1.0\n")
        assert call(*arguments) == 2
        assert "max_asr" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ([], "a defense to run (--defense NAME)"),
            (["--defense", "ft", "--purified", "x.pt"], "a defense to run (--defense NAME)"),
            (["--defense", "ft", "--target", "10"], "target 10 is out of range"),
            (["--defense", "ft", "--malicious", "flagged", "-o", "retun.draws=1"], "no such probe"),
        ],
    )
    def test_wrong_usage(
        self,
        case: Path,
        extra: list[str],
        message: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(case)
        before = snapshot(case)
        assert call("audit", "model.pt", *extra) == 2
        assert message in capsys.readouterr().err
        assert snapshot(case) == before


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.bait,)


def _state(case: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(case / "model.pt", weights_only=True)["state_dict"]
    return state


def empty_folder(case: Path) -> list[object]:
    (case / "nothing").mkdir()
    return ["--malicious", case / "nothing"]


def missing_folder(case: Path) -> list[object]:
    return ["--malicious", case / "nowhere"]


def text_as_png(case: Path) -> list[object]:
    (case / "odd").mkdir()
    (case / "odd" / "zz.png").write_text("hello")
    return ["--malicious", case / "odd"]


def truncated_image(case: Path) -> list[object]:
    path = case / "odd" / "zz.png"
    path.parent.mkdir()
    write_png(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), path)
    path.write_bytes(path.read_bytes()[:300])
    return ["--malicious", case / "odd"]


def huge_image(case: Path) -> list[object]:
    (case / "odd").mkdir()
    Image.new("1", (7_000, 7_000)).save(case / "odd" / "zz.png")
    return ["--malicious", case / "odd"]


def foreign_label(case: Path) -> list[object]:
    (case / "clean" / "10").mkdir()
    write_png(torch.zeros(1, 16, 16, dtype=torch.uint8), case / "clean" / "10" / "x.png")
    return ["--malicious", case / "flagged"]


def target_out_of_range(case: Path) -> list[object]:
    return ["--malicious", case / "flagged", "--target", "10"]


def code_in_pickle(case: Path) -> list[object]:
    (case / "model.pt").write_bytes(pickle.dumps({"state_dict": Payload(case / "bait")}))
    return ["--malicious", case / "flagged"]


def code_in_torch_file(case: Path) -> list[object]:
    torch.save({"state_dict": Payload(case / "bait")}, case / "model.pt")
    return ["--malicious", case / "flagged"]


def truncated_checkpoint(case: Path) -> list[object]:
    (case / "model.pt").write_bytes((case / "model.pt").read_bytes()[:-500])
    return ["--malicious", case / "flagged"]


def nan_checkpoint(case: Path) -> list[object]:
    state = _state(case)
    state["conv2.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, case / "model.pt")
    return ["--malicious", case / "flagged"]


def wrong_shapes(case: Path) -> list[object]:
    state = _state(case)
    state["conv2.weight"] = state["conv2.weight"][:5].clone()
    torch.save(state, case / "model.pt")
    return ["--malicious", case / "flagged", "--arch", "small_cnn"]


def unknown_architecture(case: Path) -> list[object]:
    state = _state(case)
    del state["conv3.weight"]
    torch.save(state, case / "model.pt")
    return ["--malicious", case / "flagged"]


def unknown_option(case: Path) -> list[object]:
    return ["--malicious", case / "flagged", "-o", "alhpa=1"]


def unwritable_output(case: Path) -> list[object]:
    (case / "file").write_text("")
    return ["--malicious", case / "flagged", "--out", case / "file" / "below" / "out.pt"]


def no_malicious(case: Path) -> list[object]:
    return []


BAD = [
    (empty_folder, "no images in it"),
    (missing_folder, "no such folder"),
    (text_as_png, "not an image, whatever its name says (1: zz.png)"),
    (truncated_image, "cannot be decoded (1: zz.png: "),
    (huge_image, "more than 40 megapixels"),
    (foreign_label, "the model has no class '10'"),
    (target_out_of_range, "target 10 is out of range: the model has classes 0..9"),
    (code_in_pickle, "code"),
    (code_in_torch_file, "code"),
    (truncated_checkpoint, "truncated"),
    (nan_checkpoint, "conv2.weight"),
    (wrong_shapes, "conv2.weight"),
    (unknown_architecture, "small_cnn"),
    (unknown_option, "did you mean alpha"),
    (unwritable_output, "is not a folder"),
    (no_malicious, "pl needs malicious (flagged images, labelled with the target): give --malicious DIR"),
]


@pytest.mark.parametrize(("damage", "message"), BAD, ids=[d.__name__ for d, _ in BAD])
@pytest.mark.parametrize("command", ["purify", "audit"])
def test_bad_input_gives_one_line_exit_code_2_and_no_output(
    command: str,
    damage: Callable[[Path], list[object]],
    message: str,
    case: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = damage(case)
    before = snapshot(case)
    assert call(command, case / "model.pt", "--defense", "pl", "--quiet", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert snapshot(case) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["badnets", "--data", "digits", "-o", "size=40"], "does not fit into 16 x 16"),
        (["badnets", "--data", "digits", "-o", "rate=0.00001"], "selects no row"),
        (["badnets", "--data", "digits", "--target", "10"], "target 10 is out of range"),
        (["badnets", "--data", "digits", "--images", "5000"], "not enough for 5000 training"),
        (["badnets", "--data", "digits", "--arch", "resnet81"], "did you mean"),
        (["badnet", "--data", "digits"], "did you mean badnets"),
        (["badnets", "--data", "cifar10", "--data-root", "/nonexistent"], "no cifar-10-batches-bin"),
        (["badnets", "--data", "nowhere"], "neither a dataset"),
        (["badnets", "--data", "digits", "-o", "size"], "expected name=value"),
        (["badnets", "--data", "digits", "-o", "size=1", "-o", "size=2"], "given twice"),
    ],
)
def test_bad_attacks(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("attack", *arguments, "--out", tmp_path / "run", "--quiet") == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not snapshot(tmp_path)


def test_a_folder_that_is_not_ours_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("precious")
    assert call("demo", "--out", tmp_path / "photos") == 2
    assert (tmp_path / "photos" / "me.jpg").read_text() == "precious"
    assert snapshot(tmp_path) == {"photos", "photos/me.jpg"}


# Where the tests run in a background job, their children would ignore Ctrl-C as it does.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from bdaudit.cli.main import main; main()"
)


@pytest.mark.parametrize("name", ["demo", "purify", "audit"])
def test_an_interrupted_command_leaves_nothing(name: str, case: Path) -> None:
    arguments = {
        "demo": ["demo", "--out", case / "demo"],
        "purify": ["purify", case / "model.pt", "--defense", "ft", "-o", "epochs=100000"],
        "audit": [
            "audit",
            case / "model.pt",
            "--defense",
            "ft",
            "-o",
            "epochs=100000",
            "--malicious",
            case / "flagged",
        ],
    }[name]
    before = snapshot(case)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    time.sleep(7)
    assert process.poll() is None, "it ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "interrupted" in err
    assert "Traceback" not in err
    assert snapshot(case) == before


class TestConfig:
    """A bdaudit.toml may give any option a default; one that lies beside a model may not name paths."""

    def test_beside_the_model(self, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (case / "bdaudit.toml").write_text('seed = 5\n[purify]\ndefense = "ft"\noption = {epochs = 1}\n')
        assert call("purify", case / "model.pt", "--json") == 0
        printed = capsys.readouterr()
        row = json.loads(printed.out)
        assert (row["seed"], row["defense"], row["options"]["epochs"]) == (5, "ft", 1)
        assert "seed = 5" in printed.err

    def test_only_the_suspects_own_folder_counts(
        self, case: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "bdaudit.toml").write_text("nonsense = [")
        shutil.copy(case / "model.pt", tmp_path / "other" / "p.pt")
        assert (
            call("audit", "--purified", tmp_path / "other" / "p.pt", case / "model.pt", "--malicious", "nowhere") == 2
        )
        assert "no such folder" in capsys.readouterr().err

    @pytest.mark.parametrize("line", ["option = ['retune.lr=1e-12']", "probe = ['qra']", "target = 3", "evaluate = 1"])
    def test_a_suspect_cannot_disarm_its_own_audit(
        self, case: Path, line: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (case / "bdaudit.toml").write_text(f"[audit]\n{line}\n")
        assert call("audit", case / "model.pt", "--defense", "ft", "--malicious", case / "flagged") == 2
        assert "came with the suspect" in capsys.readouterr().err

    def test_the_command_line_wins(self, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (case / "bdaudit.toml").write_text('[purify]\ndefense = "fst"\nseed = 9\n')
        assert call("purify", case / "model.pt", "--defense", "ft", "-o", "epochs=1", "--seed", "2", "--json") == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["seed"], row["defense"]) == (2, "ft")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('[purify]\nout = "/etc/passwd"\n', "came with the suspect"),
            ("[purify]\ndefence = 1\n", "did you mean defense"),
            ("[purify\n", "cannot be read as TOML"),
            ("purify = 3\n", "must be a table"),
        ],
    )
    def test_a_bad_file_is_said(self, case: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        (case / "bdaudit.toml").write_text(text)
        before = snapshot(case)
        assert call("purify", case / "model.pt", "--defense", "ft") == 2
        assert message in capsys.readouterr().err
        assert snapshot(case) == before

    def test_an_explicit_file_may_name_paths(
        self, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "mine.toml"
        config.write_text(f'[purify]\nout = "{tmp_path / "clean.pt"}"\ndefense = "ft"\n')
        assert call("purify", case / "model.pt", "--config", config, "-o", "epochs=1") == 0
        assert (tmp_path / "clean.pt").is_file()


class TestPlugins:
    def test_list_as_json_has_the_designs_columns(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("plugins", "list", "--json") == 0
        rows = {(r["kind"], r["name"]): r for r in json.loads(capsys.readouterr().out)}
        row = rows["defense", "ep"]
        assert {"kind", "name", "family", "needs", "oracle", "distribution", "version"} <= row.keys()
        assert (row["oracle"], row["family"], row["distribution"]) == (True, "post-training", "bdaudit")

    @pytest.mark.parametrize(
        "arguments", [[], ["list"], ["list", "--kind", "probe"], ["show", "fst"], ["show", "badnets"]]
    )
    def test_tables(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert call("plugins", *arguments) == 0
        assert capsys.readouterr().out

    def test_show_names_type_default_and_citation(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("plugins", "show", "fst", "--json") == 0
        [row] = json.loads(capsys.readouterr().out)
        alpha = next(o for o in row["options"] if o["option"] == "alpha")
        assert (alpha["default"], "FST 5.1" in alpha["cite"], "float" in alpha["type"]) == ("0.2", True, True)

    def test_an_unknown_plugin(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert call("plugins", "show", "fts") == 2
        assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["doctor"], ["plugins", "list"], ["plugins", "show", "fst"]])
def test_every_command_takes_seed_device_and_quiet(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--seed", "1", "--device", "cpu", "--quiet") == 0


def test_doctor_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["healthy"] is True
    assert {"bdaudit", "torch", "extension", "threads", "gpu", "data"} <= rows.keys()


def test_doctor_and_commands_name_broken_plugins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit import plugins

    broken = plugins.Registry(dict(plugins.registry().found), {"defense.bad (from x 1)": "ImportError: gone"})
    monkeypatch.setattr(plugins, "registry", lambda: broken)
    assert call("doctor") == 3
    assert "ImportError: gone" in capsys.readouterr().out
    assert call("plugins", "list") == 0
    assert "was skipped: ImportError: gone" in capsys.readouterr().err


def test_unknown_commands_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("purfy") == 2
    assert "did you mean purify" in capsys.readouterr().err
    assert call("--help") == 0
    assert "Exit codes" in capsys.readouterr().out
    for name in COMMANDS:
        assert call(name, "--help") == 0


def test_a_report_is_never_replaced_by_its_own_rendering(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(audited().to_json())
    (tmp_path / "link").symlink_to(path)
    before = path.read_text()
    assert call("report", path, "--format", "html", "--out", tmp_path / "link") == 2
    assert "would replace the report itself" in capsys.readouterr().err
    assert path.read_text() == before


def test_reports_are_compared_and_the_first_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--compare` shows the others beside FILE; the exit code stays FILE's own, and no report is replaced."""
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text(audited().to_json())
    good.write_text(audited().model_copy(update={"verdict": "pass"}).to_json())
    for files, code in (((bad, good), 1), ((good, bad), 0)):
        assert call("report", files[0], "--compare", files[1], "--compare", bad) == code
        assert "B - A" in capsys.readouterr().out
    assert call("report", good, "--compare", bad, "--format", "html", "--out", bad) == 2
    assert "would replace the report itself" in capsys.readouterr().err
    assert call("report", good, "--compare", bad, "--format", "junit") == 2
    assert "junit holds one audit" in capsys.readouterr().err


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "bdaudit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("bdaudit, version ")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "9"}', "\x00", '{"verdict": "pass"}'])
def test_a_file_that_is_no_report(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(text)
    assert call("report", tmp_path / "r.json") == 2
    assert "not a bdaudit report" in capsys.readouterr().err


def test_completion_knows_plugins_and_options() -> None:
    def complete(words: str) -> str:
        environment = os.environ | {
            "_BDAUDIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
        }  # fmt: skip
        done = subprocess.run(
            [Path(sys.executable).parent / "bdaudit"], env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout

    assert "plain,fst" in complete("bdaudit purify --defense f")
    assert "plain,badnets" in complete("bdaudit attack ba")
    assert "plain,alpha=" in complete("bdaudit purify --defense fst -o al")


def test_a_bug_is_an_operational_error_and_not_a_pass(
    case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.defenses.ft import FT

    def broken(self: FT, model: object, clean: object, rng: object) -> object:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(FT, "purify", broken)
    assert call("purify", case / "model.pt", "--defense", "ft") == 3
    assert "unexpected ZeroDivisionError: oops (run with --debug" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        _run(["purify", str(case / "model.pt"), "--defense", "ft"], debug=True)


def test_clean_images_without_labels_are_refused(case: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(run.pool("clean"), case / "flat", flat=True)
    assert call("purify", case / "model.pt", "--defense", "ft", "--clean", case / "flat") == 2
    assert "one sub-folder a class" in capsys.readouterr().err


def test_files_that_are_not_used_are_warned_of_once_and_noted_in_the_report(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even under --quiet; the clean folder is read twice, as the preprocessing is looked for with it."""
    state = torch.load(case / "model.pt", weights_only=True)["state_dict"]
    torch.save(state, case / "model.pt")
    (case / "flagged" / "Thumbs.db").touch()
    (case / "clean" / "0" / "half\x1b[31m.png").write_bytes(b"\x89PNG")
    command = [
        "audit",
        case / "model.pt",
        "--defense",
        "ft",
        "--malicious",
        case / "flagged",
        "--arch",
        "small_cnn",
        *FAST,
    ]
    assert call(*command, "--quiet", "--json") in (0, 1, 4)
    printed = capsys.readouterr()
    warned = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2
    assert printed.err.isprintable() or set(printed.err) - {"\n"} == {c for c in printed.err if c.isprintable()}
    notes = json.loads(printed.out)["notes"]
    assert sum("flagged: 1 of 81 entries are not used: not named like an image (1: Thumbs.db)" in n for n in notes) == 1
    assert (
        sum("entries are not used: not an image, whatever its name says (1: 0/half\ufffd[31m.png)" in n for n in notes)
        == 1
    )


def test_npz_and_csv_are_taken_wherever_folders_are(case: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same result, row for row, as the same images in folders."""
    import numpy as np

    clean = run.pool("clean")
    np.savez_compressed(case / "clean.npz", images=clean.images.numpy(), labels=clean.labels.numpy())
    names = sorted(p.name for p in (case / "flagged").iterdir())
    (case / "flagged.csv").write_text("\n".join(["path", *(f"flagged/{n}" for n in names)]))
    command = ["purify", case / "model.pt", "--defense", "pl", "-o", "epochs=1"]
    assert call(*command, "--malicious", case / "flagged", "--out", case / "a.pt") == 0
    given = ["--clean", case / "clean.npz", "--malicious", case / "flagged.csv"]
    assert call(*command, *given, "--out", case / "b.pt", "--json") == 0
    a, b = (torch.load(case / f"{n}.pt", weights_only=True)["state_dict"] for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    granted = {row["input"]: row["source"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["granted"]}
    assert (granted["clean"], granted["malicious"]) == ("clean.npz", "flagged.csv")


def test_nothing_usable_ends_with_exit_code_two(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case / "odd").mkdir()
    (case / "odd" / "x.png").touch()
    assert call("purify", case / "model.pt", "--defense", "pl", "--malicious", case / "odd") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("odd: no usable images in it: empty (1: x.png)")


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_a_group_without_a_command_shows_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As it is laid out, and not as an error of one line."""
    assert _run(arguments, debug=False) == 2
    said = capsys.readouterr().err
    assert said.startswith("Usage: bdaudit")
    assert "\nCommands:\n" in said


def test_a_mistyped_command_of_bench_is_no_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["bench", "sho", "folder"], debug=False) == 2
    assert "no grid and no command 'sho'; did you mean show?" in capsys.readouterr().err
