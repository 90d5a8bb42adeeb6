"""Audits side by side: the differences, and whether they may be compared at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reports import HOSTILE, audited, empty, hostile, huge, row

from bdaudit.errors import UsageError
from bdaudit.report import compare
from bdaudit.report.controls import contrast
from bdaudit.report.formats import SIDE_BY_SIDE, Format
from bdaudit.report.render import render_side_by_side
from bdaudit.report.schema import Finding, Policy, Report
from bdaudit.report.statistics import wilson
from bdaudit.report.words import clean

INPUTS: dict[str, Any] = {
    "model": {"weights_sha256": "aa" * 32},
    "test": {"n": 1000, "sha256": "bb" * 32},
    "evaluation": {"n": 900, "sha256": "cc" * 32},
    "reactivation": {"n": 100, "sha256": "ee" * 32},
    "goal": "all-to-one, target 0",
}


def audit(p_asr: float = 0.94, **changes: Any) -> Report:
    """An audit of known inputs that reached some P-ASR."""
    findings = [row("evaluation", "purified", "o_asr", 0.004), row("retune", "purified", "p_asr", p_asr)]
    provenance = {"seed": 0, "probes": {"retune": {"epochs": 5}}, "times": {"started": str(p_asr)}}
    return audited().model_copy(update={"findings": findings, "inputs": INPUTS, "provenance": provenance, **changes})


def sides(*reports: Report) -> list[compare.Audit]:
    return compare.audits([(f"{i}.json", r) for i, r in enumerate(reports)])


def share(hits: int, n: int) -> Finding:
    """A rate with its Wilson interval."""
    low, high = wilson(hits, n)
    return row("retune", "purified", "p_asr", hits / n, n, low=low, high=high)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 10), 0.6075, 1.0)],
)
def test_the_interval_of_a_difference_is_newcombes(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """The worked examples of Newcombe (1998), table II, method 10."""
    assert contrast(share(*one), share(*other))[1:] == pytest.approx((low, high), abs=1e-4)


def test_the_interval_covers_the_truth_and_is_wide_where_images_are_shared() -> None:
    """Over 4000 simulated pairs: about 95% for independent images, and more where one model's hits are the other's."""
    rng, n, trials = np.random.default_rng(0), 200, 4000
    p, q = 0.3, 0.2
    apart = rng.random((2, trials, n))
    for draws, least, most in ((apart, 0.935, 0.965), (np.stack([apart[0], apart[0]]), 0.985, 1.0)):
        pairs = zip((draws[0] < p).sum(1), (draws[1] < q).sum(1), strict=True)
        intervals = np.array([contrast(share(a, n), share(b, n))[1:] for a, b in pairs])
        hits = ((intervals[:, 0] <= p - q) & (p - q <= intervals[:, 1])).sum()
        assert least <= hits / trials <= most


def test_differences_are_held_against_the_first() -> None:
    """Each other audit has a column of its own and one of differences, in points with an interval."""
    before, after = compare.figures(sides(audit(), audit(0.04), audit(0.95)))
    assert before.rows == [["O-ASR, purified", *["0.4% [0.0, 1.9]"] * 3, *["+0.0 [-1.6, +1.6]"] * 2]]
    assert after.headers == ["figure", "A", "B", "C", "B - A", "C - A"]
    assert after.rows[0][1:4] == ["94.0% [92.5, 95.5]", "4.0% [2.5, 5.5]", "95.0% [93.5, 96.5]"]
    assert after.rows[0][4:] == ["-90.0 [-92.1, -87.9]", "+1.0 [-1.1, +3.1]"]


def test_what_is_no_rate_has_a_difference_without_interval() -> None:
    """Newcombe's interval is for shares of images: not for DER, an excess, a distance or a p-value."""
    der = [row("evaluation", "purified", "der", v, None, low=None, high=None) for v in (0.9, 0.8)]
    assert compare.difference(*der) == "-10.0"
    assert compare.difference(*(row("retune", "purified", "excess", v, 900) for v in (0.9, 0.8))) == "-10.0"
    assert compare.difference(*(row("weights", "purified", "distance", v, 900) for v in (0.25, 0.5))) == "+0.25"


def test_figures_of_one_audit_alone_are_named() -> None:
    """A figure that one audit lacks is never compared, and never lost."""
    more = audit(findings=[*audit().findings, row("qra", "purified", "p_asr", 0.2)])
    assert len(compare.figures(sides(audit(), more))) == 2
    assert compare.missing(sides(audit(), more)) == ["B: P-ASR, purified (After queries (QRA))."]
    assert compare.missing(sides(audit(), audit(0.1))) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": INPUTS | {"model": {"weights_sha256": "dd" * 32}}}, "B differs from A in the suspect model."),
        ({"inputs": INPUTS | {"test": {"sha256": "dd" * 32}}}, "B differs from A in the images for clean accuracy."),
        ({"inputs": INPUTS | {"evaluation": {"sha256": "dd" * 32}}}, "B differs from A in the images for attack success."),
        ({"inputs": INPUTS | {"reactivation": {"sha256": "dd" * 32}}}, "B differs from A in the images to retune with."),
        ({"inputs": INPUTS | {"reference": {"weights_sha256": "dd" * 32}}}, "B differs from A in the reference."),
        ({"inputs": INPUTS | {"goal": "all-to-all"}}, "B differs from A in what the attack aims at."),
        ({"policy": Policy(max_p_asr=0.3)}, "B differs from A in the policy."),
        ({"provenance": {"probes": {"retune": {"epochs": 1}}}}, "The options of the probe retune are not the same in A, B."),
        ({"inputs": {k: v for k, v in INPUTS.items() if k != "model"}}, "The suspect model: not recorded in B, so this cannot be told."),
        ({"inputs": INPUTS | {"model": ["aa" * 32]}}, "The suspect model: not recorded in B, so this cannot be told."),
    ],
)  # fmt: skip
def test_what_is_not_like_for_like_is_named(changes: dict[str, Any], said: str) -> None:
    """Another model, other images, another policy or probe make a difference that says nothing of the defense."""
    assert compare.unlike(sides(audit(), audit(**changes))) == [said]


@pytest.mark.parametrize("format", SIDE_BY_SIDE)
def test_what_is_not_like_for_like_is_said_first(format: Format) -> None:
    """Whoever reads the figures has read the warning."""
    text = render_side_by_side([("a.json", audit()), ("b.json", audit(policy=Policy(max_p_asr=0.3)))], format)
    places = [text.index(w) for w in ("NOT like for like", "B differs from A in the policy", "O-ASR, purified")]
    assert places == sorted(places)


def test_seeds_and_defenses_may_differ() -> None:
    """That is what a comparison is for: they are listed among the differences, times are not."""
    other = audit(
        0.1, provenance={"seed": 1, "defense": {"name": "pl"}, "probes": {"retune": {"epochs": 5}}, "times": {}}
    )
    assert compare.unlike(sides(audit(), other)) == []
    assert compare.provenance(sides(audit(), other)).rows == [
        ["seed", "0", "1"],
        ["defense.name", "not recorded", "pl"],
    ]
    assert "NOT like for like" not in render_side_by_side([("a", audit()), ("b", other)], "text")


def test_policies_are_compared_bound_by_bound() -> None:
    assert compare.policies(sides(audit(), audit(policy=Policy(max_p_asr=0.3)))).rows == [
        ["max_p_asr", "20.0%", "30.0%"]
    ]


@pytest.mark.parametrize("format", SIDE_BY_SIDE)
def test_any_reports_can_stand_side_by_side(format: Format) -> None:
    """Hostile, empty and huge ones, and names of files: bounded, printable, no control character."""
    named = [("a", audited()), (HOSTILE[4], hostile()), (HOSTILE[0], huge()), ("", empty())]
    text = render_side_by_side(named, format)
    assert len(text) < 1_500_000
    assert text.endswith("\n")
    assert all(c.isprintable() or c == "\n" for c in text.replace("\u200b", ""))
    if format == "html":
        assert "<script" not in text
        assert clean(HOSTILE[0]).replace("<", "&lt;").replace(">", "&gt;") in text


@pytest.mark.parametrize(
    ("count", "format", "words"),
    [(2, "junit", "junit holds one audit"), (2, "json", "json holds one audit"), (1, "text", "got 1 reports"),
     (9, "text", "expected 2 to 8"), (2, "htm", "did you mean html")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(count: int, format: Any, words: str) -> None:
    """One line says what can be."""
    with pytest.raises(UsageError, match=words):
        render_side_by_side([("x", empty())] * count, format)
