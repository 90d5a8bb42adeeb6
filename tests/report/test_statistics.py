"""Intervals against textbook values, and rows whose n is the number of images."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdaudit.report.statistics import images_needed, rate_finding, wilson
from bdaudit.training.metrics import Rate


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 50, 0.0, 0.0714),  # design §6.3: 0 of 50 is compatible with 7.1%
        (50, 50, 0.9286, 1.0),
        (10, 100, 0.0552, 0.1744),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_gives_textbook_intervals(successes: int, n: int, low: float, high: float) -> None:
    """The interval is Wilson's, without continuity correction."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_fractional_successes_lie_between_whole_ones(case: tuple[int, int]) -> None:
    """A mean over draws gets an interval between those of its neighbours, inside [0, 1]."""
    k, n = case
    below, between, above = wilson(k, n), wilson(k + 0.5, n), wilson(k + 1, n)
    assert 0 <= below[0] <= between[0] <= above[0]
    assert below[1] <= between[1] <= above[1] <= 1


def test_formula_and_scipy_agree() -> None:
    """The two branches of wilson are one function."""
    assert wilson(10 + 1e-9, 100) == pytest.approx(wilson(10, 100), abs=1e-9)


@pytest.mark.parametrize("bound", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_images_needed_is_the_smallest_sufficient_number(bound: float) -> None:
    """So many images without a success keep the bound, and one fewer do not."""
    n = images_needed(bound)
    assert wilson(0, n)[1] <= bound < wilson(0, n - 1)[1]


def test_no_number_of_images_proves_zero() -> None:
    """A bound of 0 needs more images than anybody has."""
    assert images_needed(0) is None


def test_draws_do_not_multiply_the_images() -> None:
    """Three draws on the same 100 images: n stays 100, the spread stands apart."""
    finding = rate_finding("retune", "purified", "p_asr", [Rate(80, 100), Rate(90, 100), Rate(100, 100)], "x")
    assert (finding.n, finding.seeds, finding.value, finding.variant) == (100, 3, pytest.approx(0.9), "x")
    assert finding.spread == pytest.approx(0.1)
    assert (finding.low, finding.high) == pytest.approx(wilson(90, 100))


def test_one_measurement_has_no_spread() -> None:
    """A single seed says nothing about the spread, and None is not 0."""
    assert rate_finding("evaluation", "suspect", "o_asr", Rate(5, 10)).spread is None


@pytest.mark.parametrize("hits", [0, 1, 7, 10])
def test_interval_contains_its_value(hits: int) -> None:
    """Rounding never puts a rate outside its own interval."""
    finding = rate_finding("evaluation", "suspect", "o_asr", Rate(hits, 10))
    assert finding.low is not None
    assert finding.high is not None
    assert 0 <= finding.low <= finding.value <= finding.high <= 1


def test_a_rate_over_no_images_is_refused() -> None:
    """Nothing measured is an error, not 0%."""
    assert math.isnan(Rate(0, 0).value)
    with pytest.raises(ValueError, match="over no images"):
        rate_finding("evaluation", "suspect", "o_asr", Rate(0, 0))
