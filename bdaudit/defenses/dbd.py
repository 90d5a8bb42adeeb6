"""DBD: backdoor defense via decoupling the training process."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import MixMatching
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import seeded, spawn
from bdaudit.training.contrastive import Contrast, Views, contrast
from bdaudit.training.division import Division
from bdaudit.training.loop import Recipe, tune
from bdaudit.training.mixmatch import SemiSupervised
from bdaudit.training.progress import track
from bdaudit.training.resume import resumed
from bdaudit.training.samples import largest, losses_of


class DBD(MixMatching):
    """Learn features without labels, then a head on them, then all of it with the labels that fit best.

    Huang et al. 2022. (1) SimCLR, where no label can tie a trigger to a class; (2) the head alone, by symmetric
    cross-entropy, .1 CE + RCE, which noisy labels bend less; (3) MixMatch, in each epoch with the half of all rows
    whose losses are smallest, and the others without their labels.
    """

    name = "dbd"
    quick_options = {
        "contrast_epochs": 1,
        "head_epochs": 1,
        "epochs": 2,
        "iterations": 2,
        "batch_size": 8,
        "min_steps": 1,
    }
    presets = {
        "paper": {
            "contrast_epochs": 1000,
            "contrast_lr": 0.4,
            "contrast_batch": 512,
            "head_lr": 2e-3,
            "min_steps": 1,
            "epochs": 190,
            "iterations": 1024,
            "decay": 0,
        }
    }

    contrast_epochs: int = option(30, "epochs of SimCLR", cite="DBD: 1,000", ge=1)
    contrast_lr: float = option(0.2, "its learning rate (SGD), falling to zero on a cosine", cite="DBD: .4", gt=0)
    contrast_batch: int = option(128, "its images a step, each in two views", cite="DBD: 512", ge=2)
    contrast_temperature: float = option(0.5, "of the similarities", cite="DBD", gt=0)
    head_epochs: int = option(10, "epochs of the head", cite="DBD", ge=1)
    head_lr: float = option(0.02, "its learning rate (Adam)", cite="DBD: .002", gt=0)
    min_steps: int = option(64, "steps an epoch of features and head, at least", cite="ours: docs/deviations.md", ge=1)
    epochs: int = option(24, "epochs of MixMatch", cite="DBD: 190", ge=1)
    share: float = option(0.5, "share of rows whose labels are learnt then", cite="DBD", gt=0, lt=1)

    def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Purified:
        return self.purified(*self.divide(fresh, train, rng))

    def divide(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        self.check_train(train, fresh)
        how = Contrast(
            self.contrast_epochs,
            self.contrast_lr,
            self.contrast_batch,
            self.contrast_temperature,
            Views(flip=self.flip, blurred=0.5),
            min_steps=self.min_steps,
        )
        contrast(fresh, train.labelled(torch.arange(len(train))), how, spawn(rng), what="dbd: contrast")
        self._fit_head(fresh, train, spawn(rng))
        return self._finish(fresh, train, spawn(rng))

    def _fit_head(self, model: Classifier, train: Pool, rng: torch.Generator) -> None:
        recipe = Recipe(
            self.head_epochs,
            self.head_lr,
            optimizer="adam",
            schedule="constant",
            min_steps=self.min_steps,
            augment=self.augment(train),
        )
        model.requires_grad_(False).head.requires_grad_(True)
        tune(model, train, recipe, rng, loss=symmetric_cross_entropy, keep={}, what="dbd: head")
        model.requires_grad_(True)

    def _finish(self, model: Classifier, train: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        f = SemiSupervised(model, train, self.mixmatch(train, self.epochs), self.epochs, rng)
        keep = {"history": torch.empty(0, len(train)) > 0, "scores": torch.zeros(len(train))}
        with seeded(rng), track("dbd", self.epochs * self.iterations) as advance:
            for t in resumed("dbd", self.epochs, rng, {"f": f.training}, keep, advance):
                keep["scores"] = -losses_of(model, train, self.name).symmetric_ce
                pool = largest(keep["scores"], self.share)
                f.epoch(pool, advance, f"dbd: epoch {t + 1} of {self.epochs}")
                keep["history"] = torch.cat([keep["history"], pool[None]])
        return model, self.by_contradiction(model, train, keep)


def symmetric_cross_entropy(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """.1 CE(p, y) + RCE, cross-entropy the other way round with log 0 taken for log 1e-4 (Wang et al. 2019)."""
    log_p = model(x).float().log_softmax(1)
    p_y = log_p.exp().gather(1, y[:, None])[:, 0]
    reverse: Tensor = -math.log(1e-4) * (1 - p_y).mean()
    return 0.1 * F.nll_loss(log_p, y) + reverse


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [DBD]
