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
    total = below = above = 0.0
    for weight, (value, low, high) in terms:
        to_low, to_high = weight * (value - low), weight * (high - value)
        down, up = (to_low, to_high) if weight > 0 else (to_high, to_low)
        total, below, above = total + weight * value, below + down**2, above + up**2
    return total, total - math.sqrt(below), total + math.sqrt(above)
