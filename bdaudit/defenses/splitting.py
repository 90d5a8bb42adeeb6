"""Defenses that train on an untrusted set and divide it on the way: their shared options, checks and divisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified, lack_of_features
from bdaudit.errors import WARNING, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool, check_labels
from bdaudit.report.schema import Measurement
from bdaudit.runtime import spawn
from bdaudit.training.augment import Augment
from bdaudit.training.division import Division
from bdaudit.training.loop import Recipe, cross_entropy, tune
from bdaudit.training.mixmatch import MixMatch
from bdaudit.training.progress import say, warn
from bdaudit.training.samples import largest, losses_of
from bdaudit.training.sensitivity import intra_class, sensitivities


class Splitting(Defense):
    """Options and checks shared by the defenses that train a fresh model on a set which they divide on the way.

    A subclass writes `divide`, which trains as far as it takes to divide the set, and calls it in `purify`.
    """

    crop: int = option(
        -1,
        "random crop after padding (by reflection) by so many pixels; -1: an eighth, grey images in MixMatch alone",
        cite="cards 0.1",
        ge=-1,
    )
    flip: bool = option(False, "random mirroring (right for CIFAR-10, wrong for digits and signs)", cite="cards 0.1")

    divide: ClassVar[Callable[..., tuple[Classifier, Division]]]
    """Train `fresh` in place; return it, and the division of the training set. Asks for what `purify` asks for."""

    @final
    def purified(self, model: Classifier, division: Division) -> Purified:
        """Hand in a model and its division; what speaks against that goes to stderr and to whoever records it."""
        notes = []
        if division.doubt:
            warn(f"{self.name}: {division.doubt}")
            notes.append(f"{WARNING}{self.name}: {division.doubt}")
        return Purified(model, Measurement(notes=notes), division)

    @final
    def augment(self, pool: Pool, *, strong: bool = True) -> Augment:
        """Turn the options into an augmentation; strong: crop grey images as well, unless the options say otherwise."""
        side = min(pool.shape[1:])
        pad = (side // 8 if strong else Augment.usual(pool.shape).pad) if self.crop < 0 else min(self.crop, side - 1)
        return Augment(pad=pad, flip=self.flip, reflect=True)

    @final
    def check_train(self, train: Pool, model: Classifier) -> None:
        """Refuse a training set that nothing can be told from."""
        check_labels(train, model.num_classes, "train")
        labels = sorted(set(train.labels.tolist()))
        if len(labels) < 2:
            only = f"label {labels[0]}" if labels else "nothing"
            raise UsageError(
                f"{self.name}: the training set holds {only} alone, so nothing tells clean rows from poisoned ones; "
                "it takes at least two classes"
            )

    @final
    def blamed(self, flagged: Tensor, train: Pool, model: Classifier) -> tuple[int, str]:
        """Take the label of most flagged rows for the target; also say why it may be none, '' for no reason."""
        counts = torch.bincount(train.labels.cpu()[flagged], minlength=model.num_classes)
        target, support = int(counts.argmax()), float(counts.max() / counts.sum())
        share = f"{support:.0%} of the flagged images"
        say(f"{self.name}: {int(flagged.sum())} images flagged; {share} have label {model.classes[target]}")
        return target, "" if support > 0.5 else f"no more than {share} have one label, {target}"

    @final
    def by_contradiction(self, model: Classifier, train: Pool, keep: Mapping[str, Tensor]) -> Division:
        """Flag the rows outside the last pool whose labels the model contradicts.

        keep: the pools by epoch as `history` (bool (epochs, N)), and as `scores` (N,) what the last one was chosen by.
        """
        labels = train.labels.cpu()
        on_f = losses_of(model, train, self.name)
        pool = keep["history"][-1]
        flagged = ~pool & (on_f.prediction != labels)
        counts = torch.bincount(labels[flagged], minlength=model.num_classes)
        target = int(counts.argmax()) if counts.max() > counts.sum() / 2 else None
        scores = {"split": keep["scores"], "main_fit": -on_f.symmetric_ce}
        return Division(pool, flagged, scores, target, dict(enumerate(keep["history"], 1)))


class Distinguishing(Splitting):
    """Options and division shared by the defenses that tell rows apart by how a transformation moves their features.

    The sample-distinguishment module of Chen et al. 2022: (1) a short training without augmentation learns the trigger,
    (2) another one parts the centres of the labels, and with them poisoned rows from those whose label they carry;
    (3) rows whose features a turn and a shift move most are flagged, those that it moves least are taken for clean.
    """

    trigger_epochs: int = option(2, "epochs without augmentation", cite="D-ST", ge=1)
    parting_epochs: int = option(10, "epochs that part the centres of the labels' features", cite="D-ST", ge=0)
    parting_lr: float = option(0.01, "learning rate of both (SGD)", cite="D-ST released", gt=0)
    batch_size: int = option(128, "images a step", cite="D-ST released", ge=2)
    min_steps: int = option(64, "steps an epoch, at least", cite="ours: docs/deviations.md", ge=1)
    clean_share: float = option(0.2, "share of rows, the least sensitive, taken for clean", cite="D-ST", gt=0, lt=1)
    poison_share: float = option(0.05, "share of rows, the most sensitive, that is flagged", cite="D-ST", gt=0, lt=1)

    def obstacle(self, model: Classifier) -> str:
        return lack_of_features(model)

    def divide(self, fresh: Classifier, train: Pool, rng: torch.Generator) -> tuple[Classifier, Division]:
        self.check_train(train, fresh)
        for what, epochs, loss in (
            ("learning the trigger", self.trigger_epochs, cross_entropy),
            ("parting the classes", self.parting_epochs, intra_class),
        ):
            recipe = self.recipe(epochs, self.parting_lr)
            tune(fresh, train, recipe, spawn(rng), loss=loss, keep={}, what=f"{self.name}: {what}")
        scores = sensitivities(fresh, train, spawn(rng))
        if not scores.isfinite().all():
            raise UsageError(f"{self.name} diverged: features are not finite; try a smaller -o parting_lr")
        flagged = largest(scores, self.poison_share)
        target, doubt = self.blamed(flagged, train, fresh)
        clean = largest(-scores, self.clean_share) & ~flagged
        return fresh, Division(clean, flagged, {"stability": -scores}, target, doubt=doubt)

    @final
    def recipe(self, epochs: int, lr: float, **changes: Any) -> Recipe:
        """Turn the options into a recipe without augmentation, at a constant learning rate unless told otherwise."""
        settings: dict[str, Any] = {"weight_decay": 5e-4, "schedule": "constant", "min_steps": self.min_steps}
        return Recipe(epochs, lr, self.batch_size, **(settings | changes))


class MixMatching(Splitting):
    """Options shared by the defenses that learn a clean pool with its labels and the rest without, by MixMatch."""

    iterations: int = option(64, "MixMatch steps an epoch", cite="BSD C.4: 1,024", ge=1)
    batch_size: int = option(64, "rows a step with labels, and as many without", cite="ASD", ge=2)
    lr: float = option(2e-3, "MixMatch's learning rate (Adam)", cite="BSD C.4", gt=0)
    decay: float = option(
        0.25,
        "last part of MixMatch's epochs, over which the learning rate falls to zero",
        cite="ours; BSD: 0",
        ge=0,
        le=1,
    )
    views: int = option(2, "augmentations that guess a label", cite="MixMatch", ge=1)
    temperature: float = option(0.5, "sharpening of guessed labels", cite="BSD C.4", gt=0)
    mixing: float = option(0.75, "alpha of the mixing weights' Beta distribution", cite="ASD", gt=0)
    unlabelled: float = option(15.0, "weight of the loss on guessed labels, once it has risen", cite="BSD C.6", ge=0)

    @final
    def mixmatch(self, train: Pool, ramp: int, *, even: bool = False, accompanied: bool = False) -> MixMatch:
        """Turn the options into MixMatch's; ramp: epochs until guessed labels have their full weight."""
        return MixMatch(
            iterations=self.iterations,
            batch_size=self.batch_size,
            lr=self.lr,
            views=self.views,
            temperature=self.temperature,
            beta=self.mixing,
            weight=self.unlabelled,
            ramp=ramp,
            decay=self.decay,
            even=even,
            accompanied=accompanied,
            augment=self.augment(train),
        )
