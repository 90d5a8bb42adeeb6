"""The user's own network from the command line: attack, purify, audit; and all the ways in which a stranger may not."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from support import snapshot

from bdaudit import api
from bdaudit.cli.main import _run
from bdaudit.defenses.base import Defense
from bdaudit.errors import UsageError
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.audit import purify as purify_with
from bdaudit.flow.gather import purification_evidence
from bdaudit.flow.implant import Sizes
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.files import sha256
from bdaudit.runtime import generator

FAST = ["-o", "retune.epochs=1", "-o", "retune.draws=1", "-o", "qra.epochs=1"]
MODELS = """
    from pathlib import Path
    from torch import nn

    with Path(__file__).with_name("ran").open("a") as log:
        log.write("x")

    class Net(nn.Module):
        def __init__(self, num_classes, channels, width):
            super().__init__()
            self.eyes = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            self.answer = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, num_classes))

        def forward(self, x):
            return self.answer(self.eyes(x))

    def make_model(num_classes, channels, width=8):
        return Net(num_classes, channels, width)
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own file, in a folder of the user's own."""
    path = tmp_path_factory.mktemp("mine") / "models.py"
    path.write_text(textwrap.dedent(MODELS))
    return path


@pytest.fixture(scope="module")
def own_run(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder whose network is the user's own."""
    return api.attack(
        "badnets",
        data="digits",
        arch=f"{mine}:make_model",
        out=tmp_path_factory.mktemp("own") / "run",
        options={"rate": 0.1},
        sizes=Sizes(flagged=60),
        epochs=5,
        with_reference=True,
        device="cpu",
    )


@pytest.fixture
def case(own_run: Run, mine: Path, tmp_path: Path) -> Path:
    """What a stranger hands over: a model, its records, and a models.py of the stranger's that must not run."""
    folder = tmp_path / "case"
    folder.mkdir()
    for name in ("model.pt", "attack.json", "trigger.safetensors"):
        shutil.copy(own_run.folder / name, folder)
    shutil.copy(mine, folder / "models.py")
    return folder


def call(*arguments: object) -> int:
    return _run([str(a) for a in arguments], debug=False)


def ran(folder: Path) -> bool:
    return (folder / "ran").exists()


def test_the_whole_way_with_a_network_of_ones_own(
    case: Path, own_run: Run, mine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Purified in the file's own form, audited beside the run's reference, with the file's hash on record."""
    arch, clean = f"{mine}:make_model", own_run.folder / "clean"
    arguments = ["--defense", "ft", "-o", "epochs=1", "--arch", arch, "--clean", clean]
    assert call("purify", case / "model.pt", *arguments, "--json") == 0
    purified = Path(json.loads(capsys.readouterr().out)["out"])
    before, after = (torch.load(p, weights_only=True) for p in (case / "model.pt", purified))
    assert list(before["state_dict"]) == list(after["state_dict"])
    assert after["bdaudit"]["arch"] == {"name": "models.py:make_model", "options": {}}
    code = call(
        "audit", case / "model.pt", "--purified", purified, "--attack", own_run.folder, "--arch", arch, "--out", tmp_path / "out",
        "--json", *FAST,
    )  # fmt: skip
    assert code in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert report["inputs"]["model"]["arch"] == "models.py:make_model()"
    assert report["inputs"]["model"]["arch_source"] == f"a Python file with sha256 {sha256(mine)}"
    assert report["provenance"]["reference"] == "reference.pt"
    assert str(mine.parent) not in json.dumps(report)
    assert not ran(case)


def test_the_run_folder_keeps_the_name_and_the_hash(own_run: Run, mine: Path) -> None:
    assert own_run.record.arch == "models.py:make_model()"
    assert own_run.record.provenance["arch_source"].endswith(sha256(mine))


@pytest.mark.parametrize("command", ["purify", "audit"])
def test_a_file_that_bdaudit_wrote_asks_for_arch(
    command: str, case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the checkpoint's header nor attack.json brings models.py to run, even where it lies at hand."""
    monkeypatch.chdir(case)
    before = snapshot(case)
    assert call(command, "model.pt", "--defense", "ft", "--attack", ".", "--quiet") == 2
    assert "bdaudit runs no code that a file names: give --arch FILE.py:FUNCTION" in capsys.readouterr().err
    assert snapshot(case) == before


@pytest.mark.parametrize("where", ["", "[{command}]\n"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"models.py:make_model"', "'arch' names Python code"),
        ('"./models.py:make_model:width=8"', "'arch' names Python code"),
        ('["models.py:make_model"]', "arch: expected a number or a short text"),
    ],
)
@pytest.mark.parametrize("command", ["purify", "audit"])
def test_a_configuration_beside_the_model_cannot_name_code(
    command: str,
    where: str,
    value: str,
    message: str,
    case: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(case)
    (case / "bdaudit.toml").write_text(f"{where.format(command=command)}arch = {value}\n")
    before = snapshot(case)
    assert call(command, "model.pt", "--defense", "ft", "--malicious", "flagged") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert snapshot(case) == before


def test_a_configuration_beside_the_model_may_name_a_network(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case / "bdaudit.toml").write_text('arch = "small_cnn"\n')
    assert call("purify", case / "model.pt", "--defense", "ft") == 2
    assert "do not fit small_cnn" in capsys.readouterr().err


def test_a_configuration_that_the_user_names_may_name_code(
    case: Path, own_run: Run, mine: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(f'arch = "{mine}:make_model"\n')
    arguments = ["--defense", "ft", "-o", "epochs=1", "--clean", own_run.folder / "clean"]
    assert call("purify", case / "model.pt", *arguments, "--config", tmp_path / "mine.toml") == 0


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        ("def f(:", "f", "SyntaxError in line 1"),
        ("1 / 0", "f", "ZeroDivisionError in line 1"),
        ("", "f", "has no function f (it has: none)"),
        ("def f(): return 3", "f", "returned an object of type int"),
        ("from torch import nn\ndef f(num_classes): return nn.Linear(256, num_classes)", "f", "do not fit models.py:f"),
    ],
)
@pytest.mark.parametrize("command", ["purify", "audit"])
def test_what_is_wrong_with_the_users_file_is_one_line_and_exit_code_2(
    command: str,
    source: str,
    function: str,
    message: str,
    case: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "models.py").write_text(source)
    before = snapshot(tmp_path)
    code = call(
        command, case / "model.pt", "--defense", "ft", "--attack", case, "--arch", f"{tmp_path / 'models.py'}:{function}",
        "--quiet",
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert snapshot(tmp_path) == before


class Afresh(Defense):
    """Hands out the fresh model: what an in-training defense starts from."""

    name = "afresh"

    def purify(self, fresh: Classifier, rng: torch.Generator) -> Classifier:
        return fresh


def test_an_in_training_defense_gets_a_fresh_network_of_the_users_own(own_run: Run, mine: Path) -> None:
    suspect = api.load(own_run.model_path, arch=f"{mine}:make_model", device="cpu")
    evidence = purification_evidence(suspect, Afresh())
    made = purify_with(Afresh(), evidence, seed=3)[0].model
    again = fresh_like(suspect.classifier, generator(9))
    assert type(made.body).__name__ == "Net"
    assert made.arch == suspect.classifier.arch
    assert not torch.equal(made.head.weight, suspect.classifier.head.weight)
    assert not torch.equal(made.head.weight, again.head.weight)


def test_from_python(own_run: Run, mine: Path) -> None:
    report = api.audit(
        own_run.model_path, purified=own_run.folder / "reference.pt", run=own_run.folder, arch=f"{mine}:make_model",
        probes=(), device="cpu",
    )  # fmt: skip
    assert report.inputs["model"]["arch_source"].endswith(sha256(mine))
    with pytest.raises(UsageError, match="no such file"):
        api.load(own_run.model_path, arch="nowhere/models.py:make_model")
