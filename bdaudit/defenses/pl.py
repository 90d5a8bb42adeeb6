"""PL: partition-losses fine-tuning."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.partition import partition


class PL(Tuning):
    """Learn the clean images and unlearn the flagged ones in the same step.

    PL, Algorithm 1: min E_benign CE(f(x), y) - alpha E_malicious CE(f(z), t), by Adam, with equal batches
    from both pools; the malicious label is always the target t.
    """

    name = "pl"
    presets = {"tiny-imagenet": {"batch_size": 32}}

    alpha: float = option(0.2, "weight of the malicious loss", cite="PL section 5 (grid .1 to .5)", ge=0)
    lr: float = option(5e-4, "Adam's learning rate", cite="ours: benchmarks/results/pl_sweep.json", gt=0)
    epochs: int = option(10, "passes over the clean pool", cite="PL B", ge=1)
    cap: bool = option(False, "stop ascending on images whose malicious loss exceeds log K", cite="ours, cards 8.5")

    def purify(self, model: Classifier, clean: Pool, malicious: Pool, rng: torch.Generator) -> Classifier:
        recipe = self.recipe(clean, optimizer="adam")
        return partition(model, clean, malicious, recipe, rng, alpha=self.alpha, cap=self.cap, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [PL]
