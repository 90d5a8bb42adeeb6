"""Distributions of scores as one SVG file that stands alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40
COLORS = ("#4477aa", "#ccbb44", "#aa3377", "#228833")
"""Paul Tol's bright scheme, which the colour-blind can tell apart; dashes tell the lines apart as well."""
DASHES = ("-", "--", "-.", ":")


def score_chart(groups: Mapping[str, Sequence[float]], threshold: float = 0.5) -> str:
    """Draw how the scores in [0, 1] of each group are distributed, as shares of the group, with the threshold.

    At most four groups; those without scores are left out. The groups' names are our own, not a stranger's.
    """
    with _drawn(1) as (panels, buffer):
        _distribution(panels[0], groups, 0.0, 1.0, "probability of being flagged")
        panels[0].axvline(threshold, color="#666666", lw=0.8)
    return buffer.getvalue()


def score_charts(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw several kinds of scores, on scales of their own, for the same groups; names and limits as above."""
    with _drawn(len(scores)) as (panels, buffer):
        for axes, (name, groups) in zip(panels, scores.items(), strict=True):
            values = [value for group in groups.values() for value in group]
            low, high = min(values), max(values)
            _distribution(axes, groups, low, high if high > low else low + 1, name)
    return buffer.getvalue()


def epoch_chart(curves: Mapping[str, Sequence[float]]) -> str:
    """Draw shares in [0, 1] by epoch, from 1; at most four curves."""
    with _drawn(1) as (panels, buffer):
        for (name, shares), color, dash in zip(curves.items(), COLORS, DASHES, strict=False):
            panels[0].plot(range(1, len(shares) + 1), shares, color=color, linestyle=dash, lw=1.6, label=name)
        panels[0].set_ylim(0, 1.02)
        panels[0].set_xlabel("epoch")
        panels[0].set_ylabel("share")
    return buffer.getvalue()


@contextmanager
def _drawn(panels: int) -> Iterator[tuple[list[Axes], io.StringIO]]:
    """Open a figure of panels that no configuration of the machine can change; it is in the buffer afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "bdaudit", "font.size": 10})
        figure = Figure(figsize=(6.4, 0.8 + 2.8 * panels), layout="constrained")
        axes = figure.subplots(panels, squeeze=False)[:, 0].tolist()
        yield axes, buffer
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8
        )
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})


def _distribution(axes: Axes, groups: Mapping[str, Sequence[float]], low: float, high: float, name: str) -> None:
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    for (group, scores), color, dash in zip(groups.items(), COLORS, DASHES, strict=False):
        if scores:
            weights = [1 / len(scores)] * len(scores)
            label = f"{group} ({len(scores)})"
            axes.hist(scores, edges, weights=weights, histtype="step", color=color, linestyle=dash, lw=1.6, label=label)
    axes.set_xlim(low, high)
    axes.set_yscale("symlog", linthresh=0.05)  # a few rows on the wrong side are what one looks for
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.01, 0.05, 0.1, 0.5, 1], ["0", "1%", "5%", "10%", "50%", "100%"])
    axes.set_xlabel(name)
    axes.set_ylabel("share of images")
