"""Log every finished audit to MLflow: one hook, one entry point in pyproject.toml."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bdaudit.hookspecs import hookimpl

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from bdaudit.report.schema import Report

BDAUDIT_HOOKSPEC = 1
LONGEST = 500
"""Characters of a parameter or tag; MLflow's stores take different numbers, and these all take."""


@hookimpl
def bdaudit_result(report: Report) -> None:
    """Log an audit as one MLflow run: metrics, parameters, tags, report.json and report.html."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise RuntimeError("nothing was logged: set MLFLOW_TRACKING_URI, e.g. to sqlite:///mlflow.db")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Not before it is needed: every command imports this module, and MLflow takes seconds.
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.create_run(experiment(client), run_name=one_key(report.title), tags=tags(report))
    status = "FAILED"
    try:
        log(client, run.info.run_id, report)
        status = "FINISHED"
    finally:
        client.set_terminated(run.info.run_id, status)


def experiment(client: MlflowClient) -> str:
    """Find or make the experiment; another process may make it meanwhile."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "bdaudit"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def log(client: MlflowClient, run_id: str, report: Report) -> None:
    """Log everything but the tags."""
    from mlflow.entities import Metric, Param

    from bdaudit.report.render import render

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in metrics(report).items()],
        params=[Param(key, value) for key, value in params(report).items()],
    )
    client.log_text(run_id, report.to_json(), "report.json")
    client.log_text(run_id, render(report, "html"), "report.html")


def metrics(report: Report) -> dict[str, float]:
    """Name every finding `probe.subject.metric[.variant]`, and the ends of its interval and its n beside it."""
    result: dict[str, float] = {}
    for finding in report.findings:
        name = one_key(".".join(filter(None, (finding.probe, finding.subject, finding.metric, finding.variant))))
        result[name] = finding.value
        for end in ("low", "high", "n"):
            value = getattr(finding, end)
            if value is not None:
                result[f"{name}.{end}"] = value
    return result


def params(report: Report) -> dict[str, str]:
    """What the audit was made with: plugins and their options, seed, device, versions; times are no parameters."""
    made_with = {key: value for key, value in report.provenance.items() if key != "times"}
    return dict(flat(made_with))


def tags(report: Report) -> dict[str, str]:
    """What one searches for: the verdict, the policy it was given by, the hash of every input."""
    inputs = {key: value for key, value in flat(report.inputs, "input") if key.endswith("sha256")}
    oracle = sorted({granted.input for granted in report.granted if granted.oracle})
    return {
        "bdaudit.verdict": report.verdict,
        "bdaudit.schema_version": report.schema_version,
        "bdaudit.oracle": " ".join(oracle) or "none",
        **dict(flat(report.policy.model_dump(), "policy")),
        **inputs,
        # Not in the run's description, which MLflow's pages render: names in it may come from a suspect's files.
        **{f"bdaudit.reason.{i}": reason[:LONGEST] for i, reason in enumerate(report.reasons, 1)},
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Turn nested tables into `outer.inner` pairs of text."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        else:
            yield one_key(name), str(value)[:LONGEST]


def one_key(text: str) -> str:
    """Replace what MLflow does not take in a name."""
    return re.sub(r"[^\w.\-/]+", "_", text)[:200]
