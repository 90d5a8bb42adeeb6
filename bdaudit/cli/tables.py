"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tabulate import tabulate

from bdaudit.report.verdict import percent

if TYPE_CHECKING:
    from bdaudit.flow.run import Run


def run_summary(run: Run) -> str:
    """What an attack achieved, and where it lies."""
    record = run.record
    rows = [
        [name, *(_interval(figures, metric) for metric in ("c_acc", "asr", "robust_acc"))]
        for name, figures in record.metrics.items()
    ]
    count, total = record.rows["poisoned"], record.rows["train"]
    table = tabulate(rows, headers=["", "C-ACC", "ASR", "robust accuracy"], tablefmt="simple")
    return (
        f"{table}\n\n{count} of {total} training rows poisoned ({percent(count / total)} of all, "
        f"{record.rows['of_target_class']} of them of the target class)\n"
        f"run folder: {run.folder} (look at {run.folder / 'preview.png'})"
    )


def _interval(figures: dict[str, float | int], metric: str) -> str:
    low, high = percent(figures[f"{metric}_low"]), percent(figures[f"{metric}_high"])
    return f"{percent(figures[metric])} [{low}, {high}]"
