"""NC: Neural Cleanse, trigger inversion and unlearning."""

from collections.abc import Iterable
from typing import Literal

import torch

from bdaudit.attacks.triggers import BlendTrigger
from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified, Tuning, stamped
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.inversion import cleanse_measurement
from bdaudit.runtime import spawn
from bdaudit.training.inversion import Search, invert
from bdaudit.training.loop import tune
from bdaudit.training.progress import say


class NC(Tuning):
    """Invert a trigger for every class, and unlearn those that are anomalously small.

    Wang et al., S&P 2019, detection and unlearning (cards 2.14): min over mask and pattern of CE(f((1 - m) x + m p), t)
    + cost |m|, for every class t; classes whose |m| is too small by more than two deviations are backdoored; then
    fine-tune with their triggers on 20% of the images, under the TRUE labels. A model without such a class is returned
    as it was.
    """

    name = "nc"
    quick_options = {"epochs": 1, "batch_size": 32, "steps": 10, "threshold": 0.0, "anomaly": 0.0}

    share: float = option(0.2, "share of tuning images that get an inverted trigger", cite="cards 2.14", gt=0, le=1)
    steps: int = option(
        160, "steps of the inversion, for every class", cite="ours: docs/deviations.md; NC: 1,000 checks of 31", ge=1
    )
    images: int = option(16, "images a step and class", cite="ours; NC: 32", ge=1)
    mask_lr: float = option(0.1, "Adam's learning rate for mask and pattern", cite="cards 2.14", gt=0)
    cost: float = option(1e-3, "first price of a unit of mask", cite="cards 2.14", gt=0)
    check: int = option(5, "steps between two looks at the success", cite="ours; NC: 31", ge=1)
    patience: int = option(1, "looks of one outcome after which the price changes", cite="ours; NC: 5", ge=1)
    threshold: float = option(0.99, "success that a trigger must reach", cite="cards 2.14", ge=0, le=1)
    anomaly: float = option(2.0, "anomaly index above which a class counts as backdoored", cite="cards 2.14", ge=0)
    scale: Literal["log", "linear"] = option(
        "log", "what of the masks' sizes the index is counted on", cite="ours: docs/deviations.md; NC: linear"
    )

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Purified:
        rows = clean.shuffled(rng)
        held_out, searched = rows.split(len(rows) // 4)
        found = invert(model, searched, held_out, spawn(rng), self._search())
        detected = cleanse_measurement(found, model.classes, held_out.images, self.name)
        say(detected.notes[0])
        if not found.flagged:
            return Purified(model, detected)
        triggers = [BlendTrigger(found.patterns[target], found.masks[target]) for target in found.flagged]
        exact = stamped(clean, triggers, self.share, rng)
        return Purified(tune(model, exact, self.recipe(exact), rng, what=self.name), detected)

    def _search(self) -> Search:
        return Search(
            steps=self.steps,
            batch_size=self.images,
            lr=self.mask_lr,
            cost=self.cost,
            patience=self.patience,
            check=self.check,
            threshold=self.threshold,
            anomaly=self.anomaly,
            scale=self.scale,
        )


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [NC]
