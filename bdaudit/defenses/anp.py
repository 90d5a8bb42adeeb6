"""ANP: adversarial neuron pruning."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Judging, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.loop import Loss, cross_entropy, tune
from bdaudit.training.masks import Masked, obstacle, prune


class ANP(Tuning, Judging):
    """Prune the channels that adversarial noise on their weights makes misclassify: a backdoor's are sensitive.

    Wu and Wang, NeurIPS 2021, Eq. 4: min over m in [0, 1] of
    alpha CE(m w, b) + (1 - alpha) max over d, xi in [-eps, eps] of CE((m + d) w, (1 + xi) b), in BatchNorm layers.
    """

    name = "anp"
    quick_options: ClassVar[Mapping[str, Any]] = {**Tuning.quick_options, "lr": 20.0, "accuracy_drop": 1.0}

    epochs: int = option(8, "passes over the clean pool", cite="ANP: 2,000 steps of 128", ge=1)
    lr: float = option(0.2, "learning rate of the masks, constant", cite="ANP", gt=0)
    batch_size: int = option(32, "images a step", cite="ANP: 128", ge=2)
    eps: float = option(0.4, "noise on a channel, in shares of its weight and bias", cite="ANP", gt=0)
    steps: int = option(1, "steps of ascent that find the noise", cite="ANP", ge=1)
    alpha: float = option(0.2, "weight of the loss without noise", cite="ANP", ge=0, le=1)

    def obstacle(self, model: Classifier) -> str:
        return obstacle(model)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        held, tuning = self.parts(clean, rng)
        masked = Masked(model)
        loss = adversarial(masked, self.eps, self.steps, self.alpha, spawn(rng))
        recipe = self.recipe(tuning, schedule="constant")
        tune(masked.model, tuning, recipe, rng, loss=loss, after_step=masked.clip, what=self.name)
        return prune(model, masked.masks, held, self.accuracy_drop, self.name)


def adversarial(masked: Masked, eps: float, steps: int, alpha: float, rng: torch.Generator) -> Loss:
    """alpha CE + (1 - alpha) CE under the worst noise that `steps` signs of the gradient lead to from a random one."""

    def worst_noise(model: Classifier, x: Tensor, y: Tensor) -> list[Tensor]:
        noise = masked.uniform_noise(eps, rng)
        for _ in range(steps):
            noise = [d.requires_grad_() for d in noise]
            with masked.noisy(noise):
                gradients = torch.autograd.grad(cross_entropy(model, x, y), noise, materialize_grads=True)
            noise = [d.detach() + eps / steps * g.sign() for d, g in zip(noise, gradients, strict=True)]
        return noise

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        with masked.noisy(worst_noise(model, x, y)):
            noisy = cross_entropy(model, x, y)
        return alpha * cross_entropy(model, x, y) + (1 - alpha) * noisy

    return loss


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [ANP]
