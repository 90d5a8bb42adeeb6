"""Intervals against textbook values, and rows whose n is the number of images."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from bdaudit.report.statistics import (
    Z,
    change_findings,
    excess,
    excess_finding,
    images_needed,
    mcnemar,
    paired_change,
    rate_finding,
    weighted_sum,
    wilson,
)
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


def test_the_intervals_are_of_95_percent() -> None:
    assert pytest.approx(norm.ppf(0.975), rel=1e-15) == Z


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


def hits(*pattern: tuple[int, bool]) -> Rate:
    """Runs of successes and failures, one after the other."""
    return Rate.of(torch.cat([torch.full((n,), value) for n, value in pattern]))


def test_mcnemar_is_a_coin_toss_over_the_images_that_differ() -> None:
    """Agresti (2013), table 11.1: 150 against 86 of 1,600 change sides; and twice P(at most 1 of 8 heads)."""
    before = hits((150, True), (86, False), (794, True), (570, False))
    after = hits((150, False), (86, True), (794, True), (570, False))
    assert mcnemar(before, after) == pytest.approx(3.7e-5, rel=0.05)
    assert mcnemar(hits((7, True), (1, False)), hits((7, False), (1, True))) == pytest.approx(2 * 9 / 256)
    assert mcnemar(before, before) == 1.0


@pytest.mark.parametrize(
    ("lost", "won"), [(0, 1), (1, 1), (0, 9), (3, 4), (12, 40), (512, 512), (430, 571), (1900, 40)]
)
def test_mcnemar_is_the_binomial_test(lost: int, won: int) -> None:
    both = hits((lost, True), (won, False)), hits((lost, False), (won, True))
    assert mcnemar(*both) == pytest.approx(binomtest(lost, lost + won).pvalue, rel=1e-9, abs=1e-300)


def test_a_paired_change_is_narrower_than_two_rates_would_say() -> None:
    """Bonett and Price: b = 150 lost, c = 86 won of 1,600 gives -.04 [-.059, -.021] (Agresti: Wald -.059, -.021)."""
    before = hits((150, True), (86, False), (794, True), (570, False))
    after = hits((150, False), (86, True), (794, True), (570, False))
    assert paired_change(before, after) == pytest.approx((-0.04, -0.0588, -0.0211), abs=5e-4)
    value, low, high = paired_change(before, before)
    assert value == 0
    assert low < 0 < high
    assert high - low < 0.01


def test_paired_comparisons_want_the_same_images() -> None:
    with pytest.raises(ValueError, match="the same images"):
        mcnemar(hits((3, True)), hits((4, True)))
    with pytest.raises(ValueError, match="the same images"):
        paired_change(Rate(1, 2), Rate(1, 2))


def test_change_rows_hold_the_change_and_its_p_value() -> None:
    before, after = hits((8, True), (2, False)), hits((6, True), (4, False))
    change, p = change_findings("change", "purified", "c_acc", before, after)
    assert (change.metric, change.value, change.n) == ("c_acc_change", pytest.approx(-0.2), 10)
    assert (p.metric, p.value) == ("c_acc_mcnemar_p", 0.5)


class TestExcess:
    """The bootstrap over draws and images."""

    @staticmethod
    def draws(*rates: float, n: int = 400, seed: int = 0) -> list[Rate]:
        rng = torch.Generator().manual_seed(seed)
        return [Rate.of(torch.rand(n, generator=rng) < rate) for rate in rates]

    def test_one_draw_gives_the_interval_of_two_independent_proportions(self) -> None:
        [a], [b] = self.draws(0.6, n=1000), self.draws(0.3, n=1000, seed=1)
        value, low, high = excess([a], [b])
        error = math.sqrt(a.value * (1 - a.value) / 1000 + b.value * (1 - b.value) / 1000)
        assert value == pytest.approx(a.value - b.value)
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)

    def test_draws_that_differ_widen_it(self) -> None:
        """Three retunings at 30, 60 and 90% say far less about the next one than three at 60%."""
        control = self.draws(0.05, seed=9)
        agree, differ = (excess(self.draws(*r), control) for r in ((0.6, 0.6, 0.6), (0.3, 0.6, 0.9)))
        assert agree[2] - agree[1] < 0.12
        assert differ[2] - differ[1] > 0.4

    def test_few_draws_are_not_too_certain(self) -> None:
        """The standard error of a mean of k draws is s / sqrt(k), s over k - 1: the plain bootstrap falls short."""
        sure = [hits((round(1000 * r), True), (1000 - round(1000 * r), False)) for r in (0.4, 0.5, 0.6)]
        _, low, high = excess(sure, [hits((1000, False))] * 3)
        expected = 1.96 * math.sqrt(0.1**2 / 3 + 0.5 * 0.5 / 1000 * 0.5)
        assert (high - low) / 2 == pytest.approx(expected, rel=0.2)

    def test_a_control_of_one_draw_spreads_as_the_others_do(self) -> None:
        """Three draws between 30 and 70% say how far a single one may be off."""
        real = self.draws(0.3, 0.5, 0.7, n=1000)
        [once] = self.draws(0.5, n=1000, seed=5)
        three, one = excess(real, [once, once, once]), excess(real, [once])
        assert one[2] - one[1] > 1.5 * (three[2] - three[1])

    def test_blocks_change_nothing_but_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, control = self.draws(0.6, 0.5, 0.4), self.draws(0.1)
        whole = excess(real, control)
        monkeypatch.setattr("bdaudit.report.statistics.BLOCK", 400 * 300)
        parts = excess(real, control)
        assert parts[0] == whole[0]
        assert parts[1:] == pytest.approx(whole[1:], abs=0.02)

    def test_pairing_counts_what_both_sides_share_once(self) -> None:
        """Against itself, on the same images and draws, nothing exceeds anything, for sure."""
        same = self.draws(0.3, 0.5, 0.7)
        assert excess(same, same, paired=True) == (0, 0, 0)
        _, low, high = excess(same, same)
        assert low < 0 < high

    def test_it_covers_the_truth_as_often_as_it_says(self) -> None:
        """Of a hundred repetitions with a true excess of 30 points, some 95 intervals hold it (8 draws)."""
        truth = torch.Generator().manual_seed(3)
        held = 0
        for i in range(100):
            levels = (0.5 + 0.08 * torch.randn(8, generator=truth)).tolist()
            _, low, high = excess(self.draws(*levels, n=300, seed=2 * i), self.draws(*[0.2] * 8, n=300, seed=2 * i + 1))
            held += low <= 0.3 <= high
        assert 87 <= held <= 99

    def test_the_row_names_the_control_and_counts_images_and_draws(self) -> None:
        row = excess_finding("retune", self.draws(0.6, 0.5, 0.4), self.draws(0.1), "reference", paired=True)
        assert (row.subject, row.metric, row.variant) == ("purified", "excess", "over reference")
        assert (row.n, row.seeds) == (400, 3)
        assert row.low is not None
        assert row.low <= row.value


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [  # Newcombe (1998), Interval estimation for the difference between independent proportions, table II, method 10
        (Rate(56, 70), Rate(48, 80), 0.0524, 0.3339),
        (Rate(9, 10), Rate(3, 10), 0.1705, 0.8090),
        (Rate(6, 7), Rate(2, 7), 0.0582, 0.8062),
        (Rate(5, 56), Rate(0, 29), -0.0381, 0.1926),
        (Rate(0, 10), Rate(0, 20), -0.1611, 0.2775),
        (Rate(10, 10), Rate(0, 20), 0.6791, 1.0),
    ],
)
def test_a_difference_of_rates_has_newcombes_interval(a: Rate, b: Rate, low: float, high: float) -> None:
    """It keeps a width where every image agrees, as a bootstrap would not."""
    assert weighted_sum([(1, a), (-1, b)]) == pytest.approx((a.value - b.value, low, high), abs=6e-5)


def test_a_weighted_sum_of_one_rate_has_that_rates_interval() -> None:
    low, high = wilson(10, 100)
    assert weighted_sum([(1, Rate(10, 100))]) == pytest.approx((0.1, low, high))
    assert weighted_sum([(-2, Rate(10, 100))]) == pytest.approx((-0.2, -2 * high, -2 * low))
