"""What a reactivation is held against: what the same treatment reaches without a backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdaudit.report.schema import Finding

CLEAN = "clean images"


@dataclass(frozen=True)
class Comparison:
    """By how much a reactivation exceeds one control; low and high: its 95% interval.

    low and high are the value itself where a probe reported no row `excess` for this control.
    """

    control: Finding
    value: float
    low: float
    high: float


def controls_of(findings: Sequence[Finding], probe: str) -> tuple[list[Finding], list[Finding], list[Finding]]:
    """Pick a probe's controls: the reference, null triggers on the purified model, perturbed clean images."""
    rows = [f for f in findings if f.probe == probe]
    references = [f for f in rows if (f.subject, f.metric) == ("reference", "p_asr")][:1]
    nulls = [f for f in rows if (f.subject, f.metric) == ("null", "p_asr") and not f.variant.endswith(" on reference")]
    cleans = [f for f in rows if (f.subject, f.metric) == ("purified", "c_asr")][:1]
    return references, nulls, cleans


def comparisons(findings: Sequence[Finding], p_asr: Finding) -> list[Comparison]:
    """Hold a reactivation against the reference, against the weakest null trigger, and against clean images.

    The weakest, since a residue may answer to a whole family of triggers: one null that jumps explains nothing.
    """
    references, nulls, cleans = controls_of(findings, p_asr.probe)
    named = [(f, "reference") for f in references]
    named += [(f, family(f)) for f in sorted(nulls, key=lambda f: f.value)[:1]]
    named += [(f, CLEAN) for f in cleans]
    rows = {f.variant: f for f in findings if (f.probe, f.metric) == (p_asr.probe, "excess")}
    return [_comparison(control, p_asr, rows.get(f"over {name}")) for control, name in named]


def family(null: Finding) -> str:
    """Name the family of a null trigger that was tried on the purified model."""
    return null.variant.removesuffix(" on purified")


def _comparison(control: Finding, p_asr: Finding, row: Finding | None) -> Comparison:
    if row is None or row.low is None or row.high is None:
        difference = p_asr.value - control.value
        return Comparison(control, difference, difference, difference)
    return Comparison(control, row.value, row.low, row.high)
