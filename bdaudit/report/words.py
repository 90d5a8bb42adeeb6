"""The field's words: metrics, stages, subjects and figures as every renderer writes them.

Reports come from files that may be hostile, so each piece of text passes through `clean` (one line, no control or
direction-changing characters, bounded length); escaping for its own markup is left to each renderer.
"""

from __future__ import annotations

from bdaudit.errors import one_line
from bdaudit.report.schema import Finding, Outcome, Verdict

ORACLE = "ORACLE"
ORACLE_MEANS = f"{ORACLE}: a real defender would not have this input; figures that rest on it are upper bounds."

VERDICT_WORDS: dict[Verdict, str] = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive"}

SUBJECTS = {
    "suspect": "suspect (before purification)",
    "purified": "purified",
    "reference": "reference (no backdoor)",
    "null": "never-seen trigger",
}

METRICS = {
    "c_acc": ("C-ACC", "clean images given their true class"),
    "o_c_acc": ("C-ACC", "clean images given their true class"),
    "p_c_acc": ("P-C-ACC", "clean images given their true class, after reactivation"),
    "asr": ("ASR", "triggered images that the attack succeeds on"),
    "o_asr": ("O-ASR", "triggered images that the attack succeeds on, before any reactivation"),
    "p_asr": ("P-ASR", "triggered images that the attack succeeds on, after trying to bring the backdoor back"),
    "c_asr": ("C-ASR", "clean images that end in the target class under the same perturbation, as by any adversarial example"),
    "robust_acc": ("R-ACC", "triggered images still given their true class"),
    "o_robust_acc": ("R-ACC", "triggered images still given their true class"),
    "p_robust_acc": ("P-R-ACC", "triggered images still given their true class, after reactivation"),
    "transfer_p_asr": ("P-ASR", "triggered images that succeed on a model after a perturbation made on another"),
    "transfer_c_asr": ("C-ASR", "clean images that end in the target class after a perturbation made on another model"),
    "excess": ("excess", "P-ASR, less what the same treatment reaches without a backdoor"),
    "c_acc_change": ("C-ACC change", "C-ACC after purification less before, over the same images"),
    "c_acc_mcnemar_p": ("p (C-ACC)", "how likely a change at least as clear would be by chance (McNemar, exact)"),
    "o_asr_change": ("O-ASR change", "O-ASR after purification less before, over the same images"),
    "o_asr_mcnemar_p": ("p (O-ASR)", "how likely a change at least as clear would be by chance (McNemar, exact)"),
    "backdoor_barrier": ("Backdoor barrier", "how far 1 - ASR rises above a straight line between its values at the two ends: the higher, the sooner the backdoor is left behind on the way from the suspect"),
    "clean_barrier": ("Clean barrier", "the same of 1 - C-ACC: near zero, the two models lie in one valley"),
    "t_asr20": ("t at ASR 20%", "the t at which, coming back from the end of the line (1) towards the suspect (0), the attack again succeeds on 20% of triggered images: the smaller, the further behind the backdoor was left"),
    "asr_change": ("ASR change", "attack success there, less that at t = 1 with BatchNorm re-estimated as well: below zero, to go on in the same direction removes more of the backdoor"),
    "distance": ("Distance", "how far the weights moved from the suspect's, in parts of their length (Frobenius norm) there"),
    "near_target": ("Near target", "images whose features, the input of the head, lie nearest to the clean images of the class that the attacker wants"),
    "anomaly_index": ("anomaly", "how many deviations the inverted trigger is smaller than the median class's; above 2 stands out"),
    "reversed_share": ("to its target", "clean images that the reversed trigger's generator turns into the class that it turns most of them into"),
    "mask_l1": ("mask", "size of the inverted trigger: the sum of its mask, in pixels"),
    "der": ("DER", "defense effectiveness: attack success removed, less the clean accuracy lost; 50% is no effect"),
}  # fmt: skip

OUTCOMES: dict[Outcome, str] = {
    "sound": "in order",
    "caveat": "caveat",
    "left-out": "control left out",
    "no-pass": "nothing can pass",
    "stopped": "audit stopped",
}

NUMBERS = frozenset({"distance", "loss", "t_asr20", "anomaly_index", "mask_l1", "c_acc_mcnemar_p", "o_asr_mcnemar_p"})
"""Metrics that are no fractions, and are never written as a percentage."""

STAGES = {
    "inversion": "Triggers inverted from the suspect",
    "nc": "Triggers that NC inverted from the suspect",
    "bti-dbf": "Trigger that BTI-DBF reversed from the suspect",
    "bti-sam": "Trigger that BTI+SAM reversed from the suspect",
    "pam": "Trigger that PAM reversed from the suspect",
    "evaluation": "Before and after purification",
    "change": "Purified against suspect, image by image",
    "retune": "After retuning (RA)",
    "qra": "After queries (QRA)",
    "transfer": "After queries made on another model",
    "lmc": "On straight lines between the models (LMC)",
    "trajectory": "From the suspect through the purified model, and as far again",
    "weights": "How far the weights moved",
    "features": "Where triggered images lie in the features",
}

INTERVALS = (
    "Square brackets: 95% interval over the images. sd: spread over the draws, which is another matter. "
    "Attack success never counts images whose true class is the target."
)


def clean(text: object, limit: int = 300) -> str:
    """Make text from outside safe to show anywhere once escaped: one line, printable, bounded."""
    return one_line(" ".join(str(text)[: 8 * limit].split()), limit)


def figure(value: float, metric: str = "") -> str:
    """Write a fraction as people read it, and anything else as a number."""
    return f"{100 * value:.1f}%" if abs(value) <= 1 and metric not in NUMBERS else f"{value:.3g}"


def rate(finding: Finding, *, spread: bool = True) -> str:
    """Write a rate with its interval and its spread: `12.3% [10.1, 14.8] sd 3.0`."""
    name = finding.metric
    text = figure(finding.value, name)
    ends = [e for e in (finding.low, finding.high) if e is not None]
    if len(ends) == 2:
        text += f" [{', '.join(figure(e, name).rstrip('%') for e in ends)}]"
    if spread and finding.spread is not None:
        text += f" sd {figure(finding.spread, name).rstrip('%')}"
    return text


def stage(probe: str) -> str:
    """Name what was done to the model by then."""
    return STAGES.get(probe) or f"After {clean(probe, 60)}"


def metric(name: str) -> str:
    """Name a metric as papers print it."""
    return METRICS[name][0] if name in METRICS else clean(name, 40)


def subject(finding: Finding) -> str:
    """Name whose figure it is."""
    name = SUBJECTS[finding.subject]
    return f"{name}: {clean(finding.variant, 60)}" if finding.variant else name
