"""A defense from outside bdaudit: one class, one hook, one entry point in pyproject.toml."""

import torch

from bdaudit.defenses.base import Tuning, reinitialise
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune

BDAUDIT_HOOKSPEC = 1  # the version of bdaudit's hooks that this was written for


class HeadReset(Tuning):
    """Redraw the classification head and train it alone on clean images.

    An example, not a good defense: it keeps every backdoored feature.
    """

    name = "head-reset"

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        """Train the head from scratch; the parameters say what this defense needs."""
        model.requires_grad_(False)
        reinitialise(model.head, rng)
        model.head.requires_grad_(True)
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses():
    """Offer the class to bdaudit."""
    return [HeadReset]
