"""FT-SAM: fine-tuning with sharpness-aware minimisation."""

from collections.abc import Iterable

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune
from bdaudit.training.sam import Sam


class FTSAM(Tuning):
    """Fine-tune towards a flat minimum, which shrinks the weights that the backdoor lives on.

    Zhu et al., ICCV 2023: min over w of max over e of CE(f(x; w + e), y), with ||e / |w|| <= rho (adaptive), every
    weight tuned. The clean pool is the paper's class-balanced subset as far as it is balanced.
    """

    name = "ft-sam"
    presets = {
        "cifar10": {"rho": 2.0, "label_smoothing": 0.1, "epochs": 100, "batch_size": 256},
        "gtsrb": {"rho": 8.0, "label_smoothing": 0.0, "epochs": 50, "batch_size": 256},
        "tiny-imagenet": {"rho": 8.0, "label_smoothing": 0.0, "epochs": 100, "batch_size": 256},
        "fst-cifar10": {"rho": 8.0, "label_smoothing": 0.0, "weight_decay": 0.0, "epochs": 100},
        "fst-gtsrb": {"rho": 10.0, "label_smoothing": 0.0, "weight_decay": 0.0, "epochs": 100},
        "fst-tiny-imagenet": {"rho": 6.0, "lr": 0.001, "label_smoothing": 0.0, "weight_decay": 0.0, "batch_size": 32},
        "ss-cifar10": {"rho": 1.0, "lr": 0.01, "label_smoothing": 0.0, "weight_decay": 0.0, "epochs": 20},
        "ss-tiny-imagenet": {"rho": 0.5, "lr": 0.001, "label_smoothing": 0.0, "weight_decay": 0.0, "epochs": 20},
    }

    rho: float = option(
        -1.0,
        "radius of the neighbourhood; -1: 2, or .05 without adaptive",
        cite="FT-SAM: 2 CIFAR-10, 8 GTSRB and Tiny; FST B.3: 8 and 10",
        ge=-1,
    )
    adaptive: bool = option(True, "measure the radius in shares of each weight", cite="BackdoorBench; cards 8.8")
    label_smoothing: float = option(
        0.1, "share of each label spread over all", cite="FT-SAM: .1 CIFAR-10, 0 others", ge=0, lt=1
    )
    weight_decay: float = option(5e-4, "SGD's weight decay", cite="BackdoorBench", ge=0)

    @field_validator("rho")
    @classmethod
    def _a_radius_or_the_usual_one(cls, rho: float) -> float:
        if -1 < rho < 0:
            raise ValueError("rho is a radius of 0 or more, or -1 for the usual one")
        return rho

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        rho = self.rho if self.rho >= 0 else 2.0 if self.adaptive else 0.05

        def smoothed(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(model(x), y, label_smoothing=self.label_smoothing)

        recipe = self.recipe(clean, sam=Sam(rho, adaptive=self.adaptive), weight_decay=self.weight_decay)
        return tune(model, clean, recipe, rng, loss=smoothed, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FTSAM]
