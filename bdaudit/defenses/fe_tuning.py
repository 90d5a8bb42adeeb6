"""FE-tuning: feature-extractor tuning."""

from collections.abc import Iterable

import torch

from bdaudit.defenses.base import Defense, Redrawing, lack_of_features, reinitialise
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class FETuning(Redrawing):
    """Freeze a redrawn head and tune the features until they fit it, which shifts them at some cost in accuracy.

    Min et al., NeurIPS 2023, section 3.2 and B.3: min over the extractor of CE(f(x), y), the head random and fixed.
    """

    name = "fe-tuning"

    def obstacle(self, model: Classifier) -> str:
        return lack_of_features(model)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        reinitialise(model.head, rng)
        model.head.requires_grad_(False)
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FETuning]
