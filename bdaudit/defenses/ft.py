"""FT: vanilla fine-tuning."""

from collections.abc import Iterable

import torch

from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class FT(Tuning):
    """Fine-tune every weight on clean images; the baseline that leaves most backdoors in place.

    FST section 3 and B.3: min CE(f(x), y) by SGD with momentum .9 and no weight decay.
    """

    name = "ft"

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FT]
