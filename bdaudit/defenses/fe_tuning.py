"""FE-tuning: feature-extractor tuning."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning, lack_of_features, reinitialise
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class FETuning(Tuning):
    """Freeze a redrawn head and tune the features until they fit it, which shifts them at some cost in accuracy.

    Min et al., NeurIPS 2023, section 3.2 and B.3: min over the extractor of CE(f(x), y), the head random and fixed.
    """

    name = "fe-tuning"
    presets = {
        "cifar10": {"lr": 0.01, "epochs": 100},
        "gtsrb": {"lr": 0.01, "epochs": 100},
        "cifar100": {"lr": 0.005, "epochs": 20, "batch_size": 32},
        "tiny-imagenet": {"lr": 0.005, "epochs": 20, "batch_size": 32},
    }

    epochs: int = option(100, "passes over the clean pool", cite="FST B.3: 100 CIFAR-10 and GTSRB, 20 others", ge=1)

    def obstacle(self, model: Classifier) -> str:
        return lack_of_features(model)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        reinitialise(model.head, rng)
        model.head.requires_grad_(False)
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FETuning]
