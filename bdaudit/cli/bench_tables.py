"""What `bdaudit bench` prints about plans and runs."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bdaudit.bench.cost import span
from bdaudit.bench.pivot import word
from bdaudit.bench.plan import Stage
from bdaudit.bench.run import Tally
from bdaudit.bench.session import Forecast
from bdaudit.bench.store import COORDINATES, Failure, coordinates
from bdaudit.errors import one_line

LISTED = 200
STAGES = {"twin": ("clean twin", "clean twins"), "victim": ("backdoored model", "backdoored models"), "cell": ("cell", "cells")}  # fmt: skip


def plan_summary(made: Forecast) -> str:
    """The cells, the stages that they share, and what is left to do."""
    cells = made.plan.cells
    left = {s.key for s in made.left}
    one = [axis for axis in ("data", "arch") if len(made.plan.grid.axes[axis]) == 1]
    axes = [axis for axis in COORDINATES if axis not in one]
    rows = [
        [*(word(a, coordinates(c.place)[a]) for a in axes), c.stage.key[:8], "" if c.stage.key in left else "done"]
        for c in cells[:LISTED]
    ]
    lines = [tabulate(rows, [*axes, "key", ""], tablefmt="simple", disable_numparse=True)]
    if len(cells) > LISTED:
        lines.append(f"and {len(cells) - LISTED:,} more cells (--json lists all)")
    probes = ", ".join(c.label for c in made.plan.grid.probes)
    probed = f"every cell is probed with {probes}" if probes else "cells are measured, and not probed"
    lines += ["", f"{_counted(made.plan.stages)}; {probed}"]
    uses = Counter(need for c in cells for need in c.stage.needs)
    if shared := [n for n in uses.values() if n > 1]:
        lines.append(f"{len(shared):,} models are each shared by up to {max(shared):,} cells")
    if not made.left:
        return "\n".join([*lines, "nothing is left to do"])
    how = "by what was measured here" if made.measured else "reckoned from options and the speed of two small batches"
    time = span(made.seconds / made.workers)
    lines.append(f"left: {_counted(made.left)}; about {time} with {made.workers} at a time, {how} (rough)")
    return "\n".join(lines)


def plan_json(made: Forecast) -> str:
    """The plan as one document: every stage with its key, and of a cell its place on every axis."""
    left = {s.key for s in made.left}
    places = {c.stage.key: coordinates(c.place) for c in made.plan.cells}
    stages = [
        {
            "kind": s.kind,
            "key": s.key,
            "label": s.label,
            **places.get(s.key, {}),
            "needs": s.needs,
            "passes": s.passes,
            "done": s.key not in left,
        }
        for s in made.plan.stages
    ]
    grid = made.plan.grid
    return json.dumps({"title": grid.title, "cells": len(made.plan.cells), "seconds": made.seconds, "measured": made.measured, "workers": made.workers, "stages": stages}, indent=1)  # fmt: skip


def run_summary(tally: Tally, failures: Sequence[Failure], out: Path) -> str:
    """How a run ended, why what failed did, and how to see the rest."""
    lines = [f"{tally.done} cells done, {tally.failed} failed"]
    lines += [f"  {one_line(failure.said(out), 1000)}" for failure in failures[:LISTED]]
    if len(failures) > LISTED:
        lines.append(f"  and {len(failures) - LISTED} more")
    return "\n".join([*lines, f"to see them: bdaudit bench show {shlex.quote(str(out))}, or open {out / 'bench.html'}"])


def run_json(tally: Tally, failures: Sequence[Failure]) -> str:
    """The same as one document."""
    failed = [failure._asdict() for failure in failures]
    return json.dumps({"done": tally.done, "failed": tally.failed, "failures": failed}, indent=1)


def _counted(stages: Sequence[Stage]) -> str:
    counts: Counter[str] = Counter(s.kind for s in stages)
    return ", ".join(f"{counts[kind]:,} {names[counts[kind] != 1]}" for kind, names in STAGES.items() if counts[kind])
