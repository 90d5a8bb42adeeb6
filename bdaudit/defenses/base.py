"""What a defense is: inputs it names go in, a purified classifier comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from bdaudit.contract import Preset, option
from bdaudit.errors import WARNING, PluginError, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool, check_labels
from bdaudit.report.inversion import reversal_measurement
from bdaudit.report.schema import Measurement
from bdaudit.runtime import spawn
from bdaudit.training.augment import Augment
from bdaudit.training.bti import Reversal, Reversed, reverse
from bdaudit.training.division import Division
from bdaudit.training.loop import Recipe, cross_entropy, tune
from bdaudit.training.mixmatch import MixMatch
from bdaudit.training.progress import say, warn
from bdaudit.training.samples import largest, losses_of
from bdaudit.training.sensitivity import intra_class, sensitivities


@dataclass(frozen=True)
class Purified:
    """A purified model, and what the defense found on the way: inverted triggers, detected targets."""

    model: Classifier
    found: Measurement = field(default_factory=Measurement)


class Defense(Preset):
    """Purify a model. A subclass writes `purify` and names in its signature what it needs."""

    kind: ClassVar[str] = "defense"
    method: ClassVar[str] = "purify"

    purify: ClassVar[Callable[..., Classifier | Purified]]
    """Return a purified classifier, or `Purified` with what was found on the way.

    `model` and `fresh` are private copies and may be changed in place.
    """

    @classmethod
    def family(cls) -> str:
        """`in-training` if it starts from a fresh model or the training set, else `post-training`."""
        return "in-training" if {"fresh", "train"} & set(cls.wants()) else "post-training"

    def obstacle(self, model: Classifier) -> str:
        """Say in words why this model cannot be purified so, after the defense's name; '' if it can.

        Asked before any work starts, so it has to be quick.
        """
        return ""

    @final
    def check_model(self, model: Classifier) -> None:
        """Refuse a model that the defense cannot purify; UsageError says why."""
        reason = self.obstacle(model)
        if reason:
            raise UsageError(f"{self.name} {reason}; choose another defense (bdaudit plugins list)")

    @final
    def run(self, available: Mapping[str, Any]) -> Classifier:
        """Do what `conduct` does, for the model alone."""
        return self.conduct(available).model

    @final
    def conduct(self, available: Mapping[str, Any]) -> Purified:
        """Call `purify` with exactly the inputs it names, and check what comes back.

        Models are copied, so that whatever the defense does, the caller's stay as they were.
        """
        inputs = self.grant(available)
        given = inputs.get("model", inputs.get("fresh"))
        if given is not None:
            self.check_model(given)
        inputs = {k: v.clone() if isinstance(v, Classifier) else v for k, v in inputs.items()}
        returned = self.purify(**inputs)
        result, found = (
            (returned.model, returned.found) if isinstance(returned, Purified) else (returned, Measurement())
        )
        named = {f.probe for f in found.findings} | {e.probe for e in found.exhibits}
        if others := named - {self.name}:
            raise PluginError(f"{self.name}.purify returned findings of {min(others)!r}, which is not its own name")
        if not isinstance(result, Classifier):
            raise PluginError(f"{self.name}.purify returned {type(result).__name__}, expected a Classifier or Purified")
        if given is not None and result.num_classes != given.num_classes:
            raise PluginError(f"{self.name} turned {given.num_classes} classes into {result.num_classes}")
        for name, tensor in result.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise PluginError(
                    f"{self.name} diverged: {name} is not finite; try a smaller learning rate (-o lr=...)"
                )
        return Purified(result.eval().requires_grad_(True), found)


class Tuning(Defense):
    """Options shared by the defenses that tune with SGD or Adam on small pools."""

    quick_options: ClassVar[Mapping[str, Any]] = {"epochs": 1, "batch_size": 32}

    epochs: int = option(20, "passes over the clean pool", cite="SS B.2", ge=1)
    lr: float = option(0.01, "learning rate, falling to zero on a cosine", cite="FST B.3", gt=0)
    batch_size: int = option(128, "images a step", cite="FST B.3", ge=2)
    min_steps: int = option(
        8, "steps an epoch, at least: small pools get smaller batches", cite="ours: docs/deviations.md", ge=1
    )
    crop: int = option(
        -1,
        "random crop after padding by so many pixels; -1: an eighth of colour images, none of grey",
        cite="cards 0.1",
        ge=-1,
    )
    flip: bool = option(False, "random mirroring (right for CIFAR-10, wrong for digits and signs)", cite="cards 0.1")

    def recipe(self, pool: Pool, **changes: Any) -> Recipe:
        """Turn the options into a recipe for images like the pool's."""
        pad = Augment.usual(pool.shape).pad if self.crop < 0 else self.crop
        settings: dict[str, Any] = {
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "min_steps": self.min_steps,
            "augment": Augment(pad=pad, flip=self.flip),
        }
        return Recipe(**(settings | changes))


class Judging(Defense):
    """Options shared by the defenses that judge how far to go on clean images which they do not tune on."""

    accuracy_drop: float = option(0.03, "fall of held-out accuracy, at most", cite="cards 8.10", ge=0, le=1)
    held_out: float = option(0.2, "share of the clean images held out to judge by", cite="ours", gt=0, lt=1)

    def parts(self, clean: Pool, rng: torch.Generator) -> tuple[Pool, Pool]:
        """Cut the clean images into those to judge by and those to tune on."""
        held, tuning = clean.shuffled(rng).split(math.ceil(self.held_out * len(clean)))
        return held, tuning


class Inverting(Tuning):
    """Options shared by the defenses that unlearn triggers which BTI reverses from the model."""

    quick_options: ClassVar[Mapping[str, Any]] = {
        "rounds": 1,
        "epochs": 1,
        "batch_size": 32,
        "mask_steps": 4,
        "reverse_steps": 2,
        "generator_width": 2,
    }

    epochs: int = option(5, "passes over the clean pool in a round", cite="PAM released: 30", ge=1)
    lr: float = option(0.01, "learning rate, falling to zero on a cosine in each round", cite="PAM released", gt=0)
    rounds: int = option(2, "times that a trigger is reversed and unlearned", cite="BTI: 5; PAM: up to 3", ge=1)
    share: float = option(
        0.2, "share of each batch that is poisoned, with true labels", cite="PAM released", gt=0, le=1
    )
    batch_size: int = option(
        32,
        "images a step: the released code makes four times as many steps of 128",
        cite="ours: docs/deviations.md",
        ge=2,
    )
    mask_steps: int = option(400, "steps that tell benign features from others", cite="BTI: 20 epochs of 20", ge=1)
    reverse_steps: int = option(150, "steps of 32 images that train the generator", cite="BTI: 600 of 128", ge=1)
    reverse_images: int = option(1000, "clean images to reverse with, at most", cite="BTI: 2,500", ge=2)
    generator_width: int = option(8, "channels of the generator at full resolution", cite="BTI: 32", ge=1)
    norm_bound: float = option(0.3, "mean squared change of a normalised pixel, at most", cite="SS B.2", gt=0)
    feature_bound: float = option(3.0, "mean squared change of a benign feature, at most", cite="BTI released", gt=0)

    def reversal(self) -> Reversal:
        """Turn the options into those of the reverse step."""
        return Reversal(
            images=self.reverse_images,
            mask_steps=self.mask_steps,
            steps=self.reverse_steps,
            batch_size=32,
            width=self.generator_width,
            pixel_bound=self.norm_bound,
            feature_bound=self.feature_bound,
        )

    @final
    def reverse_again(self, model: Classifier, clean: Pool, rounds: list[Reversed], rng: torch.Generator) -> Reversed:
        """Reverse a trigger, starting from that of the last round, and add it to the rounds."""
        rounds.append(reverse(model, clean, self.reversal(), spawn(rng), rounds[-1] if rounds else None))
        return rounds[-1]

    def purified(self, model: Classifier, found: Reversed, clean: Pool) -> Purified:
        """Hand in the model together with the trigger that was reversed first, from the suspect itself."""
        return Purified(model, reversal_measurement(found, model.classes, clean, self.name))


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
        """Hand in a model; say what speaks against the division on stderr, and to whoever records the result."""
        if not division.doubt:
            return Purified(model)
        warn(f"{self.name}: {division.doubt}")
        return Purified(model, Measurement(notes=[f"{WARNING}{self.name}: {division.doubt}"]))

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
    views: int = option(2, "augmentations that guess a label", cite="MixMatch", ge=1)
    temperature: float = option(0.5, "sharpening of guessed labels", cite="BSD C.4", gt=0)
    mixing: float = option(0.75, "alpha of the mixing weights' Beta distribution", cite="ASD", gt=0)
    unlabelled: float = option(15.0, "weight of the loss on guessed labels, once it has risen", cite="BSD C.6", ge=0)

    @final
    def mixmatch(self, train: Pool, ramp: int) -> MixMatch:
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
            augment=self.augment(train),
        )


def reinitialise(layer: nn.Linear, rng: torch.Generator) -> None:
    """Redraw weight and bias from U(-b, b) with b = 1/sqrt(fan_in) (FST-repo; cards 2.1)."""
    bound = layer.in_features**-0.5
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=rng))


def linear_layers(model: Classifier, which: Literal["last", "all"]) -> list[nn.Linear]:
    """List the head, or every linear layer from the first to the head."""
    return [m for m in model.body.modules() if isinstance(m, nn.Linear)] if which == "all" else [model.head]


def weights_of(layers: Iterable[nn.Linear]) -> list[Tensor]:
    """Copy the layers' weight matrices."""
    return [layer.weight.detach().clone() for layer in layers]


@torch.no_grad()
def keep_norms(layers: Iterable[nn.Linear], originals: Iterable[Tensor]) -> None:
    """Project each weight matrix onto the sphere of its original's Frobenius norm (FST Alg. 1; D3 Eq. 4)."""
    for layer, original in zip(layers, originals, strict=True):
        layer.weight.mul_(original.norm() / layer.weight.norm())
