"""RNP: reconstructive neuron pruning."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Judging, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import cross_entropy, tune
from bdaudit.training.masks import Masked, obstacle, prune


class RNP(Tuning, Judging):
    """Unlearn the clean task, let masks recover it, and prune the channels that recovery does without.

    Li et al., ICML 2023: max over w of CE until clean accuracy is low, then, from those weights,
    min over m in [0, 1] of alpha CE(m w); channels of the original model with low m are the backdoor's.
    """

    name = "rnp"
    quick_options: ClassVar[Mapping[str, Any]] = {**Tuning.quick_options, "lr": 20.0, "accuracy_drop": 1.0}

    epochs: int = option(4, "passes over the clean pool that recover", cite="RNP released: 80 steps of 128", ge=1)
    lr: float = option(0.2, "learning rate of the masks, constant", cite="RNP released", gt=0)
    unlearn_epochs: int = option(20, "passes over the clean pool that unlearn, at most", cite="RNP released", ge=1)
    unlearn_lr: float = option(0.01, "learning rate of unlearning, constant", cite="RNP released", gt=0)
    unlearned: float = option(0.2, "accuracy on a batch at which unlearning ends", cite="RNP released", ge=0, le=1)
    alpha: float = option(0.2, "weight of the loss that recovers", cite="RNP released", gt=0)

    def obstacle(self, model: Classifier) -> str:
        return obstacle(model)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        held, tuning = self.parts(clean, rng)
        masked = Masked(self.unlearn(model.clone(), tuning, rng))

        def recovery(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            return self.alpha * cross_entropy(model, x, y)

        recipe = self.recipe(tuning, schedule="constant")
        tune(masked.model, tuning, recipe, rng, loss=recovery, after_step=masked.clip, what="rnp: recovering")
        return prune(model, masked.masks, held, self.accuracy_drop, self.name)

    def unlearn(self, model: Classifier, pool: Pool, rng: torch.Generator) -> Classifier:
        """Ascend the clean loss until a batch is no longer known, and no step further: the loss explodes from there."""

        def ascent(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            if (logits.argmax(1) == y).float().mean() <= self.unlearned:
                raise Forgotten
            return -F.cross_entropy(logits, y)

        recipe = self.recipe(pool, epochs=self.unlearn_epochs, lr=self.unlearn_lr, schedule="constant")
        with suppress(Forgotten):
            tune(model, pool, recipe, rng, loss=ascent, what="rnp: unlearning")
        return model.eval()


class Forgotten(Exception):
    """The clean task is unlearned."""


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [RNP]
