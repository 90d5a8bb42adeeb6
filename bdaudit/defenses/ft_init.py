"""FT-init: fine-tuning from a redrawn head."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning, reinitialise
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class FTInit(Tuning):
    """Redraw the head and fine-tune every weight; the new head tends to find its old place again.

    Min et al., NeurIPS 2023, section 3.2 and B.3: min CE(f(x), y) from a random head.
    """

    name = "ft-init"
    presets = {
        "cifar10": {"lr": 0.01, "epochs": 100},
        "gtsrb": {"lr": 0.01, "epochs": 100},
        "cifar100": {"lr": 0.005, "epochs": 20, "batch_size": 32},
        "tiny-imagenet": {"lr": 0.005, "epochs": 20, "batch_size": 32},
    }

    epochs: int = option(100, "passes over the clean pool", cite="FST B.3: 100 CIFAR-10 and GTSRB, 20 others", ge=1)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        reinitialise(model.head, rng)
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FTInit]
