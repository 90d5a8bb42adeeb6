"""NAD: neural attention distillation."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.loop import Loss, in_steps, tune
from bdaudit.training.stages import Stage, find_stages, lack_of_stages, staged


class NAD(Tuning):
    """Teach the model to look where a fine-tuned copy of it looks.

    Li et al., ICLR 2021: the teacher is the suspect after fine-tuning, the student the suspect itself, and the student
    learns min CE(f(x), y) + sum over stages l of beta_l MSE(A(F_l), A(F_l of the teacher)), where F is a map of
    features and A(F) = sum over channels of |F|^2, divided by its norm over the places.
    """

    name = "nad"
    quick_options = {"epochs": 1, "teacher_epochs": 1, "batch_size": 32}

    beta_low: float = option(500.0, "weight of the third map from the end", cite="NAD", ge=0)
    beta_mid: float = option(1000.0, "weight of the second map from the end", cite="NAD", ge=0)
    beta_high: float = option(1000.0, "weight of the last map", cite="NAD", ge=0)
    teacher_epochs: int = option(10, "passes over the clean pool that make the teacher", cite="NAD; BSD C.4", ge=1)
    lr: float = option(
        0.03,
        "learning rate, falling to a tenth after a tenth of the steps",
        cite="ours: docs/deviations.md; NAD: .1",
        gt=0,
    )
    teacher_lr: float = option(0.01, "the teacher's, falling to zero on a cosine", cite="BSD C.4", gt=0)
    batch_size: int = option(64, "images a step", cite="NAD", ge=2)
    weight_decay: float = option(1e-4, "SGD's weight decay", cite="NAD", ge=0)

    def obstacle(self, model: Classifier) -> str:
        return f"compares maps of features, and {why}" if (why := lack_of_stages(model)) else ""

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        stages = find_stages(model, most=3)
        betas = (self.beta_low, self.beta_mid, self.beta_high)[-len(stages) :]
        recipe = self.recipe(clean, epochs=self.teacher_epochs, lr=self.teacher_lr, weight_decay=self.weight_decay)
        teacher = tune(model.clone(), clean, recipe, spawn(rng), what="nad: teacher").requires_grad_(False)
        recipe = self.recipe(clean, weight_decay=self.weight_decay, schedule=in_steps(0.1))
        return tune(model, clean, recipe, rng, loss=distilling(teacher, stages, betas), what=self.name)


def attention(features: Tensor) -> Tensor:
    """Map features (N, channels, places) to where they are large, (N, places), of norm one."""
    return F.normalize(features.square().sum(1), dim=1)


def distilling(teacher: Classifier, stages: tuple[Stage, ...], betas: tuple[float, ...]) -> Loss:
    """CE, and how far the student's attention is from the teacher's, stage by stage."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            shown, _ = staged(teacher, stages, x)
        maps, logits = staged(model, stages, x)
        far = [b * F.mse_loss(attention(s), attention(t)) for b, s, t in zip(betas, maps, shown, strict=True)]
        return F.cross_entropy(logits, y) + torch.stack(far).sum()

    return loss


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [NAD]
