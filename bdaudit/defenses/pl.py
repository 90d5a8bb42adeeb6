"""PL: partition-losses fine-tuning."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import endless, tune


class PL(Tuning):
    """Learn the clean images and unlearn the flagged ones in the same step.

    PL, Algorithm 1: min E_benign CE(f(x), y) - alpha E_malicious CE(f(z), t), by Adam, with equal batches
    from both pools; the malicious label is always the target t.
    """

    name = "pl"

    alpha: float = option(0.2, "weight of the malicious loss", cite="PL section 5 (grid .1 to .5)", ge=0)
    lr: float = option(5e-4, "Adam's learning rate", cite="ours: benchmarks/results/pl_sweep.json", gt=0)
    epochs: int = option(10, "passes over the clean pool", cite="PL B", ge=1)
    cap: bool = option(False, "stop ascending on images whose malicious loss exceeds log K", cite="ours, cards 8.5")

    def purify(self, model: Classifier, clean: Pool, malicious: Pool, rng: torch.Generator) -> Classifier:
        recipe = self.recipe(clean, optimizer="adam")
        deal = endless(malicious.to(model.device), rng, recipe.augment)
        ceiling = torch.tensor(float(model.num_classes)).log().item() if self.cap else float("inf")

        def partition_loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            z, t = deal(len(x))
            # One pass over both halves: BatchNorm then sees the mixture that it will meet in use.
            on_x, on_z = model(torch.cat([x, z])).split([len(x), len(z)])
            ascent = F.cross_entropy(on_z, t, reduction="none").clamp(max=ceiling).mean()
            return F.cross_entropy(on_x, y) - self.alpha * ascent

        return tune(model, clean, recipe, rng, loss=partition_loss, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [PL]
