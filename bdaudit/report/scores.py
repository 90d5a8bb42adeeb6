"""Distributions of scores as one SVG file that stands alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

BINS = 40
COLORS = ("#4477aa", "#ccbb44", "#aa3377", "#228833")
"""Paul Tol's bright scheme, which the colour-blind can tell apart; dashes tell the lines apart as well."""
DASHES = ("-", "--", "-.", ":")


def score_chart(groups: Mapping[str, Sequence[float]], threshold: float = 0.5) -> str:
    """Draw how the scores in [0, 1] of each group are distributed, as shares of the group, with the threshold.

    At most four groups; those without scores are left out. The groups' names are our own, not a stranger's.
    """
    import matplotlib
    from matplotlib.figure import Figure

    edges = [i / BINS for i in range(BINS + 1)]
    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "bdaudit", "font.size": 10})
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for (name, scores), color, dash in zip(groups.items(), COLORS, DASHES, strict=False):
            if scores:
                weights = [1 / len(scores)] * len(scores)
                label = f"{name} ({len(scores)})"
                axes.hist(
                    scores, edges, weights=weights, histtype="step", color=color, linestyle=dash, lw=1.6, label=label
                )
        axes.axvline(threshold, color="#666666", lw=0.8)
        axes.set_xlim(0, 1)
        axes.set_yscale("symlog", linthresh=0.05)  # a few rows on the wrong side are what one looks for
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.01, 0.05, 0.1, 0.5, 1], ["0", "1%", "5%", "10%", "50%", "100%"])
        axes.set_xlabel("probability of being flagged")
        axes.set_ylabel("share of images")
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
