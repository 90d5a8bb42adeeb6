"""What a user waits for: commands that only answer, the demo, reports, and the parts of a purification."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bdaudit import api
from bdaudit.inputs.checkpoint import save_checkpoint
from bdaudit.inputs.folders import write_folder
from bdaudit.report.formats import FORMATS
from bdaudit.report.render import render
from benchmarks.ops import Work, measure
from benchmarks.throughput.loops import Bench

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import bdaudit": ["-c", "import bdaudit"],
    "bdaudit --help": ["-m", "bdaudit", "--help"],
    "bdaudit audit --help": ["-m", "bdaudit", "audit", "--help"],
    "bdaudit plugins list": ["-m", "bdaudit", "plugins", "list"],
}
"""The first two are what no command can do without, and none that computes."""


def start_up(repeats: int) -> list[dict[str, Any]]:
    """Time each command as a process of its own, after one that brings its files into memory."""
    commands: dict[str, Work] = {
        name: partial(subprocess.run, [sys.executable, *arguments], capture_output=True, check=True)
        for name, arguments in COMMANDS.items()
    }
    return [{"what": name, "seconds": t.median} for name, t in measure(commands, "cpu", repeats, warm=1).items()]


def rendering(folder: Path, device: str, repeats: int) -> list[dict[str, Any]]:
    """Run the demo once, then render its report in every format."""
    start = time.perf_counter()
    report = api.demo(folder / "demo", device=device)
    rows = [{"what": "bdaudit demo, from Python", "seconds": time.perf_counter() - start}]
    works: dict[str, Work] = {f"report as {name}": partial(render, report, name) for name in FORMATS}
    return [*rows, *({"what": name, "seconds": t.median} for name, t in measure(works, "cpu", repeats).items())]


def parts(bench: Bench, folder: Path, defense: str, options: Sequence[str]) -> list[dict[str, Any]]:
    """Purify from files to a file, as on the command line, and say what share of the time each part takes."""
    save_checkpoint(bench.model, folder / "model.pt")
    write_folder(bench.pool, folder / "clean", classes=bench.model.classes)
    arguments = ["purify", str(folder / "model.pt"), "--defense", defense, "--device", bench.device, "--quiet"]
    for option in options:
        arguments += ["-o", option]
    command = [sys.executable, "-m", "benchmarks.throughput.parts", str(time.time()), *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    total = time.perf_counter() - start
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    seconds["end python"] = total - sum(seconds.values())
    return [{"part": name, "seconds": s, "share": s / total} for name, s in seconds.items()]
