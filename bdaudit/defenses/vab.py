"""VaB: the victim and the beneficiary."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.splitting import Splitting
from bdaudit.errors import UsageError
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import permutation, seeded, spawn
from bdaudit.training.augment import Augment
from bdaudit.training.division import Division
from bdaudit.training.loop import Loss, Recipe, Training, batches, endless, in_steps
from bdaudit.training.progress import say, track
from bdaudit.training.resume import resumed
from bdaudit.training.samples import losses_of
from bdaudit.training.stages import Stage, find_stages, lack_of_stages, staged


class VaB(Splitting):
    """Let a victim learn the backdoor from the rows that it is surest of, and a beneficiary all the others.

    Zhu et al. 2023. (1) The victim learns everything once, then suspicious rows alone: those of a low entropy, which
    poisoned rows come to have first; (2) the beneficiary learns the credible rows, mixed where it looks (AttentionMix);
    (3) in the second half it learns the suspicious ones too, by its own guesses, and all labels are cut by what the
    victim says (semi-supervised suppression).
    """

    name = "vab"
    quick_options = {"victim_steps": 1, "epochs": 2, "min_steps": 1}
    presets = {"paper": {"victim_steps": 1, "epochs": 200, "every": 5, "min_steps": 1}}

    rounds: int = option(2, "times that the victim learns suspicious rows first", cite="VaB released", ge=0)
    victim_lr: float = option(1e-3, "learning rate of the victim (Adam)", cite="VaB released", gt=0)
    victim_steps: int = option(64, "steps that it takes then, at least", cite="ours: docs/deviations.md", ge=1)
    smoothing: float = option(0.75, "weight of a new entropy over that of before (r)", cite="VaB released", gt=0, le=1)
    threshold: float = option(
        0.2, "entropy, scaled to [0, 1], above which a row is credible, after .6", cite="VaB released", gt=0, lt=1
    )
    epochs: int = option(20, "epochs of the beneficiary", cite="VaB: 200", ge=2)
    every: int = option(1, "epochs of its first half between two of the victim", cite="VaB released: 5", ge=1)
    lr: float = option(0.1, "its learning rate (SGD), falling to a tenth three times", cite="VaB released", gt=0)
    batch_size: int = option(128, "images a step, each in two views", cite="VaB released", ge=2)
    min_steps: int = option(64, "steps an epoch, at least", cite="ours: docs/deviations.md", ge=1)
    attended: float = option(0.1, "attention from which a place is mixed", cite="VaB released", ge=0, lt=1)
    softening: float = option(3.0, "temperature of what the victim says", cite="VaB released", gt=0)
    guessed: float = option(0.1, "weight of guessed labels in the third quarter", cite="VaB released", ge=0)
    guessed_late: float = option(0.5, "weight of guessed labels in the last quarter", cite="VaB released", ge=0)

    def obstacle(self, model: Classifier) -> str:
        return f"mixes images by maps of features, and {why}" if (why := lack_of_stages(model)) else ""

    def purify(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> Purified:
        return self.purified(*self.divide(fresh, train, rng))

    def divide(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        self.check_train(train, fresh)
        train = train.to(fresh.device)
        usual = self.augment(train, strong=False)
        recipe = self._recipe(self.victim_lr, optimizer="adam", schedule="constant", augment=usual)
        victim = Training(fresh.clone(), recipe, 1)
        entropy = self._warm_victim(victim, train, spawn(rng))
        return self._train(fresh, victim, train, entropy, spawn(rng))

    def _recipe(self, lr: float, **changes: Any) -> Recipe:
        return Recipe(self.epochs, lr, self.batch_size, weight_decay=5e-4, min_steps=self.min_steps, **changes)

    def _warm_victim(self, victim: Training, train: Pool, rng: torch.Generator) -> Tensor:
        """Learn everything for an epoch, without augmentation, then what is suspicious; return the entropies."""
        keep, what = {"entropy": torch.zeros(len(train))}, "vab: victim"
        with seeded(rng), track(what, 1 + self.rounds) as advance:
            for t in resumed(what, 1 + self.rounds, rng, {"victim": victim}, keep):
                if t == 0:
                    victim.epoch(batches(train, victim.recipe.batch_for(len(train)), rng))
                    keep["entropy"] = losses_of(victim.model, train, self.name).entropy
                else:
                    threshold = max(1 - 0.4 * t, self.threshold)
                    keep["entropy"] = self._refreshed(victim, train, keep["entropy"], threshold, rng)
                advance()
        return keep["entropy"]

    def _refreshed(
        self, victim: Training, train: Pool, entropy: Tensor, threshold: float, rng: torch.Generator
    ) -> Tensor:
        """Train the victim on suspicious rows for an epoch; return all rows' entropies, smoothed."""
        rows = (scaled(entropy) <= threshold).nonzero().flatten()
        if len(rows) > 1:  # BatchNorm has no variance on one image
            size = min(self.batch_size, len(rows))
            deal = endless(train, rng, victim.recipe.augment, rows)
            steps = max(self.victim_steps, math.ceil(len(rows) / size))
            victim.epoch(deal(size) for _ in range(steps))
        new = losses_of(victim.model, train, self.name).entropy
        return self.smoothing * new + (1 - self.smoothing) * entropy

    def _train(
        self, model: Classifier, victim: Training, train: Pool, entropy: Tensor, rng: torch.Generator
    ) -> tuple[Classifier, Division]:
        stages = find_stages(model, most=1)
        recipe = self._recipe(self.lr, schedule=in_steps(1 / 4, 1 / 2, 3 / 4), augment=self.augment(train))
        size, steps = recipe.batch_for(len(train)), recipe.steps(len(train))
        f = Training(model, recipe, steps)
        keep = {"history": torch.empty(0, len(train)) > 0, "scores": entropy}
        with seeded(rng), track(self.name, steps) as advance:
            for t in resumed(self.name, self.epochs, rng, {"f": f, "victim": victim}, keep, advance):
                credible, late = scaled(keep["scores"]) > self.threshold, 2 * t >= self.epochs
                said = f"{int(credible.sum()):,} of {len(train):,} images credible"
                say(f"vab: epoch {t + 1} of {self.epochs}: {said}")
                advance(0, said)
                if not credible.any():
                    raise UsageError("vab: no image is credible: the victim is as sure of each as of any other")
                deal = endless(train, rng, None, credible.nonzero().flatten())
                loss = self._mixed(stages, recipe.augment, rng, victim.model if late else None)
                if late:
                    weight = self.guessed_late if 4 * t >= 3 * self.epochs else self.guessed
                    guesses = self._guessed(victim.model, train, ~credible, recipe, rng)
                    loss = weighted_sum(loss, weight, guesses)
                f.epoch((deal(size) for _ in range(steps // self.epochs)), loss, advance=advance)
                keep["history"] = torch.cat([keep["history"], credible[None]])
                if t + 1 < self.epochs and (late or (t + 1) % self.every == 0):  # the last scores are those that chose
                    keep["scores"] = self._refreshed(victim, train, keep["scores"], self.threshold, rng)
        return model, self.by_contradiction(model, train, keep)

    def _mixed(
        self, stages: tuple[Stage, ...], augment: Augment, rng: torch.Generator, victim: Classifier | None
    ) -> Loss:
        """Cross-entropy of two views of credible rows, mixed by attention; labels without what a victim says."""

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            targets = F.one_hot(y, model.num_classes).float()
            if victim is not None:
                targets = self._cut(targets, victim, x)
            views = torch.cat([augment(x, rng), augment(x, rng)]).float() / 255
            with torch.no_grad():
                [features], _ = staged(model, stages, views)
            order = permutation(len(views), rng).to(x.device)
            mixed = attention_mix(views, attention(features, views), targets.repeat(2, 1), self.attended, order)
            return soft_cross_entropy(model(mixed[0]), mixed[1])

        return loss

    def _guessed(
        self, victim: Classifier, train: Pool, suspicious: Tensor, recipe: Recipe, rng: torch.Generator
    ) -> Loss:
        """Cross-entropy of two views of suspicious rows with the class that both together are given."""
        rows = suspicious.nonzero().flatten()
        deal = endless(train, rng, None, rows)
        size = math.ceil(len(rows) * recipe.epochs / recipe.steps(len(train)))  # each of them once an epoch

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            u, _ = deal(size)
            views = torch.cat([recipe.augment(u, rng), recipe.augment(u, rng)])
            logits = model(views)
            one, other = logits.detach().float().softmax(1).chunk(2)
            guess = (one + other).argmax(1)
            targets = self._cut(F.one_hot(guess, model.num_classes).float(), victim, u)
            return soft_cross_entropy(logits, targets.repeat(2, 1))

        return loss

    @torch.no_grad()
    def _cut(self, targets: Tensor, victim: Classifier, x: Tensor) -> Tensor:
        """Take from labels (N, K) what the victim says of the images, softened."""
        said: Tensor = (victim(x).float() / self.softening).softmax(1)
        return (targets - said).clamp(min=0)


def scaled(entropy: Tensor) -> Tensor:
    """Bring to [0, 1]; zeros where all are the same."""
    low, high = entropy.min(), entropy.max()
    shares: Tensor = (entropy - low) / (high - low).clamp(min=1e-12)
    return shares


def attention(features: Tensor, images: Tensor) -> Tensor:
    """Sum of squares over the channels of features (N, C, places), at the size of images, in [0, 1]; (N, 1, H, W)."""
    height, width = images.shape[2:]
    rows = round(math.sqrt(features.shape[2] * height / width))
    columns = features.shape[2] // rows
    places = features.square().sum(1)[:, -rows * columns :]  # a transformer's class token comes first, and has no place
    low, high = places.amin(1, keepdim=True), places.amax(1, keepdim=True)
    maps = ((places - low) / (high - low).clamp(min=1e-12)).reshape(-1, 1, rows, columns)
    return F.interpolate(maps, size=(height, width))


def attention_mix(
    pixels: Tensor, attention: Tensor, targets: Tensor, least: float, order: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix images, where attention is at least `least`, with others by the shares of attention that fall there (Eq. 5).

    Outside, an image and its part of the label stay. order: (N,), the row that each is mixed with.
    """
    mask = (attention >= least).float()
    other = attention[order]
    own, others = ((a * mask).sum((1, 2, 3)) / a.sum((1, 2, 3)).clamp(min=1e-12) for a in (attention, other))
    share = (own / (own + others).clamp(min=1e-12))[:, None]
    stays = 1 - mask * (1 - share[:, :, None, None])
    given = own[:, None] * (1 - share)
    return stays * pixels + (1 - stays) * pixels[order], (1 - given) * targets + given * targets[order]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with labels (N, K) that need not sum to one."""
    loss: Tensor = -(targets * logits.float().log_softmax(1)).sum(1).mean()
    return loss


def weighted_sum(loss: Loss, weight: float, other: Loss) -> Loss:
    """Add another loss, so much of it."""
    return lambda model, x, y: loss(model, x, y) + weight * other(model, x, y)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [VaB]
