"""Intervals for rates and for their differences, and how many images a bound needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bdaudit.report.intervals import Estimate, mover
from bdaudit.report.schema import Finding, Subject
from bdaudit.training.metrics import Rate

Z = statistics.NormalDist().inv_cdf(0.975)
"""Two-sided 95%."""

Z_ONE_SIDED = statistics.NormalDist().inv_cdf(0.95)
"""One-sided 95%: where only one side of a bound is asked after."""

BLOCK = 1 << 22
REPLICATES = 2000
"""Of a bootstrap: its ends then move by about a tenth of a standard error from seed to seed."""


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


def weighted_sum(terms: Sequence[tuple[float, Rate]]) -> Estimate:
    """Add up rates, [(weight, rate), ...]: the sum, and its 95% interval from the rates' Wilson intervals.

    Unlike a bootstrap it keeps its width where all images agree. The rates are taken as independent: on the same
    images, that mostly go the same way, the interval of a difference is wider than it need be.
    """
    return mover((weight, (rate.value, *wilson(rate.successes, rate.n))) for weight, rate in terms)


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


def mcnemar(before: Rate, after: Rate) -> float:
    """Exact two-sided p-value that two models do equally well on the same images (McNemar 1947).

    Only images on which they differ count; under the hypothesis each falls to either side like a coin.
    """
    lost, won = _discordant(before, after)
    tosses = lost + won
    tail = ways = 1  # of no head, then of one more each time: whole numbers, so that nothing is lost
    for heads in range(1, min(lost, won) + 1):
        ways = ways * (tosses - heads + 1) // heads
        tail += ways
    return min(1.0, 2 * tail / (1 << tosses))


def paired_change(before: Rate, after: Rate, z: float = Z) -> tuple[float, float, float]:
    """Change of a rate over the same images, with its 95% interval (Bonett and Price 2012, Eq. 7).

    z: standard errors on each side; `Z_ONE_SIDED` makes each end a one-sided 95% bound.
    """
    lost, won = _discordant(before, after)
    n = before.n
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    centre = p_won - p_lost
    half = z * math.sqrt((p_won + p_lost - centre**2) / (n + 2))
    value = (won - lost) / n
    return value, max(-1.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def change_findings(probe: str, subject: Subject, metric: str, before: Rate, after: Rate) -> list[Finding]:
    """Make the rows of a before/after comparison: the change with its interval, and McNemar's p-value."""
    value, low, high = paired_change(before, after)
    n = before.n
    return [
        Finding(probe=probe, subject=subject, metric=f"{metric}_change", value=value, low=low, high=high, n=n),
        Finding(
            probe=probe, subject=subject, metric=f"{metric}_mcnemar_p",
            value=mcnemar(before, after), low=None, high=None, n=n,
        ),
    ]  # fmt: skip


def excess(
    real: Sequence[Rate], control: Sequence[Rate], *, paired: bool = False, seed: int = 0
) -> tuple[float, float, float]:
    """By how much a mean rate over draws exceeds a control's, with a 95% bootstrap interval over draws and images.

    Two levels are resampled: the draws (each a retuning of its own) and the images (the same for all draws of one
    side). The spread of k draws is scaled by sqrt(k / (k - 1)), without which few draws look too certain (Rao and
    Wu 1988). A single draw tells nothing of that spread, so it is taken to spread as the other side's do, if that has
    several; else the interval is over images alone. paired: both sides were measured on the same images and from the
    same draws, which are then resampled together as far as they go.
    """
    rng = np.random.default_rng(seed)
    sides = [np.stack([np.asarray(r.hits, dtype=np.float32) for r in rates]) for rates in (real, control)]
    value = float(sides[0].mean() - sides[1].mean())
    # In blocks, since a weight for each image and replicate would take gigabytes where images are many.
    block = max(1, BLOCK // max(side.shape[1] for side in sides))
    difference = np.concatenate(
        [_differences(sides, min(block, REPLICATES - i), paired, rng) for i in range(0, REPLICATES, block)]
    )
    if 1 in (counts := [len(side) for side in sides]) and max(counts) > 1:
        several = sides[counts.index(max(counts))].mean(1)
        difference = difference + rng.normal(0, several.std(ddof=1), REPLICATES)
    low, high = np.quantile(difference, (0.025, 0.975))
    return value, min(float(low), value), max(float(high), value)


def excess_finding(
    probe: str, real: Sequence[Rate], control: Sequence[Rate], over: str, *, paired: bool = False
) -> Finding:
    """Make the row of the purified model's excess over a control, named by `over`."""
    value, low, high = excess(real, control, paired=paired)
    return Finding(
        probe=probe,
        subject="purified",
        metric="excess",
        value=value,
        low=low,
        high=high,
        n=real[0].n,
        seeds=len(real),
        variant=f"over {over}",
    )


def _differences(
    sides: Sequence[NDArray[np.float32]], count: int, paired: bool, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Resample both sides so many times, and return by how much the first exceeds the second."""
    images, draws = ([_weights(side.shape[axis], count, rng) for side in sides] for axis in (1, 0))
    for weights in (images, draws):
        if paired and weights[0].shape == weights[1].shape:
            weights[1] = weights[0]
    first, second = (_replicate(*parts) for parts in zip(sides, images, draws, strict=True))
    return first - second


def _weights(n: int, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """How often each of n things is drawn in each replicate, as shares: (count, n)."""
    # Counting draws takes a quarter of what a multinomial takes, which is a chain of n binomials a replicate.
    drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
    counts: NDArray[np.float32] = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float32)
    return counts / np.float32(n)


def _replicate(
    hits: NDArray[np.float32], images: NDArray[np.float32], draws: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Mean rate in each replicate, from hits (draws, images) and the weights of both."""
    rates = images @ hits.T
    centre: NDArray[np.float32] = rates.mean(1)
    k = len(hits)
    if k == 1:
        return centre
    spread: NDArray[np.float32] = (draws * rates).sum(1) - centre
    scaled: NDArray[np.float32] = centre + np.float32(math.sqrt(k / (k - 1))) * spread
    return scaled


def _discordant(before: Rate, after: Rate) -> tuple[int, int]:
    """Count the images that only the first, and only the second, got."""
    if before.hits is None or after.hits is None or len(before.hits) != len(after.hits):
        raise ValueError("a paired comparison wants hits over the same images")
    return int((before.hits & ~after.hits).sum()), int((after.hits & ~before.hits).sum())
