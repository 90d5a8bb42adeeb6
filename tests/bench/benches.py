"""Grids and finished benches for the tests, the latter without anything being trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdaudit.bench.grid import Grid
from bdaudit.bench.grid_file import parse_grid
from bdaudit.bench.opened import write_store
from bdaudit.bench.plan import Cell, Plan, make_plan
from bdaudit.bench.store import Store
from bdaudit.flow.output import REPORT
from bdaudit.report.schema import Finding, Granted, Policy, Report

SMALL: dict[str, Any] = {
    "data": "digits",
    "arch": "small_cnn:width=4",
    "attacks": "badnets",
    "defenses": ["ft epochs=1", "fst epochs=1"],
    "probes": ["retune"],
    "victim": {"epochs": 10, "flagged": 6, "images": 600, "clean": 60, "test": 100, "reserve": 100},
    "audit": {"evaluate": 60},
    "options": {"probe": {"retune": {"draws": 1, "epochs": 1, "reference_nulls": False, "benign_size": 64}}},
}
"""A grid whose stages take a second each."""


def toml_of(table: Mapping[str, Any], name: str = "") -> str:
    """Write a grid as its file; values are as in JSON."""
    plain = [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    inner = [toml_of(v, f"{name}.{k}".lstrip(".")) for k, v in table.items() if isinstance(v, dict)]
    return "\n".join([*([f"[{name}]"] if name else []), *plain, *inner])


def grid_of(**changes: Any) -> Grid:
    return parse_grid({**SMALL, **changes}, "grid.toml")


def plan_of(**changes: Any) -> Plan:
    return make_plan(grid_of(**changes), "cpu")


def report_of(c_acc: float, o_asr: float, p_asr: float, *, oracle: str = "", verdict: Any = "fail") -> Report:
    def rate(probe: str, metric: str, value: float) -> Finding:
        return Finding(
            probe=probe, subject="purified", metric=metric, value=value, low=max(0, value - 0.02), high=min(1, value + 0.02), n=900
        )  # fmt: skip

    return Report(
        title="an audit",
        verdict=verdict,
        reasons=["why"],
        outcomes=[verdict],
        findings=[
            rate("evaluation", "c_acc", c_acc),
            rate("evaluation", "o_asr", o_asr),
            rate("retune", "p_asr", p_asr),
        ],
        granted=[Granted(plugin=oracle, input="trigger", source="--attack", oracle=True)] if oracle else [],
        inputs={},
        policy=Policy(),
        provenance={},
    )


def finished(folder: Path, plan: Plan, reports: Mapping[str, Report]) -> None:
    """Make the folder of a bench that was run: a report for every cell whose label is given, the others left."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_store(folder) as store:
        store.adopt(plan)
        for cell in plan.cells:
            if cell.stage.label in reports:
                finish(store, folder, cell, reports[cell.stage.label])


def finish(store: Store, folder: Path, cell: Cell, report: Report) -> None:
    place = folder / cell.stage.path
    place.mkdir(parents=True)
    (place / REPORT).write_text(report.to_json())
    (place / "report.html").write_text("<!doctype html><title>the audit itself</title>")
    store.finish(cell.stage, 12.0, report)
