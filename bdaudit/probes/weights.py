"""Weights: how far each layer went."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from bdaudit.contract import option
from bdaudit.errors import one_line
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.probes.base import Probe, subjects
from bdaudit.report.schema import Exhibit, Finding, Measurement, Subject
from bdaudit.training.paths import obstacle

Lengths = dict[str, tuple[float, float]]
"""Parameter -> squared Frobenius norms of its change and of what it was before."""


class Weights(Probe):
    """Measure how far purification moved each layer from the backdoored weights.

    D3, section 4.3 and Fig. 3 (c), by layer instead of by entry: ||W - W_suspect||_F / ||W_suspect||_F, a layer's
    tensors taken as one vector. It shows where a defense worked, and no more: an exact purification can be a short
    way (EP moved a digits model by 8%). A reference shows how far apart two such networks usually lie.
    """

    name = "weights"

    layers: int = option(48, "layers told apart at most; of a deeper network, its blocks", ge=2)

    def measure(self, suspect: Classifier, purified: Classifier, reference: Classifier | None = None) -> Measurement:
        findings: list[Finding] = []
        curves: dict[str, list[float]] = {}
        notes, said = [], []
        dimensions = {name: p.ndim for name, p in suspect.body.named_parameters()}
        names, blocks = list(dimensions), blocks_of(dimensions, self.layers)
        head = [name for name in names if name.startswith(f"{suspect.head_name}.")]
        parts = {"": names, "body": [name for name in names if name not in head], "head": head}
        if reference is None:
            notes.append("weights: no reference, so nothing shows how far apart two such networks usually lie")
        for subject, model in subjects(purified=purified, reference=reference).items():
            if reason := obstacle(suspect, model):
                notes.append(f"weights: no distance of the {subject} from the suspect: {reason}")
                continue
            moved = lengths(suspect, model)
            for part, belonging in parts.items():
                if belonging:
                    findings.append(self._finding(subject, part, relative(moved, belonging)))
            curves[subject] = [relative(moved, belonging) for belonging in blocks.values()]
            total = math.sqrt(sum(change for change, _ in moved.values()))
            farthest = max(zip(curves[subject], blocks, strict=True))[1]
            said.append(f"The {subject} model lies {total:.3g} from the suspect; {farthest} moved most.")
        chart = Exhibit(
            probe=self.name,
            metric="distance",
            title="How far each layer moved from the suspect",
            caption="Frobenius norm of a layer's change, in parts of the layer's own norm before. "
            f"{' '.join(said)} Biases and normalisation count with the layer registered before them; running "
            "statistics are no weights. No images were used.",
            x_label="from input to output",
            y_label="relative distance",
            x=[float(i) for i in range(len(blocks))],
            x_names=list(blocks),
            curves=curves,
        )
        return Measurement(findings=findings, exhibits=[chart] if curves else [], notes=notes)

    def _finding(self, subject: Subject, part: str, value: float) -> Finding:
        return Finding(
            probe=self.name,
            subject=subject,
            metric="distance",
            value=value,
            low=None,
            high=None,
            n=None,
            variant=part,
        )


def lengths(before: Classifier, after: Classifier) -> Lengths:
    """Measure, parameter by parameter, how far it moved and how long it was."""
    moved, there = {}, dict(after.body.named_parameters())
    for name, old in before.body.named_parameters():
        was, now = (p.detach().double().cpu() for p in (old, there[name]))
        moved[name] = float((now - was).square().sum()), float(was.square().sum())
    return moved


def relative(moved: Lengths, names: Iterable[str]) -> float:
    """Divide the length of the change by the length before; what was nothing before has moved by its whole, 1."""
    change, before = (math.sqrt(sum(squares)) for squares in zip(*(moved[name] for name in names), strict=True))
    return change / before if before else float(change > 0)


def blocks_of(dimensions: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """Gather parameters by layer, or by the smallest blocks of layers of which there are at most so many.

    What has one dimension (a bias, a normalisation's scale) goes to the layer before it: scales start at one and
    hardly move in parts of their length, so that by themselves they would make every second layer a dip.
    """
    paths: dict[str, list[str]] = {}
    path: list[str] = []
    for name, dimension in dimensions.items():
        if dimension > 1 or not path:
            path = one_line(name.rpartition(".")[0] or name, 60).split(".")
        paths[name] = path
    for depth in range(max(map(len, paths.values())), 0, -1):
        blocks: dict[str, list[str]] = {}
        for name, path in paths.items():
            blocks.setdefault(".".join(path[:depth]), []).append(name)
        if len(blocks) <= most:
            break
    return blocks


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [Weights]
