"""docs/tutorial.md, followed to the letter in a fresh environment: its files are written, its commands are run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support import fresh_environment

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """Every code block in order: the name of the file it is (the line before it), or '' for commands; its text."""
    found = re.findall(r"(?:^`([\w./-]+)`:\n\n)?^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert all(name or language == "bash" for name, language, _ in found)
    return [(name, code) for name, _, code in found]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder after the last line of the tutorial, and all that was printed."""
    work = tmp_path_factory.mktemp("tutorial") / "my-plugins"
    work.mkdir()
    environment = fresh_environment(work / ".venv")
    # The first block makes the folder and the environment, and installs from the network what is here already.
    (_, first), *steps = blocks(TUTORIAL.read_text())
    assert first.splitlines()[0] == "mkdir my-plugins && cd my-plugins"
    assert first.splitlines()[-1] == "pip install ../bdaudit pytest"
    printed = ""
    for name, code in steps:
        if name:
            (work / name).write_text(code)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], cwd=work, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return work, printed


def test_both_plugins_are_listed_and_keep_the_contract(followed: tuple[Path, str]) -> None:
    _, printed = followed
    assert re.search(r"^attack +frame .*my-plugins 0\.1\.0", printed, re.MULTILINE)
    assert re.search(r"^defense +decay .*my-plugins 0\.1\.0", printed, re.MULTILINE)
    assert "frame (attack, from my-plugins 0.1.0)\n" in printed
    assert "decay (defense, from my-plugins 0.1.0)\n" in printed
    assert len(re.findall(r"^  [\w -]+ ok$", printed, re.MULTILINE)) == 21
    assert "FAILED" not in printed
    assert re.search(r"^\d+ passed", printed, re.MULTILINE)


def test_the_attack_works_and_the_audit_says_what_the_page_says(followed: tuple[Path, str]) -> None:
    work, printed = followed
    attack = json.loads((work / "run" / "attack.json").read_text())
    assert (attack["attack"], attack["options"]["width"]) == ("frame", 2)
    assert attack["metrics"]["model"]["asr"] > 0.9
    report = json.loads((work / "report" / "report.json").read_text())
    assert report["verdict"] == "fail"
    assert "exit code 1\n" in printed
    assert report["provenance"]["defense"]["name"] == "decay"
    assert re.fullmatch(r"my-plugins 0\.1\.0 sha256:[0-9a-f]{64}", *report["provenance"]["plugins"])
    assert (work / "report" / "report.html").is_file()


def test_the_mistake_that_the_page_suggests_is_found(followed: tuple[Path, str]) -> None:
    work, _ = followed
    source = (work / "my_plugins.py").read_text()
    broken = source.replace("rng):\n        return tune", "rng):\n        torch.rand(1)\n        return tune")
    assert broken != source
    (work / "my_plugins.py").write_text(broken)
    environment = fresh_environment(work / ".venv")
    done = subprocess.run(
        ["bdaudit", "plugins", "check", "decay"], cwd=work, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1
    [said] = re.findall(r"^  no global RNG +(FAILED: .*)$", done.stdout, re.MULTILINE)
    assert said in TUTORIAL.read_text().replace("\n", " ")
