"""ASD: adaptively splitting-based defense."""

from collections.abc import Iterable

import torch
from torch import Tensor

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import MixMatching
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import seeded, spawn
from bdaudit.training.division import Division
from bdaudit.training.loop import Recipe, Training, batches
from bdaudit.training.mixmatch import SemiSupervised
from bdaudit.training.progress import track
from bdaudit.training.resume import resumed
from bdaudit.training.samples import largest, largest_of_each, losses_of


class ASD(MixMatching):
    """Grow a clean pool from a few clean seeds, by loss, and at last by how much of it one poisoned epoch would take.

    Gao et al. 2023. MixMatch throughout, with a pool of (1) the seeds and each class's best-fitted rows, more of them
    from epoch to epoch; (2) the half of all rows with the smallest losses; (3) meta-split: the half whose losses fall
    least in a copy of the model whose upper half was trained for an epoch on everything, as poisoned rows are learnt
    fastest.
    """

    name = "asd"
    quick_options = {"growing": 2, "halving": 1, "meta": 1, "iterations": 2, "batch_size": 8}
    presets = {"paper": {"growing": 60, "every": 5, "halving": 30, "meta": 30, "iterations": 1024, "decay": 0}}

    seeds: int = option(10, "clean seeds of each class, at most", cite="ASD", ge=1)
    growing: int = option(10, "epochs of the class-aware pool", cite="ASD: 60", ge=1)
    every: int = option(1, "epochs until it grows", cite="ASD: 5", ge=1)
    growth: int = option(10, "rows of each class that join it then", cite="ASD", ge=1)
    halving: int = option(6, "epochs of the half with the smallest losses", cite="ASD: 30", ge=0)
    meta: int = option(6, "epochs of meta-split", cite="ASD: 30", ge=0)
    share: float = option(0.5, "share of rows in the pool then", cite="ASD", gt=0, lt=1)
    meta_lr: float = option(0.015, "learning rate of the copy (Adam)", cite="ASD", gt=0)

    def purify(self, fresh: Classifier, train: Pool, clean: Pool, rng: torch.Generator) -> Purified:
        return self.purified(*self.divide(fresh, train, clean, rng))

    def divide(self, fresh: Classifier, train: Pool, clean: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        self.check_train(train, fresh)
        seeds = balanced(clean, self.seeds, spawn(rng)).to("cpu")
        everything = Pool.concat([train.to("cpu"), seeds])
        labels, given = train.labels.cpu(), torch.ones(len(seeds), dtype=torch.bool)
        total = self.growing + self.halving + self.meta
        f = SemiSupervised(fresh, everything, self.mixmatch(train, total), total, rng)
        keep = {"history": torch.empty(0, len(train)) > 0, "scores": torch.zeros(len(train))}
        with seeded(rng), track("asd", total * self.iterations) as advance:
            for t in resumed("asd", total, rng, {"f": f.training}, keep, advance):
                loss = losses_of(fresh, train, self.name).symmetric_ce
                keep["scores"] = -loss
                if t < self.growing:
                    pool = largest_of_each(
                        -loss, labels, dict.fromkeys(labels.tolist(), self.growth * (t // self.every))
                    )
                else:
                    by_meta = t >= self.growing + self.halving
                    fall = loss - self._virtual(fresh, f.pool.first(len(train)), spawn(rng)) if by_meta else loss
                    pool = largest(-fall, self.share)
                    keep["scores"] = -fall
                f.epoch(torch.cat([pool, given]), advance, f"asd: epoch {t + 1} of {total}")
                keep["history"] = torch.cat([keep["history"], pool[None]])
        return fresh, self.by_contradiction(fresh, train, keep)

    def _virtual(self, model: Classifier, pool: Pool, rng: torch.Generator) -> Tensor:
        """Symmetric cross-entropy after one more epoch on everything, of the layers of the upper half alone."""
        copy = model.clone()
        for parameter in lower_half(copy):
            parameter.requires_grad_(False)
        augment = self.augment(pool, strong=False)
        recipe = Recipe(1, self.meta_lr, optimizer="adam", schedule="constant", augment=augment)
        Training(copy, recipe, 1).epoch(batches(pool, recipe.batch_for(len(pool)), rng, augment))
        return losses_of(copy, pool, self.name).symmetric_ce


def balanced(clean: Pool, count: int, rng: torch.Generator) -> Pool:
    """Draw at most so many rows of each class."""
    clean = clean.shuffled(rng)
    labels = clean.labels.cpu()
    return clean.take(torch.cat([(labels == k).nonzero().flatten()[:count] for k in sorted(set(labels.tolist()))]))


def lower_half(model: Classifier) -> list[torch.nn.Parameter]:
    """List the parameters before the middle one of the layers with weight matrices: a ResNet's first two stages."""
    parameters = list(model.body.parameters())
    matrices = [i for i, p in enumerate(parameters) if p.ndim > 1]
    return parameters[: matrices[len(matrices) // 2]]


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [ASD]
