"""D-BR: backdoor removal."""

import math
from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import Distinguishing
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import seeded, spawn
from bdaudit.training.division import Division
from bdaudit.training.isolation import ascent
from bdaudit.training.loop import Training, cross_entropy, endless, in_steps, tune
from bdaudit.training.progress import track
from bdaudit.training.resume import resumed


class DBR(Distinguishing):
    """Train on everything, then unlearn the rows that a transformation moves most and relearn those it moves least.

    Chen et al. 2022. (1) Rows are told apart by how far a turn and a shift move their features, in a model of its own;
    (2) another one is trained on all rows; (3) from epoch to epoch it ascends on CE over the flagged rows and descends
    over those taken for clean.
    """

    name = "d-br"
    quick_options = {
        "trigger_epochs": 1,
        "parting_epochs": 1,
        "training_epochs": 1,
        "removal_epochs": 1,
        "unlearning_steps": 1,
        "relearning_steps": 1,
        "min_steps": 1,
    }
    presets = {
        "paper": {
            "min_steps": 1,
            "training_epochs": 200,
            "lr": 0.01,
            "removal_epochs": 20,
            "removal_lr": 1e-4,
            "unlearning_steps": 1,
            "relearning_steps": 1,
        }
    }

    training_epochs: int = option(10, "epochs on everything", cite="D-BR: 200", ge=1)
    lr: float = option(0.05, "learning rate (SGD) until it falls to a tenth and a hundredth", cite="D-BR: .01", gt=0)
    removal_epochs: int = option(
        5, "times that flagged rows are unlearnt and clean ones relearnt", cite="D-BR: 20", ge=1
    )
    removal_lr: float = option(5e-4, "learning rate of both", cite="D-BR: 1e-4", gt=0)
    unlearning_steps: int = option(20, "steps of ascent each time, at least", cite="D-BR: of 2,500 images", ge=1)
    relearning_steps: int = option(80, "steps of descent each time, at least", cite="D-BR: of 10,000 images", ge=1)

    def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Purified:
        _, division = self.divide(fresh.clone(), train, spawn(rng))
        augment = self.augment(train, strong=False)
        recipe = self.recipe(self.training_epochs, self.lr, schedule=in_steps(1 / 2, 3 / 4), augment=augment)
        tune(fresh, train, recipe, spawn(rng), keep={}, what="d-br: training")
        self._remove(fresh, train, division, spawn(rng))
        return self.purified(fresh, division)

    def _remove(self, model: Classifier, train: Pool, division: Division, rng: torch.Generator) -> None:
        train = train.to(model.device)
        recipe = self.recipe(self.removal_epochs, self.removal_lr)
        stages = [
            (rows.nonzero().flatten(), max(least, math.ceil(int(rows.sum()) / self.batch_size)), loss)
            for rows, least, loss in (
                (division.flagged, self.unlearning_steps, ascent(cap=False)),
                (division.clean, self.relearning_steps, cross_entropy),
            )
        ]
        total = self.removal_epochs * sum(steps for _, steps, _ in stages)
        f, what, augment = Training(model, recipe, total), "d-br: removal", self.augment(train, strong=False)
        with seeded(rng), track(what, total) as advance:
            for _ in resumed(what, self.removal_epochs, rng, {"f": f}, {}, advance):
                for rows, steps, loss in stages:
                    deal, size = endless(train, rng, augment, rows), max(2, min(self.batch_size, len(rows)))
                    f.epoch((deal(size) for _ in range(steps)), loss, advance=advance)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [DBR]
