"""ABL: anti-backdoor learning."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import Splitting
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.division import Division
from bdaudit.training.isolation import Per, ascent, flooding, local_gradient_ascent
from bdaudit.training.loop import Loss, Recipe, cross_entropy, in_steps, tune
from bdaudit.training.samples import largest, losses_of


class ABL(Splitting):
    """Isolate the rows that are learnt faster than others, train on the rest, and unlearn the isolated ones.

    Li et al. 2021. (1) Local gradient ascent, sign(L - gamma) L, or flooding, |L - b| + b, stops clean rows at a loss
    which poisoned ones fall below; (2) the share of rows with the smallest losses is isolated; (3) the model goes on to
    train on the others, and (4) ascends on the isolated ones.
    """

    name = "abl"
    quick_options = {"isolation_epochs": 1, "tuning_epochs": 1, "unlearning_steps": 1, "min_steps": 1}
    presets = {
        "paper": {"tuning_epochs": 70, "min_steps": 1, "cap": False},
        "released": {
            "isolation_epochs": 10,
            "isolate_by": "flooding",
            "tuning_epochs": 60,
            "min_steps": 1,
            "cap": False,
        },
    }

    isolation_epochs: int = option(20, "epochs until rows are isolated", cite="BSD C.4", ge=1)
    isolate_by: Literal["lga", "flooding"] = option("lga", "what keeps clean rows at a loss", cite="cards 3.1")
    gamma: float = option(0.5, "that loss", cite="ABL", ge=0)
    ascent: Per = option(
        "batch", "LGA: what is held against gamma, each image's loss or the batch's", cite="ABL released"
    )
    share: float = option(0.01, "share of rows that is isolated", cite="ABL", gt=0, lt=1)
    tuning_epochs: int = option(20, "epochs on the other rows", cite="BSD C.4: 70", ge=0)
    unlearning_steps: int = option(
        40, "steps of ascent on the isolated rows", cite="ABL released: 5 epochs of 500 images", ge=0
    )
    lr: float = option(0.1, "learning rate (SGD) until it falls to a tenth and a hundredth", cite="ABL released", gt=0)
    cap: bool = option(True, "stop ascending on images whose loss exceeds log K", cite="ours: docs/deviations.md")
    unlearning_lr: float = option(5e-4, "learning rate of the ascent", cite="ABL released", gt=0)
    batch_size: int = option(64, "images a step", cite="ABL released", ge=2)
    min_steps: int = option(32, "steps an epoch, at least, but for unlearning", cite="ours: docs/deviations.md", ge=1)
    clean_share: float = option(
        0.6, "share of rows, those of the largest losses, that `bdaudit split` takes for clean", cite="ours", gt=0, lt=1
    )

    def divide(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        self.check_train(train, fresh)
        loss = flooding(self.gamma) if self.isolate_by == "flooding" else local_gradient_ascent(self.gamma, self.ascent)
        self._train(fresh, train, spawn(rng), self.isolation_epochs, "isolation", loss=loss)
        ce = losses_of(fresh, train, self.name).ce
        isolated = largest(-ce, self.share)
        target, doubt = self.blamed(isolated, train, fresh)
        clean = largest(ce, self.clean_share) & ~isolated
        return fresh, Division(clean, isolated, {"loss": ce}, target, doubt=doubt)

    def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Purified:
        model, division = self.divide(fresh, train, rng)
        if self.tuning_epochs:
            schedule = in_steps(*drops(self.tuning_epochs))
            rest = train.take(~division.flagged)
            self._train(model, rest, spawn(rng), self.tuning_epochs, "tuning", schedule=schedule)
        isolated = train.take(division.flagged)
        epochs = math.ceil(self.unlearning_steps / math.ceil(len(isolated) / self.batch_size))
        recipe = Recipe(epochs, self.unlearning_lr, self.batch_size, weight_decay=1e-4, schedule="constant")
        tune(model, isolated, recipe, spawn(rng), loss=ascent(self.cap), keep={}, what="abl: unlearning")
        return self.purified(model, division)

    def _train(
        self,
        model: Classifier,
        pool: Pool,
        rng: torch.Generator,
        epochs: int,
        what: str,
        *,
        loss: Loss = cross_entropy,
        schedule: str | Callable[[float], float] = "constant",
    ) -> None:
        recipe = Recipe(
            epochs,
            self.lr,
            self.batch_size,
            weight_decay=1e-4,
            schedule=schedule,
            min_steps=self.min_steps,
            augment=self.augment(pool, strong=False),
        )
        tune(model, pool, recipe, rng, loss=loss, keep={}, what=f"abl: {what}")


def drops(epochs: int) -> tuple[float, float]:
    """When the learning rate falls: after 40 epochs and after 60, or where there are fewer, after these parts of 70."""
    length = epochs if epochs >= 60 else 70
    return 40 / length, 60 / length


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [ABL]
