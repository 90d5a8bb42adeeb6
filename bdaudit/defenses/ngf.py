"""NGF: natural gradient fine-tuning."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.kfac import Kfac
from bdaudit.training.loop import in_steps, tune


class NGF(Tuning):
    """Fine-tune with natural gradients in the head, which leave the sharp minimum that a backdoor sits in.

    Karim et al., 2023 (NGF): w <- w - lr F^-1 grad CE(f(x), y), F the head's Fisher information by K-FAC; as in the
    released code, the layers before it take plain SGD steps.
    """

    name = "ngf"
    presets = {
        "cifar10": {"lr": 0.015, "epochs": 100},
        "gtsrb": {"lr": 0.05, "epochs": 100},
        "tiny-imagenet": {"lr": 0.002, "epochs": 20},
    }

    epochs: int = option(60, "passes over the clean pool", cite="NGF: 500 steps of 128; FST B.3: 100 epochs", ge=1)
    lr: float = option(
        0.015, "learning rate, a tenth after 35% of the steps and a hundredth after 75%", cite="FST B.3; NGF: .01", gt=0
    )
    damping: float = option(1e-3, "added to the Fisher's eigenvalues", cite="NGF", gt=0)
    kl_clip: float = option(1e-2, "squared length of a step in the Fisher's metric, at most", cite="NGF", gt=0)
    stat_decay: float = option(0.95, "decay of the running means of the Fisher's factors", cite="NGF", ge=0, lt=1)
    weight_decay: float = option(1e-4, "SGD's weight decay", cite="NGF", ge=0)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        recipe = self.recipe(
            clean,
            weight_decay=self.weight_decay,
            schedule=in_steps(0.35, 0.75),
            kfac=Kfac(damping=self.damping, kl_clip=self.kl_clip, decay=self.stat_decay),
        )
        return tune(model, clean, recipe, rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [NGF]
