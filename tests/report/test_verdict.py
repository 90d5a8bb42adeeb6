"""The verdict, as a table: what was measured, what it comes to, and the reason named first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from reports import row

from bdaudit.report.schema import Finding, Policy, Verdict
from bdaudit.report.statistics import wilson
from bdaudit.report.verdict import judge, percent


def rate(probe: str, subject: str, metric: str, hits: int, n: int = 1000, variant: str = "") -> Finding:
    """A finding with its Wilson interval."""
    low, high = wilson(hits, n)
    return row(probe, subject, metric, hits / n, n, low=low, high=high, variant=variant)


def decide(findings: Sequence[Finding], policy: Policy | None = None) -> tuple[Verdict, list[str]]:
    """What judge says, without what it may say besides."""
    verdict, reasons = judge(findings, policy or Policy())[:2]
    return verdict, reasons


ACCURACY = [rate("evaluation", "suspect", "c_acc", 890), rate("evaluation", "purified", "c_acc", 870)]
LOW_O_ASR = rate("evaluation", "purified", "o_asr", 4)
NULL = rate("retune", "null", "p_asr", 30, variant="patch on purified")
GONE = [*ACCURACY, LOW_O_ASR]


def p_asr(hits: int, n: int = 1000, probe: str = "retune", subject: str = "purified") -> Finding:
    """Attack success after reactivation."""
    return rate(probe, subject, "p_asr", hits, n)


def gain(value: float, low: float, high: float, over: str) -> Finding:
    """The excess over a control, with the interval that a probe's bootstrap gave it."""
    return row("retune", "purified", "excess", value, 1000, low=low, high=high, variant=f"over {over}")


def change(value: float, low: float, high: float) -> Finding:
    """The paired change of clean accuracy."""
    return row("change", "purified", "c_acc_change", value, 1000, low=low, high=high)


REFERENCE = p_asr(300, subject="reference")
CLEAN_TWIN = p_asr(30, subject="reference")
NEVER = rate("evaluation", "suspect", "o_asr", 20)
LOST = [ACCURACY[0], rate("evaluation", "purified", "c_acc", 830), LOW_O_ASR, p_asr(40)]

TABLE: list[tuple[str, list[Finding], Verdict, str]] = [
    ("clean everywhere", [*GONE, p_asr(40), NULL], "pass", "within the 10.0% allowed"),
    ("backdoor comes back", [*GONE, p_asr(940), NULL], "fail", "by retune (P-ASR) is 94.0%"),
    ("comes back, no control", [*GONE, p_asr(940)], "fail", "by retune (P-ASR) is 94.0%"),
    ("never left", [*ACCURACY, rate("evaluation", "purified", "o_asr", 990), p_asr(40)], "fail", "after purification (O-ASR)"),
    ("accuracy lost", [ACCURACY[0], rate("evaluation", "purified", "c_acc", 700), LOW_O_ASR, p_asr(40)], "fail", "more than the 5.0%"),
    ("p_asr around the bound", [*GONE, p_asr(200)], "inconclusive", "lies inside the interval"),
    ("o_asr around the bound", [*ACCURACY, rate("evaluation", "purified", "o_asr", 95), p_asr(40)], "inconclusive", "more triggered images"),
    ("one flagged image", [*GONE, p_asr(1, 1)], "inconclusive", "at least 20 are needed (19 more)"),
    ("nothing measured", [], "inconclusive", "was not measured"),
    ("no retuning", GONE, "inconclusive", "retune, which the policy requires, gave no figure"),
    ("no accuracy", [LOW_O_ASR, p_asr(40)], "inconclusive", "clean accuracy was not measured"),
    ("null jumps as well", [*GONE, p_asr(990), rate("retune", "null", "p_asr", 980, variant="noise on purified")], "inconclusive", "too strong"),
    ("one null stays low", [*GONE, p_asr(990), CLEAN_TWIN, rate("retune", "null", "p_asr", 980, variant="noise on purified"), NULL], "fail", "is 99.0%"),
    ("without a reference the strongest null counts", [*GONE, p_asr(990), rate("retune", "null", "p_asr", 980, variant="noise on purified"), NULL], "inconclusive", "too strong"),
    ("above the strongest null as well", [*GONE, p_asr(930), rate("retune", "null", "p_asr", 430, variant="noise on purified"), NULL], "fail", "is 93.0%"),
    ("new to the suspect too, no reference", [*GONE, NEVER, p_asr(460), NULL], "inconclusive", "did not work on the suspect either"),
    ("new to the suspect too, reference learns nothing", [*GONE, NEVER, p_asr(460), CLEAN_TWIN, NULL], "fail", "is 46.0%"),
    ("few images, no row of the excess", [*GONE, p_asr(12, 25), p_asr(10, 25, subject="reference")], "inconclusive", "that count lie inside the interval"),
    ("reference jumps as well", [*GONE, p_asr(990), p_asr(985, subject="reference")], "inconclusive", "too strong"),
    ("reference learns as much", [*GONE, p_asr(280), p_asr(270, subject="reference")], "pass", "allowed"),
    ("null on the reference is no control", [*GONE, p_asr(990), rate("retune", "null", "p_asr", 980, variant="x on reference")], "fail", "is 99.0%"),
    ("adversarial queries", [*GONE, p_asr(40), p_asr(600, probe="qra"), rate("qra", "purified", "c_asr", 590)], "inconclusive", "by qra"),
    ("queries bring it back", [*GONE, p_asr(40), p_asr(600, probe="qra"), rate("qra", "purified", "c_asr", 30)], "fail", "by qra"),
    ("accuracy on three images", [rate("evaluation", "suspect", "c_acc", 3, 3), rate("evaluation", "purified", "c_acc", 3, 3), LOW_O_ASR, p_asr(40)], "inconclusive", "on 3 images: too few"),
    ("a reference with a backdoor explains nothing", [*GONE, rate("evaluation", "reference", "o_asr", 400), p_asr(500), p_asr(450, subject="reference")], "fail", "is 50.0%"),
    ("one ulp below the bound", [*GONE, p_asr(40).model_copy(update={"value": 0.19999999999999998, "low": 0.13, "high": 0.29})], "inconclusive", "lies inside the interval"),
    ("no interval, so unknown", [*ACCURACY, row("evaluation", "purified", "o_asr", 0.0, 900, low=None, high=None), p_asr(40)], "inconclusive", "O-ASR"),
    ("excess surely above what counts", [*GONE, p_asr(600), REFERENCE, gain(0.3, 0.2, 0.4, "reference")], "fail", "is 60.0%"),
    ("excess around what counts", [*GONE, p_asr(420), REFERENCE, gain(0.12, 0.03, 0.21, "reference")], "inconclusive", "12.0 [3.0, 21.0] points"),
    ("points alone would say enough", [*GONE, p_asr(450), REFERENCE, gain(0.15, 0.05, 0.3, "reference")], "inconclusive", "10.0 that count"),
    ("excess surely below what counts", [*GONE, p_asr(320), REFERENCE, gain(0.02, -0.05, 0.08, "reference")], "pass", "new learning"),
    ("excess over another null does not count", [*GONE, p_asr(600), CLEAN_TWIN, NULL, gain(0.57, 0.5, 0.6, "patch"), rate("retune", "null", "p_asr", 580, variant="noise on purified"), gain(0.02, -0.1, 0.1, "noise")], "fail", "is 60.0%"),
    ("excess over the weakest null in doubt", [*GONE, p_asr(260), rate("retune", "null", "p_asr", 130, variant="patch on purified"), gain(0.13, 0.02, 0.2, "patch")], "inconclusive", "13.0 [2.0, 20.0] points"),
    ("accuracy surely lost", [*LOST, change(-0.06, -0.07, -0.052)], "fail", "more than the 5.0%"),
    ("accuracy perhaps lost", [*LOST, change(-0.06, -0.08, -0.04)], "inconclusive", "lies inside its interval"),
    ("failure outweighs doubt", [*ACCURACY, rate("evaluation", "purified", "o_asr", 990), p_asr(1, 1)], "fail", "O-ASR"),
]  # fmt: skip


@pytest.mark.parametrize(("findings", "verdict", "first"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_verdict(findings: list[Finding], verdict: Verdict, first: str) -> None:
    """The decisive reason comes first."""
    got, reasons = decide(findings)
    assert got == verdict
    if verdict == "pass":
        assert any(first in r for r in reasons)
    else:
        assert first in reasons[0]


def proxied(index: float = 4.0, ordinary_o: int = 30, ordinary_p: int = 100, works: int = 980) -> list[Finding]:
    """What an audit by an inverted trigger measures besides: the audited class first, then ordinary ones."""
    return [
        row("inversion", "suspect", "anomaly_index", index, None, low=None, high=None, variant="class 0 (0)"),
        row("inversion", "suspect", "anomaly_index", -0.3, None, low=None, high=None, variant="class 1 (1)"),
        rate("evaluation", "suspect", "o_asr", works),
        rate("evaluation", "null", "o_asr", ordinary_o // 2, variant="inverted for 3 on purified"),
        rate("evaluation", "null", "o_asr", ordinary_o, variant="inverted for 5 on purified"),
        rate("retune", "null", "p_asr", ordinary_p, variant="inverted for 5 on purified"),
        rate("retune", "null", "p_asr", 990, variant="inverted for 5 on reference"),
    ]


HIGH_O_ASR = rate("evaluation", "purified", "o_asr", 600)
ACCEPTED = Policy(accept_proxy=True)
PROXY: list[tuple[str, list[Finding], Policy, Verdict, str]] = [
    ("bounds kept", [*GONE, p_asr(40), NULL, *proxied()], Policy(), "inconclusive", "does not clear the model"),
    ("bounds kept, proxy accepted", [*GONE, p_asr(40), NULL, *proxied()], ACCEPTED, "pass", "within the 10.0% allowed"),
    ("accepted, but it never worked", [*GONE, p_asr(40), NULL, *proxied(works=300)], ACCEPTED, "inconclusive", "reaches 30.0% on the suspect itself"),
    ("comes back", [*GONE, p_asr(940), NULL, *proxied()], Policy(), "fail", "by retune (P-ASR) is 94.0%"),
    ("comes back, so does any class's", [*GONE, p_asr(940), NULL, *proxied(ordinary_p=900)], Policy(), "inconclusive", "one for class 5 reaches 90.0%"),
    ("comes back, class does not stand out", [*GONE, p_asr(940), NULL, *proxied(index=1.9)], Policy(), "inconclusive", "does not stand out (anomaly index 1.90)"),
    ("comes back, but it never worked", [*GONE, p_asr(940), NULL, *proxied(works=300)], Policy(), "inconclusive", "reaches 30.0% on the suspect itself"),
    ("comes back, nothing to compare", [*GONE, p_asr(940, probe="qra"), p_asr(40), *proxied()], Policy(), "inconclusive", "nothing shows what one of an ordinary class"),
    ("comes back, reference too", [*GONE, p_asr(400), p_asr(380, subject="reference"), *proxied()], Policy(), "inconclusive", "does not clear the model"),
    ("works on the reference too", [*ACCURACY, HIGH_O_ASR, rate("evaluation", "reference", "o_asr", 550), p_asr(40), *proxied()], Policy(), "inconclusive", "it on the reference reaches 55.0%"),
    ("never left", [*ACCURACY, HIGH_O_ASR, p_asr(40), *proxied()], Policy(), "fail", "after purification (O-ASR) is 60.0%"),
    ("never left, as any class's", [*ACCURACY, HIGH_O_ASR, p_asr(40), *proxied(ordinary_o=700)], Policy(), "inconclusive", "adversarial perturbation"),
    ("accuracy lost", [ACCURACY[0], rate("evaluation", "purified", "c_acc", 700), LOW_O_ASR, p_asr(40), *proxied(index=0.5)], Policy(), "fail", "more than the 5.0%"),
]  # fmt: skip


@pytest.mark.parametrize(("findings", "policy", "verdict", "first"), [r[1:] for r in PROXY], ids=[r[0] for r in PROXY])
def test_verdict_on_a_proxy(findings: list[Finding], policy: Policy, verdict: Verdict, first: str) -> None:
    """An inverted trigger fails a model only beyond what ordinary classes' reach, and passes it only where accepted."""
    got, reasons = decide(findings, policy)
    assert got == verdict
    assert any(first in r for r in reasons) if verdict == "pass" else first in reasons[0]


def test_a_shortfall_is_inconclusive_whatever_was_measured() -> None:
    assert judge([], Policy(), "only 1 flagged image") == ("inconclusive", ["only 1 flagged image"], ["inconclusive"])
    assert judge([*GONE, p_asr(940)], Policy(), "x")[0] == "inconclusive"


def test_every_reason_has_its_outcome() -> None:
    verdict, reasons, outcomes = judge([*GONE, p_asr(940)], Policy())
    assert verdict == "fail"
    assert len(reasons) == len(outcomes)
    assert outcomes == sorted(outcomes, key=["fail", "inconclusive", "pass"].index)


def test_policy_moves_the_bounds() -> None:
    """The same findings, judged by a laxer policy, pass."""
    findings = [*GONE, p_asr(300)]
    assert decide(findings)[0] == "fail"
    assert decide(findings, Policy(max_p_asr=0.4))[0] == "pass"
    assert decide(GONE, Policy(require=[]))[0] == "pass"


def test_every_check_is_explained_and_inputs_stay_as_they_were() -> None:
    """One reason a check; the same findings give the same answer."""
    findings = [*GONE, p_asr(940), NULL, p_asr(40, probe="qra")]
    before = [f.model_dump() for f in findings]
    assert decide(findings) == decide(findings)
    assert len(decide(findings)[1]) == 4
    assert [f.model_dump() for f in findings] == before


def test_suggested_number_of_images_settles_it() -> None:
    """`about N more triggered images would settle it` is true of the rate that was seen."""
    _, reasons = decide([*ACCURACY, rate("evaluation", "purified", "o_asr", 45, 500), p_asr(40)])
    more = int(reasons[0].split("about ")[1].split(" more")[0])
    assert wilson(0.09 * (500 + more), 500 + more)[1] <= 0.1


def test_percent_reads_as_people_write() -> None:
    """One decimal."""
    assert [percent(v) for v in (0, 0.0714, 1)] == ["0.0%", "7.1%", "100.0%"]


def test_a_doubt_keeps_a_report_from_passing_but_not_from_failing() -> None:
    """What the audit found wrong with itself stands before what was undecided, and after what failed."""
    sound, back = [*GONE, p_asr(40), NULL], [*GONE, p_asr(940), NULL]
    assert judge(sound, Policy())[0] == "pass"
    verdict, reasons, outcomes = judge(sound, Policy(), doubts=["it is random"])
    assert (verdict, reasons[0], outcomes[0]) == ("inconclusive", "it is random", "inconclusive")
    verdict, reasons, outcomes = judge(back, Policy(), doubts=["it is random"])
    assert (verdict, reasons[1], outcomes[:2]) == ("fail", "it is random", ["fail", "inconclusive"])


def test_a_loss_of_exactly_what_is_allowed_is_no_more() -> None:
    """0.99 - 0.94 is 0.05 and a rounding error."""
    accuracy = [rate("evaluation", "suspect", "c_acc", 99, 100), rate("evaluation", "purified", "c_acc", 94, 100)]
    assert decide([*accuracy, LOW_O_ASR, p_asr(40)])[0] == "pass"


def test_a_required_probe_that_looks_and_does_not_reactivate_is_met_by_what_it_saw() -> None:
    seen = rate("features", "purified", "near_target", 40)
    policy = Policy(require=["retune", "features"])
    assert decide([*GONE, p_asr(40), seen], policy)[0] == "pass"
    assert decide([*GONE, p_asr(40)], policy)[0] == "inconclusive"
