"""D-ST: two-stage secure training."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import Distinguishing
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.contrastive import Contrast, Views, contrast
from bdaudit.training.division import Division
from bdaudit.training.loop import Loss, Recipe, tune


class DST(Distinguishing):
    """Learn features by contrast, with the labels of insensitive rows alone, then a head that unlearns sensitive ones.

    Chen et al. 2022. (1) Rows are told apart by how far a turn and a shift move their features; (2) semi-supervised
    contrastive learning: a clean row's positives are the clean rows of its label, any other row's its own second view;
    (3) on frozen features the head descends on CE(clean) - lambda CE(poisoned).
    """

    name = "d-st"
    quick_options = {
        "trigger_epochs": 1,
        "parting_epochs": 1,
        "contrast_epochs": 1,
        "head_epochs": 1,
        "min_steps": 1,
    }
    presets = {
        "paper": {
            "min_steps": 1,
            "contrast_epochs": 200,
            "contrast_lr": 0.5,
            "contrast_batch": 512,
            "head_lr": 5.0,
            "head_batch": 512,
        }
    }

    contrast_epochs: int = option(20, "epochs of contrastive learning", cite="D-ST: 200", ge=1)
    contrast_lr: float = option(0.2, "its learning rate (SGD), on a cosine after a warm-up", cite="D-ST: .5", gt=0)
    contrast_batch: int = option(128, "its images a step, each in two views", cite="D-ST: 512", ge=2)
    temperature: float = option(0.1, "of the similarities", cite="D-ST", gt=0)
    head_epochs: int = option(10, "epochs of the head", cite="D-ST", ge=1)
    head_lr: float = option(1.0, "its learning rate (SGD)", cite="D-ST: 5", gt=0)
    head_batch: int = option(128, "its images a step", cite="D-ST: 512", ge=2)
    unlearning: float = option(0.001, "weight of the ascent on flagged rows (lambda)", cite="D-ST released", ge=0)

    def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Purified:
        _, division = self.divide(fresh.clone(), train, spawn(rng))
        how = Contrast(
            self.contrast_epochs,
            self.contrast_lr,
            self.contrast_batch,
            self.temperature,
            Views(flip=self.flip),
            min_steps=self.min_steps,
            warm_up=0.05,
        )
        positives = torch.where(division.clean, train.labels.cpu(), -1 - torch.arange(len(train)))
        contrast(fresh, train.labelled(positives), how, spawn(rng), what="d-st: contrast")
        return self.purified(self._with_head(fresh, train, division, spawn(rng)), division)

    def _with_head(self, model: Classifier, train: Pool, division: Division, rng: torch.Generator) -> Classifier:
        labels = train.labels.cpu()
        told = train.labelled(torch.where(division.flagged, -1 - labels, labels)).take(
            division.clean | division.flagged
        )
        recipe = Recipe(
            self.head_epochs,
            self.head_lr,
            self.head_batch,
            schedule="constant",
            min_steps=self.min_steps,
            as_in_use=True,
        )
        model.requires_grad_(False).head.requires_grad_(True)
        loss = mixed_cross_entropy(self.unlearning, Views(flip=self.flip), rng)
        return tune(model, told, recipe, rng, loss=loss, keep={}, what="d-st: head")


def mixed_cross_entropy(unlearning: float, views: Views, rng: torch.Generator) -> Loss:
    """CE over clean rows less a share of that over poisoned ones, whose labels y are given as -1 - y."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        poisoned = y < 0
        ce = F.cross_entropy(model(views(x, rng)), torch.where(poisoned, -1 - y, y), reduction="none")
        clean, bad = (ce[rows].sum() / rows.sum().clamp(min=1) for rows in (~poisoned, poisoned))
        return clean - unlearning * bad

    return loss


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [DST]
