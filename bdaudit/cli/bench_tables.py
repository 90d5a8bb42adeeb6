"""What `bdaudit bench` prints about plans and runs."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from bdaudit.errors import one_line

if TYPE_CHECKING:
    from bdaudit.bench.plan import Stage
    from bdaudit.bench.run import Tally
    from bdaudit.bench.session import Forecast

LISTED = 200
STAGES = {"twin": ("clean twin", "clean twins"), "victim": ("backdoored model", "backdoored models"), "cell": ("cell", "cells")}  # fmt: skip


def plan_summary(made: Forecast) -> str:
    """The cells, the stages that they share, and what is left to do."""
    from bdaudit.bench.cost import span

    cells = made.plan.cells
    left = {s.key for s in made.left}
    rows = [
        [
            *([c.place.data] if len(made.plan.grid.data) > 1 else []),
            *([c.place.arch] if len(made.plan.grid.archs) > 1 else []),
            c.place.attack.label, c.place.defense.label, str(c.place.contamination), c.place.budget or "all",
            c.place.seed, c.stage.key[:8], "" if c.stage.key in left else "done",
        ]
        for c in cells[:LISTED]
    ]  # fmt: skip
    headers = ["data"] * (len(made.plan.grid.data) > 1) + ["arch"] * (len(made.plan.grid.archs) > 1)
    headers += ["attack", "defense", "contamination", "budget", "seed", "key", ""]
    lines = [tabulate(rows, headers, tablefmt="simple", disable_numparse=True)]
    if len(cells) > LISTED:
        lines.append(f"and {len(cells) - LISTED:,} more cells (--json lists all)")
    probes = ", ".join(c.label for c in made.plan.grid.probes)
    lines += ["", f"{_counted(made.plan.stages)}; every cell is probed with {probes}"]
    uses = Counter(need for c in cells for need in c.stage.needs)
    if shared := [n for n in uses.values() if n > 1]:
        lines.append(f"{len(shared):,} models are each shared by up to {max(shared):,} cells")
    if not made.left:
        return "\n".join([*lines, "nothing is left to do"])
    how = "by what was measured here" if made.measured else "reckoned from options and the speed of two small batches"
    seconds = None if made.seconds is None else made.seconds / made.workers
    lines.append(f"left: {_counted(made.left)}; about {span(seconds)} with {made.workers} at a time, {how} (rough)")
    return "\n".join(lines)


def plan_json(made: Forecast) -> str:
    """The plan as one document: every cell with its key, and every stage."""
    left = {s.key for s in made.left}
    stages = [
        {
            "kind": s.kind,
            "key": s.key,
            "label": s.label,
            "needs": s.needs,
            "passes": s.passes,
            "done": s.key not in left,
        }
        for s in made.plan.stages
    ]
    grid = made.plan.grid
    return json.dumps({"title": grid.title, "cells": len(made.plan.cells), "seconds": made.seconds, "measured": made.measured, "workers": made.workers, "stages": stages}, indent=1)  # fmt: skip


def run_summary(tally: Tally, failures: Sequence[tuple[str, str, str]], out: Path) -> str:
    """How a run ended, why what failed did, and how to see the rest."""
    lines = [f"{tally.done} cells done, {tally.failed} failed"]
    lines += [
        f"  {'' if kind == 'cell' else f'{STAGES[kind][0]}, '}{one_line(label)}: {one_line(reason, 600)}"
        for kind, label, reason in failures[:LISTED]
    ]
    if len(failures) > LISTED:
        lines.append(f"  and {len(failures) - LISTED} more")
    return "\n".join([*lines, f"to see them: bdaudit bench show {shlex.quote(str(out))}, or open {out / 'bench.html'}"])


def run_json(tally: Tally, failures: Sequence[tuple[str, str, str]]) -> str:
    """The same as one document."""
    failed = [{"kind": kind, "label": label, "reason": reason} for kind, label, reason in failures]
    return json.dumps({"done": tally.done, "failed": tally.failed, "failures": failed}, indent=1)


def _counted(stages: Sequence[Stage]) -> str:
    counts: Counter[str] = Counter(s.kind for s in stages)
    return ", ".join(f"{counts[kind]:,} {names[counts[kind] != 1]}" for kind, names in STAGES.items() if counts[kind])
