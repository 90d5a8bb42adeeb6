"""FT-init: fine-tuning from a redrawn head."""

from collections.abc import Iterable

import torch

from bdaudit.defenses.base import Defense, Redrawing, reinitialise
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class FTInit(Redrawing):
    """Redraw the head and fine-tune every weight; the new head tends to find its old place again.

    Min et al., NeurIPS 2023, section 3.2 and B.3: min CE(f(x), y) from a random head.
    """

    name = "ft-init"

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        reinitialise(model.head, rng)
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FTInit]
