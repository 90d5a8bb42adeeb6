"""Tables for the terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tabulate import tabulate

from bdaudit.cli.common import RECOMMENDED
from bdaudit.errors import one_line
from bdaudit.report.statistics import wilson
from bdaudit.report.verdict import percent

if TYPE_CHECKING:
    from pathlib import Path

    from bdaudit.flow.importing import ImportRecord
    from bdaudit.flow.run import AttackRecord, Run
    from bdaudit.flow.screening import ScreenRecord
    from bdaudit.flow.splitting import SplitRecord


def run_summary(run: Run) -> str:
    """What an attack achieved, and where it lies."""
    record = run.record
    rows = [
        [name, *(_interval(figures, metric) for metric in ("c_acc", "asr", "robust_acc"))]
        for name, figures in record.metrics.items()
    ]
    table = tabulate(rows, headers=["", "C-ACC", "ASR", "robust accuracy"], tablefmt="simple")
    return f"{table}\n\n{_poison(record)}\nrun folder: {run.folder} (look at {run.folder / 'preview.png'})"


def _poison(record: AttackRecord) -> str:
    """How many rows were poisoned, of how many, and how many of the target class, of how many."""
    rows = record.rows
    count, total, of_target = rows["poisoned"], rows["train"], rows.get("target_class", 0)
    line = f"{count} of {total} training rows poisoned ({percent(count / total)} of all"
    if of_target:  # none in all-to-all
        own = rows["of_target_class"]
        line += f"; {own} of them of the target class, {percent(own / of_target)} of its {of_target}"
    if covers := rows["cover"]:
        line += f"; beside {covers} cover rows, which keep their labels"
    return f"{line})"


def import_summary(record: ImportRecord, out: Path, arch: str | None) -> str:
    """What was imported, how the model does on a sample, and the commands that audit it; arch: as it was given."""
    rows = [[f"{name}/", count] for name, count in record.images.items()]
    lines = [tabulate(rows, headers=["", "images"], tablefmt="simple")] if rows else []
    if record.rows:
        total = f" of {record.rows['train']}" if "train" in record.rows else ""
        covers = f", {record.rows['cover']} cover rows" if record.rows["cover"] else ""
        lines.append(f"{record.rows['poisoned']}{total} training rows poisoned{covers}")
    lines.append(f"the backdoor: {record.goal or 'its labels follow no known rule'}")
    for metric, name in (("asr", "ASR"), ("c_acc", "C-ACC")):
        if f"{metric}_n" in record.metrics:
            lines.append(f"{name} {_interval(record.metrics, metric)} on a sample of {record.metrics[f'{metric}_n']}")
    if "clean" not in record.images:
        lines.append("no clean images: give your own with --clean, or import again with --data")
    return "\n".join([*lines, f"written to {out}; to audit it:", *_audit_commands(record, out, arch)])


def screen_summary(record: ScreenRecord, model: Path, out: Path) -> str:
    """What a screening came to, what was written, and the command that goes on from there."""
    n = record.images
    rows = [
        ["clean", n["clean_given"], f"{record.moved} moved", n["clean"]],
        ["flagged", n["flagged_given"], f"{record.dropped} dropped, {record.moved} joined", n["flagged"]],
    ]
    pools = " ".join(
        f"--{option} {shlex.quote(str(out / name))}" for option, name in (("clean", "clean"), ("malicious", "flagged"))
    )
    return "\n".join(
        [
            f"target: class {record.target} ({one_line(record.target_class, 40)})",
            record.statement,
            tabulate(rows, headers=["", "given", "", "written"], tablefmt="simple"),
            f"written to {out} (scores: {out / 'scores.svg'}, {out / 'screen.csv'}); to purify with it:",
            f"bdaudit purify {shlex.quote(str(model))} --defense {RECOMMENDED} {pools} --target {record.target}",
        ]
    )


def split_summary(record: SplitRecord, model: Path | None, out: Path) -> str:
    """What a split came to, how right it was where that is known, and the command that goes on from there."""
    n = record.images
    rows = [["clean", n["clean"]], ["flagged", n["flagged"]], ["unsure", n["train"] - n["clean"] - n["flagged"]]]
    headers = ["", "images"]
    if record.found:
        headers += ["precision", "recall"]
        for row in rows[:2]:
            row += [_share(*record.found[f"{row[0]}_{what}"]) for what in ("precision", "recall")]
    lines = [tabulate(rows, headers=headers, tablefmt="simple")]
    if record.target is not None:
        lines.insert(0, f"target: class {record.target} ({one_line(record.target_class, 40)})")
    if record.doubt:
        lines.append(f"not to be relied on: {record.doubt}")
    lines.append(f"written to {out} (scores: {out / 'scores.svg'}, {out / 'split.csv'})")
    if n["flagged"] and record.target is not None:
        pools = " ".join(
            f"--{option} {shlex.quote(str(out / name))}"
            for option, name in (("clean", "clean"), ("malicious", "flagged"))
        )
        named = shlex.quote(str(model)) if model is not None else "SUSPECT_MODEL"
        lines[-1] += "; to purify with it:"
        lines.append(f"bdaudit purify {named} --defense {RECOMMENDED} {pools} --target {record.target}")
    return "\n".join(lines)


def _share(successes: int, n: int) -> str:
    low, high = wilson(successes, n)
    return f"{percent(successes / n)} [{percent(low)}, {percent(high)}] of {n}" if n else "of none"


def _audit_commands(record: ImportRecord, out: Path, arch: str | None) -> list[str]:
    flagged = next((name for name in ("flagged", "test_triggered") if name in record.images), None)
    malicious = shlex.quote(str(out / flagged)) if flagged else "FLAGGED_IMAGES"
    clean = shlex.quote(str(out / "clean")) if "clean" in record.images else "CLEAN_IMAGES"
    named = [] if record.arch and not arch else [f"--arch {shlex.quote(arch or 'ARCHITECTURE')}"]
    given = [f"--malicious {malicious}", f"--clean {clean}", *named]
    given += [f"--target {record.target}"] if record.target is not None else []
    model = shlex.quote(str(out / "model.pt")) if record.has_model else "SUSPECT_MODEL"
    purifications = ["--defense fst"] if record.has_model else []
    purifications += [f"--purified {shlex.quote(str(out / name))}" for name in record.purified]
    return [" ".join(["bdaudit audit", model, how, *given]) for how in purifications]


def _interval(figures: dict[str, float | int], metric: str) -> str:
    low, high = percent(figures[f"{metric}_low"]), percent(figures[f"{metric}_high"])
    return f"{percent(figures[metric])} [{low}, {high}]"
