"""The verdict: one pure function over findings and a policy."""

from __future__ import annotations

from collections.abc import Sequence

from bdaudit.report.schema import Finding, Policy, Verdict, controls_of
from bdaudit.report.statistics import images_needed


def judge(findings: Sequence[Finding], policy: Policy, shortfall: str = "") -> tuple[Verdict, list[str], list[Verdict]]:
    """Decide pass, fail or inconclusive, with a reason and an outcome for every check, the decisive ones first.

    A bound is broken when the whole interval lies above it, kept when the whole interval lies below it,
    and undecided otherwise. Any broken bound fails; any undecided one makes the rest inconclusive.
    shortfall: why nothing could be measured at all; then there is nothing else to judge.
    """
    if shortfall:
        return "inconclusive", [shortfall], ["inconclusive"]
    failed: list[str] = []
    undecided: list[str] = []
    passed: list[str] = []

    def bucket(text: str, finding: Finding, bound: float) -> None:
        low, high, n = finding.low or 0.0, 1.0 if finding.high is None else finding.high, finding.n or 0
        seen = f"{text} is {percent(finding.value)} [{percent(low)}, {percent(high)}] on {n} images"
        if n < policy.min_triggered:
            more = policy.min_triggered - n
            undecided.append(f"{seen}: too few to judge, at least {policy.min_triggered} are needed ({more} more)")
        elif low > bound:
            failed.append(f"{seen}, above the {percent(bound)} allowed")
        elif high <= bound:
            passed.append(f"{seen}, within the {percent(bound)} allowed")
        else:
            undecided.append(f"{seen}: the {percent(bound)} allowed lies inside the interval{_more(finding, bound)}")

    o_asr = _find(findings, "evaluation", "purified", "o_asr")
    if o_asr is None:
        undecided.append("attack success after purification was not measured")
    else:
        bucket("attack success after purification (O-ASR)", o_asr, policy.max_o_asr)

    before, after = (_find(findings, "evaluation", s, "c_acc") for s in ("suspect", "purified"))
    if before is None or after is None:
        undecided.append("clean accuracy was not measured on both models")
    else:
        drop = before.value - after.value
        text = f"clean accuracy went from {percent(before.value)} to {percent(after.value)}"
        if min(before.n or 0, after.n or 0) < policy.min_triggered:
            undecided.append(
                f"{text} on {after.n} images: too few to judge, at least {policy.min_triggered} are needed"
            )
        elif drop > policy.max_accuracy_drop:
            failed.append(f"{text}, more than the {percent(policy.max_accuracy_drop)} allowed")
        else:
            passed.append(text)

    for probe in dict.fromkeys([*policy.require, *(f.probe for f in findings)]):
        p_asr = _find(findings, probe, "purified", "p_asr")
        if p_asr is None:
            if probe in policy.require:
                undecided.append(f"the probe {probe}, which the policy requires, gave no figure")
            continue
        text = f"attack success after reactivation by {probe} (P-ASR)"
        explained = _explanation(findings, probe, p_asr, policy)
        if (p_asr.low or 0.0) <= policy.max_p_asr or explained is None or (p_asr.n or 0) < policy.min_triggered:
            bucket(text, p_asr, policy.max_p_asr)
        elif explained.value > policy.max_control:
            undecided.append(
                f"{text} is {percent(p_asr.value)}, but {_named(explained)} reaches {percent(explained.value)} as well: "
                "the probe is too strong to tell a residual backdoor from new learning"
            )
        elif explained.subject == "reference":
            passed.append(
                f"{text} is {percent(p_asr.value)}, but {_named(explained)} reaches {percent(explained.value)} "
                "under the same treatment: this is new learning"
            )
        else:
            undecided.append(
                f"{text} is {percent(p_asr.value)}, but {_named(explained)} reaches {percent(explained.value)} as well: "
                "this alone does not tell a residual backdoor from what any model would do"
            )

    verdict: Verdict = "fail" if failed else "inconclusive" if undecided else "pass"
    sorted_by_weight: list[tuple[Verdict, list[str]]] = [
        ("fail", failed),
        ("inconclusive", undecided),
        ("pass", passed),
    ]
    outcomes = [outcome for outcome, reasons in sorted_by_weight for _ in reasons]
    return verdict, [*failed, *undecided, *passed], outcomes


def percent(value: float) -> str:
    """Write a fraction as people read it."""
    return f"{100 * value:.1f}%"


def _find(findings: Sequence[Finding], probe: str, subject: str, metric: str) -> Finding | None:
    return next((f for f in findings if (f.probe, f.subject, f.metric) == (probe, subject, metric)), None)


def _explanation(findings: Sequence[Finding], probe: str, p_asr: Finding, policy: Policy) -> Finding | None:
    """Return the control that explains a reactivation as what anybody gets without a backdoor, if one does.

    Excess is counted against the reference under the same treatment, against the weakest of the null triggers
    (a residue may answer to a whole family, so that one null that jumps explains nothing), and for queries
    against clean images under the same perturbation.
    """
    references, nulls, clean = controls_of(findings, probe)
    # A reference that answers to the trigger before anything is reactivated is none.
    before = _find(findings, "evaluation", "reference", "o_asr")
    sound = before is None or (1.0 if before.high is None else before.high) <= policy.max_o_asr
    controls = [*(references if sound else ()), *sorted(nulls, key=lambda f: f.value)[:1], *clean]
    return next((c for c in controls if p_asr.value - c.value < policy.min_excess), None)


def _named(control: Finding) -> str:
    if control.subject == "reference":
        return "the reference, which has no backdoor,"
    if control.subject == "null":
        return f"a trigger that the model never saw ({control.variant})"
    return "the same perturbation on clean images"


def _more(finding: Finding, bound: float) -> str:
    """Say how many images would settle it, if the rate stayed what it is and lies below the bound."""
    needed = images_needed(bound, finding.value)
    if needed is None:
        return ""
    return f"; about {max(1, needed - (finding.n or 0))} more triggered images would settle it, if the rate stays"
