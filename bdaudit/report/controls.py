"""What a reactivation is held against: what the same treatment reaches without a backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdaudit.report.intervals import Estimate, mover
from bdaudit.report.schema import Finding

CLEAN = "clean images"
INVERTED = "inverted for "
"""How the names of controls begin that are inverted triggers themselves, of classes that do not stand out."""

MADE_ON, TRIED_ON = "made on ", ", tried on "
"""How figures of perturbations that travel are named: by the model they were made on, and the one tried on."""


@dataclass(frozen=True)
class Comparison:
    """By how much a reactivation exceeds one control; low and high: its 95% interval.

    Where a probe reported no row `excess` for this control, the interval is that of two independent proportions.
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


def comparisons(findings: Sequence[Finding], p_asr: Finding, *, referenced: bool = True) -> list[Comparison]:
    """Hold a reactivation against the reference, against one null trigger, and against clean images.

    Beside a reference the weakest null counts, since a residue may answer to a whole family of triggers, and one null
    that jumps explains nothing. Without one the strongest does: nothing else tells which triggers any model learns.
    Triggers that were inverted from the model are held against one another elsewhere (`report.proxy`).
    referenced: whether the reference may be believed.
    """
    references, nulls, cleans = controls_of(findings, p_asr.probe)
    named = [(f, "reference") for f in references if referenced]
    nulls = [f for f in nulls if not family(f).startswith(INVERTED)]
    named += [(f, family(f)) for f in sorted(nulls, key=lambda f: f.value, reverse=not named)[:1]]
    named += [(f, CLEAN) for f in cleans]
    rows = {f.variant: f for f in findings if (f.probe, f.metric) == (p_asr.probe, "excess")}
    return [_comparison(control, p_asr, rows.get(f"over {name}")) for control, name in named]


def journey(finding: Finding) -> tuple[str, str] | None:
    """Name the models that a perturbation was made on and tried on ('': the reference); None for any other figure."""
    made, _, tried = finding.variant.removeprefix(MADE_ON).partition(TRIED_ON)
    return (made, tried) if finding.variant.startswith(MADE_ON) else None


def family(null: Finding) -> str:
    """Name the family of a null trigger that was tried on the purified model."""
    return null.variant.removesuffix(" on purified")


def _comparison(control: Finding, p_asr: Finding, row: Finding | None) -> Comparison:
    if row is None or row.low is None or row.high is None:
        return Comparison(control, *contrast(p_asr, control))
    return Comparison(control, row.value, row.low, row.high)


def contrast(one: Finding, other: Finding) -> Estimate:
    """one - other with its 95% interval, two independent rates. A rate without an interval may be anything."""
    return mover(
        (weight, (f.value, 0.0 if f.low is None else f.low, 1.0 if f.high is None else f.high))
        for weight, f in ((1.0, one), (-1.0, other))
    )
