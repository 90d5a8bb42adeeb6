"""Intervals for rates, and how many images a bound needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import norm

from bdaudit.report.schema import Finding, Subject
from bdaudit.training.metrics import Rate

Z = float(norm.ppf(0.975))
"""Two-sided 95%."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95% Wilson score interval for `successes` out of n (0 of 50 is compatible with 7.1%).

    successes may be fractional: the mean over several draws evaluated on the same n images.
    """
    if n == 0:
        return 0.0, 1.0
    z, p = Z, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def images_needed(bound: float, rate: float = 0.0) -> int | None:
    """Count the images over which `rate` must be seen before the interval's upper end reaches down to `bound`.

    The Wilson score inverts to n = z^2 bound (1 - bound) / (bound - rate)^2. None where the rate lies too close
    below the bound, or above it, for any practical number.
    """
    if bound - rate < 1e-3:
        return None
    return math.ceil(Z**2 * bound * (1 - bound) / (bound - rate) ** 2)


def rate_finding(probe: str, subject: Subject, metric: str, rates: Rate | Sequence[Rate], variant: str = "") -> Finding:
    """Make the row of a rate measured once, or once per seed on the same images.

    The interval is over the images (n is NOT multiplied by the seeds, whose images are the same);
    the spread over seeds stands apart.
    """
    rates = [rates] if isinstance(rates, Rate) else list(rates)
    n = rates[0].n
    if n == 0:
        raise ValueError(f"{probe}.{metric}: a rate over no images")
    value = statistics.fmean(r.value for r in rates)
    low, high = wilson(statistics.fmean(r.successes for r in rates), n)
    return Finding(
        probe=probe,
        subject=subject,
        metric=metric,
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=n,
        seeds=len(rates),
        spread=statistics.stdev(r.value for r in rates) if len(rates) > 1 else None,
        variant=variant,
    )
