"""EP: exact purification, an oracle."""

from collections.abc import Iterable

import torch

from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning, stamped
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class EP(Tuning):
    """Fine-tune on clean images, some of which carry the real trigger with their TRUE labels (oracle).

    Superficial Safety, section 3.1 and B.2 ("EU"): the trigger on 10% of the tuning images, 20 epochs.
    """

    name = "ep"

    share: float = option(0.1, "share of tuning images that get the trigger", cite="SS B.2", gt=0, le=1)

    def purify(self, model: Classifier, clean: Pool, trigger: Trigger, rng: torch.Generator) -> Classifier:
        exact = stamped(clean, [trigger], self.share, rng)
        return tune(model, exact, self.recipe(exact), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [EP]
