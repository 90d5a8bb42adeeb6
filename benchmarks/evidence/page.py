"""The page: a row a claim."""

from __future__ import annotations

from benchmarks.evidence.claims import CLAIMS
from benchmarks.evidence.results import Claim, Results

INTRODUCTION = """# Evidence: the papers' claims, and what was measured here

<!-- Written by `python -m benchmarks.evidence` from benchmarks/results/; change those, not this. -->

Of {total} claims: {counts}. FST, PL, D3 and BSD are the papers of those defenses, SS is Superficial Safety. Their figures
are on CIFAR-10 and the like with networks of full size; ours are on Fashion-MNIST, 10,000 training images and a ResNet-18
of width 16, so a claim is looked for in shape, by the rule in brackets where the paper's own figure is not the rule.

Figures are percent: of one run with the 95% Wilson interval over its images, of several the mean (least to largest). What
speaks against a claim is in italics. The commands that made each file of results are in
[benchmarks/README.md](../benchmarks/README.md); the grids that would measure them in full are in
[benchmarks/grids](../benchmarks/grids).
"""


def row(subject: Claim, results: Results) -> list[str]:
    """Lay out one claim: source, what it says, our figures, whether they bear it out, and why not."""
    parts = list(subject.parts(results))
    count = sum(part.holds for part in parts)
    if not parts:
        verdict = "not measured"
    elif count == len(parts):
        verdict = "echoed"
    else:
        verdict = f"in part ({count} of {len(parts)})" if count else "not echoed"
    figures = "<br>".join(part.text if part.holds else f"*{part.text}*" for part in parts)
    notes = [subject.cause] if parts and count < len(parts) and subject.cause else []
    notes += [subject.missing] if subject.missing else []
    return [subject.source, subject.says, figures, verdict, ". ".join(notes)]


def page(results: Results) -> str:
    """Write the whole page."""
    rows = [row(subject, results) for subject in CLAIMS]
    tally = {
        name: sum(r[3].startswith(name) for r in rows) for name in ("echoed", "in part", "not echoed", "not measured")
    }
    counts = ", ".join(f"{n} {name}" for name, n in tally.items())
    heads = ["source", "the paper's claim", "here", "echoed?", "why, or what is missing"]
    # Not tabulate: it pads every row to the longest, which here are paragraphs.
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return INTRODUCTION.format(total=len(rows), counts=counts) + "\n" + "\n".join(lines) + "\n"
