"""Super-FT: super-fine-tuning."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class SuperFT(Tuning):
    """Fine-tune at a high learning rate to forget the backdoor, then at a low one to recover the accuracy.

    Sha et al., 2022 (arXiv 2212.09067): two phases of equal length; in each the rate rises in a straight line from
    the base to the phase's peak, and falls back. No code was released: the three rates are quoted from memory of
    the paper, unverified, and the length is ours.
    """

    name = "super-ft"

    lr: float = option(0.1, "peak of the first phase: forget", cite="Super-FT, unverified (cards 8.12)", gt=0)
    lr_recover: float = option(
        1e-3, "peak of the second phase: recover", cite="Super-FT, unverified (cards 8.12)", gt=0
    )
    lr_base: float = option(3e-4, "where both phases start and end", cite="Super-FT, unverified (cards 8.12)", gt=0)

    def rate(self, done: float) -> float:
        """Learning rate after a share of all steps, in [0, 1]."""
        peak = self.lr if done < 0.5 else self.lr_recover
        height = 1 - abs(4 * (done % 0.5) - 1)
        return self.lr_base + height * (peak - self.lr_base)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        recipe = self.recipe(clean, schedule=lambda done: self.rate(done) / self.lr)
        return tune(model, clean, recipe, rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [SuperFT]
