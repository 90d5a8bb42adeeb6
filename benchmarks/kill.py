"""Kill every writing command with SIGKILL at random moments, and look at what is left.

    python -m benchmarks.kill --times 200 --seed 0 --json FILE [--command demo attack purify audit import report]

Each command runs on real digits with a few epochs, in a child forked from a process that has already imported
everything (what is spared is the import, during which nothing is written). Its moment is drawn uniformly from the
time that the command takes. Every other kill is of a run that replaces an earlier output. SIGKILL hits the command's
own process alone, as `kill -9 PID` does: its children must end by themselves. After each kill: the target must be
absent, the complete old one or the complete new one, nothing else visible may have appeared, and the same command run
again must succeed, give the new output and leave nothing else, hidden names included. Ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bdaudit import api
from bdaudit.cli.main import _run
from bdaudit.errors import BdauditError
from bdaudit.flow.implant import Sizes
from bdaudit.flow.run import AttackRecord, open_run
from bdaudit.inputs.checkpoint import read_checkpoint
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.plugins import Found, Origin, registry
from bdaudit.report.schema import read_report

PR_SET_CHILD_SUBREAPER = 36
GRACE = 10.0
"""Seconds in which the children of a killed command must have ended."""

PROBES = {"retune.epochs": "1", "retune.draws": "1", "qra.epochs": "1"}
QUICK = [word for name, value in PROBES.items() for word in ("-o", f"{name}={value}")]


class Failed(Exception):
    """What must not happen after a kill."""


@dataclass(frozen=True)
class Command:
    """A writing command: its arguments, where {case} and {seed} are filled in, and what it writes."""

    arguments: str
    target: str

    def line(self, case: Path, seed: int) -> list[str]:
        form = ("html", "junit")[seed - 1]
        return [word.format(case=case, seed=seed, form=form) for word in self.arguments.split()]


PLUGIN = Path(__file__).parents[1] / "plugins" / "bdaudit-backdoorbench"
IMAGES = 300
SMALL = "--data {case}/../data --images 150 --clean-size 30 --epochs 1 -o rate=0.3 --arch small_cnn:width=4"
COMMANDS = {
    "demo": Command("demo --out {case}/demo --seed {seed} --quiet", "demo"),
    "attack": Command(f"attack badnets {SMALL} --out {{case}}/run2 --seed {{seed}} --quiet", "run2"),
    "purify": Command(
        "purify {case}/run/model.pt --defense ft -o epochs=2 --out {case}/p.pt --seed {seed} --quiet", "p.pt"
    ),
    "audit": Command(
        "audit {case}/run/model.pt --defense ft -o epochs=1 --attack {case}/run --evaluate 50 --out {case}/audit "
        f"--seed {{seed}} --quiet {' '.join(QUICK)}",
        "audit",
    ),
    "import": Command(
        "import {case}/../record-{seed} --data {case}/../data --out {case}/imported --seed {seed} --quiet", "imported"
    ),
    "report": Command("report {case}/report.json --format {form} --out {case}/r.out", "r.out"),
}


def short_demo(data: Path) -> None:
    """Let `demo`, which has no options for it, use as few images and epochs as the other commands."""
    recipe, choose, load = api.default_recipe, api.choose, api.load_dataset
    api.default_recipe = lambda dataset, epochs, lr: recipe(dataset, 1, lr)
    api.choose = lambda defense, probes, options: choose(defense, probes, {"epochs": "1", **PROBES, **(options or {})})
    api.load_dataset = lambda name, **_: replace(load(str(data)), arch="small_cnn:width=4")
    api.Sizes = lambda **_: Sizes(train=150, clean=30)


def add_importer() -> None:
    """Let `import` read BackdoorBench's records, from the plugin's source instead of an installed one."""
    sys.path += [str(PLUGIN / "src"), str(PLUGIN / "tests")]
    cls = import_module("bdaudit_backdoorbench").BackdoorBench
    registry().found["importer", cls.name] = Found(cls, Origin("bdaudit-backdoorbench", "source", cls.__module__))


def write_records(folder: Path, run: Path) -> None:
    """Write record-1 and record-2, of the same run with other rows triggered."""
    records = import_module("backdoorbench_records")
    train, model, trigger = (
        load_dataset(str(folder / "data")).train,
        read_checkpoint(run / "model.pt"),
        open_run(run).trigger,
    )
    for seed in (1, 2):
        triggered = torch.arange(len(train)) % 9 == seed
        split = records.Split(
            train.map(trigger, triggered).labelled(train.labels * ~triggered), train.labels, triggered
        )
        records.write_record(
            folder / f"record-{seed}", model=model.classifier(), train=split, test=None, dataset="digits"
        )


def start(arguments: list[str], log: Path, prepare: Callable[[], None]) -> int:
    """Fork a process of its own group that runs the command line `bdaudit ARGUMENTS...`; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        prepare()
        code = _run(arguments, debug=False)
        log.with_suffix(".modules").write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(process: int, seconds: float = 300) -> int | None:
    """Wait for a child; its exit code, negative for a signal, or None when the time is up."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def orphans_end() -> bool:
    """Reap what a killed command started; whether all of it ended by itself."""
    end = time.monotonic() + GRACE
    try:
        while time.monotonic() < end:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
    except ChildProcessError:
        return True
    return False


def content(target: Path) -> dict[str, str] | None:
    """Read an output as a user would, and reduce it to one line a file, without times; None where there is none.

    Raises BdauditError where any of it cannot be read.
    """
    if not os.path.lexists(target):
        return None
    files = [target] if target.is_file() else sorted(p for p in target.rglob("*") if p.is_file())
    found = {}
    for path in files:
        name = str(path.relative_to(target))
        if path.name == AttackRecord.FILE:
            run = open_run(path.parent)
            sizes = {pool: len(run.pool(pool)) for pool in ("clean", "flagged", "reserve", "test")}
            found[name] = f"{run.record.provenance['seed']} {sizes} {run.trigger.digest()}"
        elif path.name == "report.json":
            report = read_report(path)
            found[name] = f"{report.provenance['seed']} {[f.model_dump_json() for f in report.findings]}"
        elif path.name == "report.html":
            found[name] = str(path.read_text().rstrip().endswith("</html>"))
        else:
            if path.suffix == ".pt":
                read_checkpoint(path).classifier()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Case:
    """A folder with one run in it, in which one command at a time is killed."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder / "case"
        self.log = folder / "log.txt"
        self.old: dict[str, Any] = {}
        self.new: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.folder.mkdir(parents=True)
        write_folder(load_dataset("digits").train.first(IMAGES), folder / "data")
        victim = Command(f"attack badnets {SMALL} --with-reference --out {{case}}/run --seed 0 --quiet", "run")
        self._complete(victim.line(self.folder, 1), "attack")
        audit = COMMANDS["audit"].line(self.folder, 1)
        self._complete(audit, "audit")
        shutil.move(self.folder / "audit" / "report.json", self.folder / "report.json")
        shutil.rmtree(self.folder / "audit")
        if "import" in names:
            write_records(folder, self.folder / "run")
        self.given = self.names()
        for name in names:
            command, target = COMMANDS[name], self.folder / COMMANDS[name].target
            self._complete(command.line(self.folder, 1), name)
            self.old[name] = content(target)
            saved = folder / f"old-{name}"
            target.rename(saved)
            self._complete(command.line(self.folder, 2), name)
            self.new[name] = content(target)
            assert self.old[name] != self.new[name]
            self.remove(target)

    def names(self) -> set[str]:
        return {p.name for p in self.folder.iterdir()}

    def remove(self, target: Path) -> None:
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    def _start(self, line: list[str], name: str) -> int:
        data = self.folder.parent / "data"
        return start(line, self.log, partial(short_demo, data) if name == "demo" else lambda: None)

    def _complete(self, line: list[str], name: str) -> None:
        self.log.write_text("")
        begun = time.monotonic()
        code = wait(self._start(line, name))
        # The fastest run so far, so that few moments fall behind the end.
        self.seconds[name] = min(time.monotonic() - begun, self.seconds.get(name, math.inf))
        for module in self.log.with_suffix(".modules").read_text().split() if self.old == {} else ():
            with suppress(Exception):  # some can only be imported by others
                import_module(module)
        if code not in (0, 1, 4) or (code and name not in ("audit", "report")):
            raise Failed(f"{name} ended with {code}: {self.log.read_text()[-300:].strip()}")

    def kill(self, name: str, moment: float, *, over: bool) -> str:
        """Kill one run `moment` seconds after its start; returns what the target then was, or `ended` (too late).

        over: whether there is an earlier output to replace. Raises Failed.
        """
        command, target = COMMANDS[name], self.folder / COMMANDS[name].target
        saved = self.folder.parent / f"old-{name}"
        if over:
            shutil.copytree(saved, target) if saved.is_dir() else shutil.copy(saved, target)
        process = self._start(command.line(self.folder, 2), name)
        ended = wait(process, moment) is not None
        if not ended:
            os.kill(process, signal.SIGKILL)
            ended = wait(process) != -signal.SIGKILL
        if not orphans_end():
            os.killpg(process, signal.SIGKILL)
            raise Failed(f"a child lived on for {GRACE:g} s")
        left = self._judge(name, target, over=over)
        self._complete(command.line(self.folder, 2), name)
        if content(target) != self.new[name]:
            raise Failed("the run after the kill gave another output")
        if extra := self.names() - self.given - {target.name}:
            raise Failed(f"the run after the kill left {sorted(extra)} behind")
        self.remove(target)
        return "ended" if ended else left

    def _judge(self, name: str, target: Path, *, over: bool) -> str:
        visible = {n for n in self.names() if not n.startswith(".")}
        if strange := visible - self.given - {target.name}:
            raise Failed(f"{sorted(strange)} appeared")
        if missing := self.given - visible:
            raise Failed(f"{sorted(missing)} went away")
        try:
            found = content(target)
        except BdauditError as e:
            raise Failed(f"half-written: {e}") from e
        if found == (self.old[name] if over else None):
            return "old" if over else "absent"
        if found == self.new[name]:
            return "new"
        raise Failed("the target is neither the old nor the new output")

    def clear(self) -> None:
        """After a failure: only what was given."""
        for name in self.names() - self.given:
            self.remove(self.folder / name)


def measure(case: Case, names: list[str], times: int, seed: int) -> dict[str, Any]:
    """Kill `times` runs, the commands in turn; returns the table of what was found."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, int]] = {n: dict.fromkeys(("absent", "old", "new", "ended", "failed"), 0) for n in names}
    failures = []
    killed = turn = 0
    while killed < times:
        name, over = names[turn % len(names)], bool(turn // len(names) % 2)
        turn += 1
        moment = rng.uniform(0, case.seconds[name])
        try:
            found = case.kill(name, moment, over=over)
        except Failed as e:
            found = "failed"
            failures.append({"command": name, "moment": round(moment, 4), "over": over, "what": str(e)})
            print(f"FAILED {failures[-1]}", file=sys.stderr)
            case.clear()
        rows[name][found] += 1
        killed += found != "ended"
    return {"seed": seed, "kills": killed, "rows": rows, "failures": failures}


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield an empty folder, and become the parent of orphans."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="bdaudit-kill-") as folder:
        yield Path(folder)


def main() -> int:
    """Kill, judge, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    add_importer()  # which imports the plugins, before any fork
    begun = time.monotonic()
    with workplace() as folder:
        case = Case(folder, args.command)
        result = measure(case, args.command, args.times, args.seed)
        result["seconds"] = {name: round(case.seconds[name], 3) for name in args.command}
    result["took"] = round(time.monotonic() - begun, 1)
    print(f"{'command':8} {'takes':>7} " + " ".join(f"{c:>7}" for c in ("absent", "old", "new", "ended", "failed")))
    for name, row in result["rows"].items():
        print(f"{name:8} {result['seconds'][name]:6.2f}s " + " ".join(f"{n:7}" for n in row.values()))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
