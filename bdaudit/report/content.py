"""What every renderer says of a report, before any markup; `words.py` has the single words, `tables.py` the tables.

Each piece of text that comes from outside passes through `clean`, and each list is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from bdaudit.report.controls import comparisons, controls_of, family
from bdaudit.report.proxy import anomaly_of
from bdaudit.report.schema import Exhibit, Finding, Report, Verdict
from bdaudit.report.words import METRICS, clean, figure, stage

T = TypeVar("T")
Kind = Literal["attack", "reference", "null"]

HUGE = 1e9
"""No figure is drawn, or reckoned with, beyond this."""
STAGES_SHOWN, ROWS, COLUMNS, LISTED = 24, 200, 6, 1000
"""Most summary tables, most rows and metrics of each, most entries of a full list; the JSON document has them all."""

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b")


@dataclass(frozen=True)
class Bar:
    """One rate to draw, what kind of evidence it is, and the bound that it is held against."""

    label: str
    finding: Finding
    kind: Kind
    bound: float | None = None


# ---- the verdict in plain words


def headline(report: Report) -> str:
    """Say what the verdict means to somebody who reads nothing else."""
    said = _headline(report)
    if report.verdict == "inconclusive" or not is_proxy(report):
        return said
    return f"{said} This was judged by a trigger inverted from the model, not by the attacker's own."


def is_proxy(report: Report) -> bool:
    """Whether the trigger under audit was inverted from the model, nothing being known of the attacker's."""
    return anomaly_of(report.findings) is not None and report.find("o_asr", subject="suspect") is not None


def _headline(report: Report) -> str:
    if report.verdict == "inconclusive":
        return "This audit cannot decide. Treat the model as not cleared."
    before, o_asr = report.find("o_asr", subject="suspect"), report.find("o_asr")
    if report.verdict == "pass":
        if o_asr is None:
            return "The report says pass, but holds no attack success rate to support it."
        if before and not _above(before, report.policy.max_o_asr):
            start = "The attack does not work on this model, nor did it before purification"
        else:
            start = "The attack no longer works"
        tried = reactivations(report)
        return (
            f"{start}, and trying to bring it back did not succeed."
            if tried
            else f"{start}. Nothing was tried to bring it back."
        )
    if o_asr is not None and _above(o_asr, report.policy.max_o_asr):
        return "The backdoor is still there: purification did not remove it."
    if any(_above(f, report.policy.max_p_asr) for f in reactivations(report)):
        return "The backdoor was hidden, not removed: it comes back."
    had, kept = report.find("c_acc", subject="suspect"), report.find("c_acc")
    if had and kept and had.value - kept.value > report.policy.max_accuracy_drop:
        return "Purification cost more accuracy than the policy allows."
    return "The model does not meet the policy."


def story(report: Report) -> str:
    """Tell the attack's success before purification, after it and after reactivation, as far as measured."""
    parts = []
    if before := report.find("o_asr", subject="suspect"):
        parts.append(f"on {figure(before.value)} of triggered images before purification")
    if after := report.find("o_asr"):
        parts.append(f"on {figure(after.value)} after it")
    parts += [f"on {figure(f.value)} {_lower(stage(f.probe))}" for f in islice(reactivations(report), 8)]
    what = (
        "A trigger inverted from the model, which stands in for the attacker's," if is_proxy(report) else "The attack"
    )
    return f"{what} succeeded {_and(parts)}." if parts else "Attack success was not measured."


def reactivations(report: Report) -> list[Finding]:
    """List what each probe reached on the purified model."""
    first: dict[str, Finding] = {}
    for f in report.findings:
        if f.subject == "purified" and f.metric == "p_asr":
            first.setdefault(f.probe, f)
    return list(first.values())


def controls(report: Report) -> list[str]:
    """Explain, a probe a sentence, how much of a reactivation anybody would get without a backdoor."""
    return [_controls(report, real) for real in islice(reactivations(report), STAGES_SHOWN)]


def _controls(report: Report, real: Finding) -> str:
    references, nulls, cleans = controls_of(report.findings, real.probe)
    when = stage(real.probe)
    trigger = "inverted" if is_proxy(report) else "real"
    start = f"{when}, the {trigger} trigger reaches {figure(real.value)} on the purified model"
    if not (nulls or references or cleans):
        return f"{start}; no control was measured, so this cannot be told from what any model would learn."
    parts = [f"{figure(f.value)} on the reference, which has no backdoor" for f in references]
    if nulls:
        shown = [f"{figure(f.value)} ({_family(f)})" for f in nulls[:8]]
        more = [f"{len(nulls) - 8} more"] if len(nulls) > 8 else []
        parts.append(f"{_and(shown + more)} with triggers that the model never saw")
    parts += [f"{figure(f.value)} on clean images" for f in cleans]
    least = min(comparisons(report.findings, real), key=lambda c: c.low)
    text = f"{start}. The same treatment reaches {'; '.join(parts)}. "
    interval = f" [{_points(least.low)}, {_points(least.high)}]" if least.low < least.high else ""
    which = "weakest" if references else "strongest, as there is no reference"
    text += f"The excess over these controls (of the never-seen triggers, over the {which}) is {_points(least.value)}"
    text += f"{interval} points; below {_points(report.policy.min_excess)} it is not taken for reactivation."
    if is_proxy(report):
        text += " Since the trigger is a proxy, it counts only by what it exceeds those inverted for ordinary classes."
    jumped = [_family(f) for f in nulls if _above(f, report.policy.max_p_asr)][:8]
    if jumped:
        verb = "s jump" if len(jumped) > 1 else " jumps"
        text += f" Never-seen trigger{verb} as well ({_and(jumped)}): the model answers to a whole family of triggers,"
        text += " or the probe alone can teach them; compare with the reference."
    return text


def limits(report: Report) -> list[str]:
    """Say what a pass does not mean, so that nobody reads more into it than was measured."""
    probes = _and([_lower(stage(f.probe)) for f in reactivations(report)[:8]])
    tried = f"attempts to bring it back were made {probes}" if probes else "no attempt to bring it back was made"
    tested = (
        "a trigger inverted from the model, which may not be the attacker's,"
        if is_proxy(report)
        else "the trigger that this audit was given, or the flagged images that stand for it,"
    )
    texts = [
        f"It does not mean that the model has no backdoor: only {tested} was tested.",
        f"It does not mean that nobody can reactivate the backdoor: {tried}; longer, larger or different attempts may succeed.",
        "It does not mean that the rate is zero: any rate inside the printed interval fits what was seen.",
        "It does not cover other data: the figures hold for images like the test images, not for another distribution.",
        "It says nothing about other risks, such as adversarial examples, privacy, fairness or poor accuracy on rare cases.",
    ]
    if any(g.oracle for g in report.granted):
        texts.append("Oracle inputs were used here; a defender without them may get a worse result.")
    return texts


# ---- lists


def glossary(report: Report) -> list[tuple[str, str]]:
    """Explain the metrics that occur in this report."""
    used = {f.metric for f in report.findings}
    return list(dict.fromkeys(words for name, words in METRICS.items() if name in used))


def notes(report: Report) -> list[str]:
    """List the caveats."""
    return _bounded(report.notes, 1000)


def self_checks(report: Report) -> str:
    """Say how many checks the audit made of itself and how they came out; '' where none was recorded."""
    count, wrong = len(report.self_checks), sum(c.outcome != "sound" for c in report.self_checks)
    came_out = f"{wrong} not in order" if wrong else "all in order"
    return f"What the audit checked about itself: {count} checks, {came_out}" if count else ""


def checks(report: Report) -> list[tuple[Verdict | None, str]]:
    """List the reasons, each with its own outcome where that was recorded."""
    kept, left_out = cut(report.checks, ROWS)
    out: list[tuple[Verdict | None, str]] = [(o, clean(text, 1000) or "no reason given") for o, text in kept]
    return out + ([(None, f"and {left_out} more, in the JSON report")] if left_out else [])


def curves(report: Report) -> list[str]:
    """Say what each drawing of curves or points shows, for readers who cannot see it."""
    return [said for e in islice(report.exhibits, LISTED) for said in (curve_words(e), map_words(e)) if said]


def curve_words(exhibit: Exhibit) -> str:
    """Describe the curves of one exhibit in a sentence: where they start and end; over named places, extremes."""
    named = [(clean(name, 60), ys) for name, ys in islice(exhibit.curves.items(), 12) if ys]
    if exhibit.x_names:
        parts = [f"{name} {_extremes(ys, exhibit)}" for name, ys in named]
    else:
        ends = ((name, figure(ys[0], exhibit.metric), figure(ys[-1], exhibit.metric)) for name, ys in named)
        parts = [f"{name} from {first} to {last}" for name, first, last in ends]
    return f"{clean(exhibit.title)}: {'; '.join(parts)}." if parts else ""


def _extremes(ys: Sequence[float], exhibit: Exhibit) -> str:
    """Name the places of a curve's largest and smallest value."""
    said = []
    for word, most in (("most", max), ("least", min)):
        i = most(range(len(ys)), key=ys.__getitem__)
        where = clean(exhibit.x_names[i], 60) if i < len(exhibit.x_names) else f"place {i + 1}"
        said.append(f"{word} at {where} ({figure(ys[i], exhibit.metric)})")
    return ", ".join(said)


def map_words(exhibit: Exhibit) -> str:
    """Describe a map in two sentences: who is on it, and whom the last group, which is drawn on top, lies among."""
    groups = [(clean(name, 60), places) for name, places in islice(exhibit.points.items(), 6) if places]
    if not groups:
        return ""
    text = f"{clean(exhibit.title)}: {'; '.join(f'{name}, {len(places):,}' for name, places in groups)}."
    *others, (last, middle) = [
        (name, [math.fsum(finite(p[i]) for p in places) / len(places) for i in (0, 1)]) for name, places in groups
    ]
    if len(others) > 2:  # of two, one is nearer whatever there is to see
        nearest = min(others, key=lambda other: math.dist(other[1], middle))[0]
        text += f" On the map the middle of “{last}” lies nearest to that of “{nearest}”."
    return text


# ---- what to draw


def bars(report: Report, limit: int = 24) -> list[Bar]:
    """Choose the rates that tell the story: before, after, and after each reactivation beside its controls."""
    out = []
    if before := report.find("o_asr", subject="suspect"):
        out.append(Bar("Suspect, before purification", before, "attack"))
    if after := report.find("o_asr"):
        out.append(Bar("Purified", after, "attack", report.policy.max_o_asr))
    for real in reactivations(report)[:limit]:
        when = _lower(stage(real.probe))
        out.append(Bar(f"Purified, {when}", real, "attack", report.policy.max_p_asr))
        references, nulls, cleans = controls_of(report.findings, real.probe)
        out += [Bar(f"Reference, {when}", f, "reference") for f in references]
        out += [Bar(f"Never-seen trigger ({_family(f)})", f, "null") for f in nulls]
        out += [Bar("Clean images, same perturbation", f, "null") for f in cleans]
    return out[:limit]


# ---- small words


def shortened(text: str) -> str:
    """Cut each hash to its first twelve digits."""
    return _HASH.sub(r"\1…", text)


def finite(value: float) -> float:
    """Hold a figure within what can be drawn."""
    return min(HUGE, max(-HUGE, value))


def _bounded(texts: Sequence[str], limit: int) -> list[str]:
    kept, left_out = cut(texts, LISTED)
    return [clean(t, limit) for t in kept] + ([f"and {left_out} more, in the JSON report"] if left_out else [])


def cut(items: Iterable[T], limit: int) -> tuple[list[T], int]:
    """Keep the first `limit` items, and count the rest."""
    everything = list(items)
    return everything[:limit], max(0, len(everything) - limit)


def _above(finding: Finding, bound: float) -> bool:
    return (finding.value if finding.low is None else finding.low) > bound


def _family(finding: Finding) -> str:
    return clean(family(finding), 40) or "unnamed"


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _points(difference: float) -> str:
    return f"{100 * difference:.1f}" if abs(difference) <= 1 else f"{100 * difference:.4g}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
