"""Processes that are killed, and several in one folder: real ones, forked from an interpreter that has imported all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_killed_commands_leave_the_old_output_or_the_new(tmp_path: Path) -> None:
    """A smaller version of benchmarks.kill: ten SIGKILLs at random moments of purify and report."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill", "--times", "10", "--command", "purify", "report", "--json", tmp_path / "k"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "k").read_text())
    assert (result["kills"], result["failures"]) == (10, [])


TWO_AUDITS = """
import sys
from pathlib import Path
from benchmarks.kill import COMMANDS, Case, QUICK, content, start, wait

base = Path(sys.argv[1])
case = Case(base, [])
folder = case.folder
(folder / "run" / "model.pt").rename(folder / "model.pt")
(folder / "run" / "clean").rename(folder / "clean")
(folder / "run" / "flagged").rename(folder / "flagged")

def line(seed, out):
    words = f"audit {folder}/model.pt --defense pl -o epochs=1 --malicious {folder}/flagged --evaluate 50 --seed {seed}"
    return [*words.split(), "--out", str(folder / out), "--quiet", *QUICK]

def both(*lines):
    started = [start(words, base / f"log{k}", lambda: None) for k, words in enumerate(lines)]
    codes = [wait(process) for process in started]
    assert set(codes) <= {0, 1, 4}, [(base / f"log{k}").read_text() for k in range(len(lines))]

assert wait(start(line(1, "alone1"), base / "log", lambda: None)) in (0, 1, 4), (base / "log").read_text()
assert wait(start(line(2, "alone2"), base / "log", lambda: None)) in (0, 1, 4)
one, two = content(folder / "alone1"), content(folder / "alone2")
assert one != two
both(line(1, "a"), line(2, "b"))
assert content(folder / "a") == one and content(folder / "b") == two
for _ in range(3):  # the second time over an earlier output
    both(line(1, "same"), line(2, "same"), line(1, "same"))
    assert content(folder / "same") in (one, two)
left = {p.name for p in folder.iterdir()} - {"run", "report.json", "model.pt", "clean", "flagged"}
assert left == {"alone1", "alone2", "a", "b", "same"}, left
"""


def test_audits_at_once_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    """With outputs of their own each gets what it gets alone; with the same one the last wins whole."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_AUDITS, tmp_path / "x"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
