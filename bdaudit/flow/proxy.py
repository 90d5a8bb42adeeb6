"""Stand in for a trigger that nobody has: invert one from the suspect model, and say what that is worth."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from bdaudit.attacks.triggers import BlendTrigger
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.inversion import by_index, inversion_exhibit, inversion_findings, named
from bdaudit.report.proxy import ANOMALY
from bdaudit.report.schema import Exhibit, Finding
from bdaudit.training.inversion import Inversion, Search, invert
from bdaudit.training.progress import say

ORDINARY = 3
"""Classes whose inverted triggers serve as controls."""


@dataclass(frozen=True)
class Proxy:
    """Triggers inverted from the suspect, one of which may stand in for the attacker's.

    target: the class whose trigger does, None where no class stands out. named: the auditor named it, so that a
    defense may know it. rows: the clean images that were spent on the search.
    """

    inversion: Inversion
    classes: tuple[str, ...]
    target: int | None
    named: bool
    rows: Pool
    seconds: float

    def trigger(self, target: int) -> BlendTrigger:
        """Make the trigger that was found for a class."""
        return BlendTrigger(self.inversion.patterns[target], self.inversion.masks[target])

    def controls(self) -> dict[int, BlendTrigger]:
        """Make the triggers of the most ordinary classes: what inversion finds where there is no backdoor."""
        assert self.target is not None
        return {c: self.trigger(c) for c in self.inversion.ordinary(ORDINARY, besides=self.target)}

    def order(self) -> list[int]:
        """All classes, the audited one first, then by how much they stand out."""
        return by_index(self.inversion, self.target)

    def shortfall(self) -> str:
        """Say why there is nothing to test; '' where there is."""
        if self.target is not None:
            return ""
        return (
            "nothing to test: no image is flagged, no trigger is known, and no class stands out among the triggers "
            f"inverted from the model (the nearest: {self._index(self.order()[0])}, where above {ANOMALY:g} stands out); "
            "give --malicious DIR or --attack RUN, or --target N to test one class all the same"
        )

    def notes(self, model: str) -> list[str]:
        """Say in plain words what rests on the proxy, how good it is, and what it costs."""
        if self.target is None:
            return [
                "no class stands out: that is no sign of a clean model, since triggers that change the whole image a "
                "little, or each image differently, leave no small mask to be found"
            ]
        rate = self.inversion.success[self.target]
        notes = [
            "nothing is flagged and no trigger is known, so everything said here about purification and reactivation "
            f"rests on a proxy: a trigger inverted from {model} for {self._index(self.target)}, where above "
            f"{ANOMALY:g} stands out; it sends {rate.successes} of {rate.n} held-out images of other classes there",
            "what a proxy costs: the attacker's trigger may differ from it, or belong to another class, so that a pass "
            "does not clear the model; and any model has a smallest trigger for each class, so that a failure counts "
            "only if the class stands out and its trigger does more than those of ordinary classes",
        ]
        if not self.inversion.index[self.target] > ANOMALY:
            notes.append("the class that --target names does not stand out, so its trigger cannot show a backdoor")
        return notes

    def findings(self) -> list[Finding]:
        """List every class's anomaly index, mask and success on the suspect; the audited class comes first."""
        return inversion_findings(self.inversion, self.classes, self.order(), "inversion")

    def exhibit(self) -> Exhibit:
        """Show the inverted triggers, the audited class's first, and one image with each of them."""
        return inversion_exhibit(
            self.inversion,
            self.classes,
            self.order(),
            self.rows.images[:1].cpu(),
            "inversion",
            "Inverted triggers (a proxy)" if self.target is not None else "Inverted triggers",
            "The first is the audited class." if self.target is not None else "None stands out.",
        )

    def _index(self, c: int) -> str:
        return f"{named(self.classes, c)}, anomaly index {float(self.inversion.index[c]):.2f}"


def stand_in(model: Classifier, rows: Pool, target: int | None, rng: torch.Generator) -> Proxy:
    """Invert a trigger for every class; take the one of the class given, else of the most anomalous class."""
    search = Search(anomaly=ANOMALY)
    passes = model.num_classes * search.steps * search.batch_size
    say(f"nothing is flagged: inverting a trigger for each of {model.num_classes} classes ({passes:,} image passes)")
    start = time.perf_counter()
    held_out, searched = rows.split(len(rows) // 4)
    found = invert(model, searched, held_out, rng, search)
    chosen = found.target if target is None else target
    return Proxy(found, model.classes, chosen, target is not None, rows, time.perf_counter() - start)
