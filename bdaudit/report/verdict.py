"""The verdict: one pure function over findings and a policy."""

from __future__ import annotations

from collections.abc import Sequence

from bdaudit.report.schema import Finding, Policy, Verdict
from bdaudit.report.statistics import images_needed, wilson


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
        if drop > policy.max_accuracy_drop:
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
        floor = _floor(findings, probe)
        excess = p_asr.value - floor
        if (p_asr.low or 0.0) > policy.max_p_asr and excess < policy.min_excess:
            undecided.append(
                f"{text} is {percent(p_asr.value)}, but the weakest control reaches {percent(floor)} as well: "
                "the probe is too strong for this model to tell a residual backdoor from new learning"
            )
        else:
            bucket(text, p_asr, policy.max_p_asr)

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


def _floor(findings: Sequence[Finding], probe: str) -> float:
    """What anybody gets without a backdoor: the weakest control of this probe, 0 where there is none.

    Controls are the null triggers on the purified model, the reference under the same treatment, and for
    queries the clean images under the same perturbation (C-ASR).
    """
    controls = [
        f.value
        for f in findings
        if f.probe == probe
        and (
            (f.subject == "null" and f.metric == "p_asr" and f.variant.endswith("on purified"))
            or (f.subject == "reference" and f.metric == "p_asr")
            or (f.subject == "purified" and f.metric == "c_asr")
        )
    ]
    return min(controls, default=0.0)


def _more(finding: Finding, bound: float) -> str:
    """Say how many images would settle it, if the rate stayed what it is and lies below the bound."""
    n = finding.n or 0
    if finding.value >= bound:
        return ""
    size = max(n, images_needed(bound))
    while wilson(finding.value * size, size)[1] > bound:
        size = int(size * 1.1) + 1
    return f"; about {size - n} more triggered images would settle it"
