"""Hostile inputs end in exit code 2 and one clear line, or are used; no code runs, nothing else is touched."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from hostile.cases import CANARY, CASES, Case
from support import snapshot

from bdaudit.cli.main import _run
from bdaudit.inputs.architectures import fresh, parse
from bdaudit.inputs.checkpoint import save_checkpoint
from bdaudit.inputs.classifier import Preprocessing
from bdaudit.runtime import generator
from benchmarks.fuzz.oracle import Hang, hurried
from benchmarks.fuzz.targets import CLASSES, images

SECONDS = 30.0
FT = ["--defense", "ft", "-o", "epochs=1"]
COMMANDS = {
    "purify": ["purify", "CASE/model.pt", *FT, "--out", "CASE/out.pt"],
    "clean": ["purify", "CASE/model.pt", *FT, "--clean", "CASE/clean", "--out", "CASE/out.pt"],
    "audit": ["audit", "CASE/model.pt", *FT, "--malicious", "CASE/clean", "--out", "CASE/out"],
    "policy": ["audit", "CASE/model.pt", *FT, "--malicious", "CASE/clean", "--policy", "CASE/policy.toml", "--out", "CASE/out"],
    "report": ["report", "CASE/report.json", "--format", "html"],
    "run": ["audit", "CASE/model.pt", *FT, "--attack", "CASE/run", "--out", "CASE/out"],
}  # fmt: skip


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model and clean images, in which one thing will be hostile."""
    folder = tmp_path_factory.mktemp("team")
    grey = Preprocessing(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))
    model = fresh(parse("small_cnn:width=2"), grey, CLASSES, generator(0)).eval()
    save_checkpoint(model, folder / "model.pt")
    for name in CLASSES:
        (folder / "clean" / name).mkdir(parents=True)
        for k in range(2):
            (folder / "clean" / name / f"{k}.png").write_bytes(images()["a.png"])
    return folder


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_a_hostile_input_does_no_harm(
    case: Case, team: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(team, folder)
    case.make(folder)
    monkeypatch.chdir(folder)
    before = snapshot(tmp_path)
    began = time.monotonic()
    try:
        with hurried(SECONDS):
            code = _run([word.replace("CASE", str(folder)) for word in COMMANDS[case.command]], debug=False)
    except Hang:
        pytest.fail(f"it took more than {SECONDS:g} s")
    assert time.monotonic() - began < SECONDS
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert code == case.code, printed.err
    assert all(line.isprintable() for line in lines), printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / CANARY).exists()
    assert not (folder / CANARY).exists()
    allowed = {f"case/{name}" for name in ("out.pt",)} if code == 0 else set()
    assert snapshot(tmp_path) - before <= allowed
    assert before <= snapshot(tmp_path)
    if code == 2:
        assert printed.out == ""
        assert lines[-1].startswith("error: ")
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert any(part in lines[-1] for part in case.says.split("|")), lines[-1]
    elif case.command == "report":
        assert "<script" not in printed.out
        assert "<img src=x" not in printed.out
        assert not re.search(r"""(src|href)=["']?(https?:|//|file:)""", printed.out)
    else:
        assert any(part == "USED" or part in printed.err for part in case.says.split("|")), printed.err


def test_there_are_enough_of_them_and_no_two_alike() -> None:
    assert len(CASES) >= 40
    assert len({c.name for c in CASES}) == len(CASES)
