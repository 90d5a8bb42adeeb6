"""The report document: one versioned pydantic model; everything shown is derived from it."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bdaudit.errors import InputError, one_line
from bdaudit.inputs.files import read_small

SCHEMA_VERSION: Literal["1"] = "1"
MAX_BYTES = 64 << 20

Subject = Literal["suspect", "purified", "reference", "null"]
Verdict = Literal["pass", "fail", "inconclusive"]
Outcome = Literal["sound", "caveat", "left-out", "no-pass", "stopped"]
"""What follows from a self-check: nothing; a caveat; a control is not used; nothing can pass; nothing is measured."""


class ExitCode(IntEnum):
    """What a command ends with; an error or an inconclusive result never looks like a pass."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    OPERATIONAL = 3
    INCONCLUSIVE = 4


EXIT_CODES: dict[Verdict, ExitCode] = {
    "pass": ExitCode.PASS,
    "fail": ExitCode.FAIL,
    "inconclusive": ExitCode.INCONCLUSIVE,
}


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Finding(_Document):
    """One measured figure, as a flat row."""

    probe: str = Field(description="What measured it: `evaluation`, or a probe's name.")
    subject: Subject = Field(
        description="Whose figure it is; `null`: that of a trigger which is not in the model (never seen, or inverted)."
    )
    metric: str = Field(
        description="c_acc, asr, robust_acc, der, o_ before reactivation, p_ after it; c_asr and excess of a reactivation; "
        "*_change and *_mcnemar_p of purified against suspect; what else a probe measures (docs/report.md)."
    )
    value: float = Field(description="A fraction, unless the metric is a number of another kind; the mean over seeds.")
    low: float | None = Field(
        description="Lower end of the 95% interval over n images: Wilson's for a rate, others as docs/report.md says."
    )
    high: float | None = Field(description="Upper end of the same interval.")
    n: int | None = Field(description="Images that count.")
    seeds: int = Field(1, description="Independent repetitions (draws of poison rows) behind the mean.")
    spread: float | None = Field(None, description="Standard deviation over the seeds, apart from sampling error.")
    variant: str = Field("", description="Which control it is, e.g. `patch on purified`.")


class Exhibit(_Document):
    """A curve, a map or a picture that hangs off the finding it explains."""

    probe: str
    metric: str
    title: str
    caption: str = ""
    x_label: str = ""
    y_label: str = ""
    curves: dict[str, list[float]] = Field(default_factory=dict, description="Name -> y values over x.")
    x: list[float] = Field(default_factory=list)
    x_names: list[str] = Field(default_factory=list, description="Names of the places on the x axis, e.g. layers.")
    points: dict[str, list[tuple[float, float]]] = Field(
        default_factory=dict, description="Name -> places on a map, e.g. features in two dimensions."
    )
    picture: str = Field("", description="A PNG image, base64.")


class Measurement(_Document):
    """What one probe hands in, or what a defense found on its way."""

    findings: list[Finding] = Field(default_factory=list)
    exhibits: list[Exhibit] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    artifacts: dict[str, bytes] = Field(
        default_factory=dict, exclude=True, description="Files to keep beside the result: NAME.safetensors -> content."
    )

    @field_validator("artifacts")
    @classmethod
    def _named(cls, artifacts: dict[str, bytes]) -> dict[str, bytes]:
        for name in artifacts:
            if not is_artifact(name):
                raise ValueError(f"an artifact is called like qra-generator.safetensors, got {one_line(name, 60)!r}")
        return artifacts


def is_artifact(name: str) -> bool:
    """Whether a file can be one that a probe left beside a report."""
    return re.fullmatch(r"[a-z0-9][a-z0-9-]{0,60}\.safetensors", name) is not None


class Policy(_Document):
    """What counts as good enough. Bounds on attack success are compared with 95% intervals, not with points."""

    max_o_asr: float = Field(0.10, ge=0, le=1, description="Attack success right after purification.")
    max_accuracy_drop: float = Field(0.05, ge=0, le=1, description="Clean accuracy lost to purification.")
    max_p_asr: float = Field(0.20, ge=0, le=1, description="Attack success after reactivation (retuning or queries).")
    min_excess: float = Field(
        0.10,
        ge=0,
        le=1,
        description="Reactivation counts only by how much it exceeds the reference, and the weakest null trigger.",
    )
    max_control: float = Field(0.50, ge=0, le=1, description="A control above this leaves a probe no power to judge.")
    min_triggered: int = Field(20, ge=1, description="Fewer triggered images than this support no verdict at all.")
    accept_proxy: bool = Field(
        False, description="Whether an audit may pass whose trigger was inverted from the model, nothing being flagged."
    )
    require: list[str] = Field(default_factory=lambda: ["retune"], description="Probes without which nothing passes.")


class Granted(_Document):
    """An input that a plugin was given, exactly as recorded at the call."""

    plugin: str
    input: str
    source: str
    oracle: bool = False


class SelfCheck(_Document):
    """One thing that the audit made sure of before it believed its own figures."""

    name: str = Field(description="The claim that was checked.")
    subject: str = Field(description="A model that the audit measures, or `images`.")
    outcome: Outcome = Field(
        description="What follows: nothing (sound), a caveat, a control that is left-out, no-pass whatever the figures "
        "say, or nothing more is measured (stopped)."
    )
    detail: str = Field("", description="What was found, where it is worth a word.")


class Report(_Document):
    """The audit of one model: verdict, reasons, findings, and everything needed to question them."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    title: str = "bdaudit report"
    verdict: Verdict
    reasons: list[str]
    outcomes: list[Verdict] = Field(
        default_factory=list, description="What each reason came to, in the same order; empty where not recorded."
    )
    findings: list[Finding]
    exhibits: list[Exhibit] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="Caveats found while auditing.")
    self_checks: list[SelfCheck] = Field(
        default_factory=list, description="What the audit checked about itself; empty where that was not recorded."
    )
    inputs: dict[str, Any] = Field(description="Every input with its size and hash.")
    granted: list[Granted]
    policy: Policy
    provenance: dict[str, Any] = Field(description="Options, seeds, versions, device, git revision; `times` apart.")

    def find(self, metric: str, *, probe: str = "evaluation", subject: str = "purified") -> Finding | None:
        """Return the first finding with these keys."""
        rows = (f for f in self.findings if (f.metric, f.probe, f.subject) == (metric, probe, subject))
        return next(rows, None)

    @property
    def checks(self) -> list[tuple[Verdict | None, str]]:
        """Pair each reason with its own outcome, None where that was not recorded."""
        recorded = len(self.outcomes) == len(self.reasons)
        return [(self.outcomes[i] if recorded else None, reason) for i, reason in enumerate(self.reasons)]

    @property
    def exit_code(self) -> ExitCode:
        return EXIT_CODES[self.verdict]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def read_report(path: Path) -> Report:
    """Read a report file that may come from anywhere; one clear line if it is not one."""
    try:
        data = read_small(path, MAX_BYTES)
    except (OSError, ValueError) as e:  # a null byte in a path is a ValueError
        reason = getattr(e, "strerror", None) or e
        raise InputError(f"{one_line(path)}: cannot be read ({one_line(reason, 100)})") from None
    try:
        return Report.model_validate_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "the file"
        raise InputError(
            f"{one_line(path)}: not a bdaudit report of schema {SCHEMA_VERSION} ({one_line(where, 60)}: {one_line(first['msg'], 100)})"
        ) from None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema that docs/report.schema.json publishes."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}
