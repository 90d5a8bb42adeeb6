"""Intervals of sums of estimates: light enough for a report that is only read."""

from __future__ import annotations

import math
from collections.abc import Iterable

Estimate = tuple[float, float, float]
"""A value and its interval: (value, low, high)."""


def mover(terms: Iterable[tuple[float, Estimate]]) -> Estimate:
    """Add up independent estimates, [(weight, estimate), ...]: the sum, with an interval from theirs.

    MOVER, Zou and Donner, Statistics in Medicine 27 (2008), p. 1693; for the difference of two rates with Wilson
    intervals it is Newcombe's (Statistics in Medicine 17 (1998), p. 873, method 10).
    """
    values, below, above = [], [], []
    for weight, (value, low, high) in terms:
        ends = weight * (value - low), weight * (high - value)
        down, up = ends if weight > 0 else reversed(ends)
        values.append(weight * value)
        below.append(down)
        above.append(up)
    total = sum(values)
    return total, total - math.hypot(*below), total + math.hypot(*above)  # of huge figures too, in a hostile report
