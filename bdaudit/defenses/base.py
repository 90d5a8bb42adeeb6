"""What a defense is: inputs it names go in, a purified classifier comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from bdaudit.contract import Preset, option
from bdaudit.errors import PluginError, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.schema import Measurement
from bdaudit.report.statistics import Z_ONE_SIDED, paired_change
from bdaudit.training.augment import Augment
from bdaudit.training.division import Division
from bdaudit.training.loop import Recipe
from bdaudit.training.metrics import ROUNDING, accuracy
from bdaudit.training.progress import say


@dataclass(frozen=True)
class Purified:
    """A purified model, and what the defense found on the way: inverted triggers, detected targets.

    division: how the training set was divided, by a defense that trains on one.
    """

    model: Classifier
    found: Measurement = field(default_factory=Measurement)
    division: Division | None = None


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
        purified = returned if isinstance(returned, Purified) else Purified(returned)
        result, found = purified.model, purified.found
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
        return replace(purified, model=result.eval().requires_grad_(True))


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
        """Cut the clean images into those to judge by and those to tune on, one at least of each."""
        if len(clean) < 2:
            raise UsageError(
                f"{self.name} holds out a part of the clean images to judge by, and needs at least 2 of them"
            )
        held, tuning = clean.shuffled(rng).split(math.ceil(self.held_out * len(clean)))
        return held, tuning


JudgedBy = Literal["estimate", "bound"]


def judged_by(default: JudgedBy) -> Any:
    """Make the option that says which fall of accuracy counts."""
    return option(
        default,
        "what must not exceed accuracy_drop: the fall that is measured, or what 95% confidence shows of it",
        cite="ours: docs/deviations.md",
    )


class Grading(Judging):
    """Options shared by the defenses that go as far as accuracy allows, from the largest strength down."""

    judged_by: JudgedBy = judged_by("estimate")

    def strongest(
        self,
        strengths: Iterable[float],
        tuned: Callable[[float], Classifier],
        suspect: Classifier,
        held: Pool,
        what: str,
    ) -> tuple[Classifier, float]:
        """Tune at one strength after another, the largest first, until accuracy falls by no more than `accuracy_drop`.

        The fall is that from the suspect's accuracy on the held-out images. By its bound, the least fall that 95%
        confidence leaves: over few images a fall is mostly chance, and the doubt goes to unlearning. Where every
        strength costs more, the most accurate model is taken, and of equals the one of the larger strength.
        """
        before = accuracy(suspect, held)
        tried: list[tuple[float, float, Classifier]] = []
        for strength in strengths:
            model = tuned(strength)
            after = accuracy(model, held)
            tried.append((after.value, strength, model))
            change, _, high = paired_change(before, after, Z_ONE_SIDED)
            judged, said = (high, f", at most {100 * high:+.1f} at 95%") if self.judged_by == "bound" else (change, "")
            say(
                f"{self.name}: {what} {strength:.2g}, held-out accuracy {after.value:.3f}, {100 * change:+.1f} points"
                f"{said} (too much below {-100 * self.accuracy_drop:.3g})"
            )
            if judged >= -self.accuracy_drop - ROUNDING:
                return model, strength
        _, strength, model = max(tried, key=lambda one: one[:2])
        return model, strength


def reinitialise(layer: nn.Linear, rng: torch.Generator) -> None:
    """Redraw weight and bias from U(-b, b) with b = 1/sqrt(fan_in) (FST-repo; cards 2.1)."""
    bound = layer.in_features**-0.5
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=rng))


class Redrawing(Tuning):
    """Options shared by the defenses that tune long from a redrawn head."""

    presets = {
        "cifar10": {"lr": 0.01, "epochs": 100},
        "gtsrb": {"lr": 0.01, "epochs": 100},
        "cifar100": {"lr": 0.005, "epochs": 20, "batch_size": 32},
        "tiny-imagenet": {"lr": 0.005, "epochs": 20, "batch_size": 32},
    }

    epochs: int = option(100, "passes over the clean pool", cite="FST B.3: 100 CIFAR-10 and GTSRB, 20 others", ge=1)


class Shifting(Tuning):
    """Options shared by the defenses that move linear layers away from their backdoored weights."""

    layers: Literal["last", "all"] = option(
        "last", "move the last linear layer, or all of a classifier of several", cite="FST D.2 (VGG19-BN); D3 4.1"
    )

    def obstacle(self, model: Classifier) -> str:
        found = [m for m in model.body.modules() if isinstance(m, nn.Linear)]
        if self.layers == "last" or len(found) == len(classifier_layers(model)):
            return ""
        return "moves all layers (-o layers=all) of a linear classifier alone, and here are linear layers before it"

    def moved(self, model: Classifier) -> list[nn.Linear]:
        """List the linear layers to move."""
        return classifier_layers(model) if self.layers == "all" else [model.head]


def classifier_layers(model: Classifier) -> list[nn.Linear]:
    """List the linear layers behind the last layer with weights of another kind: three in VGG, one in a ResNet."""
    weighted = [m for m in model.body.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    last = takewhile(lambda m: isinstance(m, nn.Linear), reversed(weighted))
    return [m for m in last if isinstance(m, nn.Linear)][::-1]


def lack_of_features(model: Classifier) -> str:
    """Say in words why a network's features cannot be tuned apart from its head; '' if they can."""
    if sum(p.numel() for p in model.body.parameters()) > sum(p.numel() for p in model.head.parameters()):
        return ""
    return "tunes what comes before the last linear layer, and here nothing does"


def stamped(pool: Pool, triggers: Sequence[Callable[[Tensor], Tensor]], share: float, rng: torch.Generator) -> Pool:
    """Put triggers on a share of the images, each on its part of them; labels stay."""
    chosen = torch.randperm(len(pool), generator=rng)[: max(1, round(share * len(pool)))]
    for trigger, part in zip(triggers, chosen.tensor_split(len(triggers)), strict=True):
        pool = pool.map(trigger, torch.zeros(len(pool), dtype=torch.bool).index_fill(0, part, True))
    return pool


def weights_of(layers: Iterable[nn.Linear]) -> list[Tensor]:
    """Copy the layers' weight matrices."""
    return [layer.weight.detach().clone() for layer in layers]


@torch.no_grad()
def keep_norms(layers: Iterable[nn.Linear], originals: Iterable[Tensor]) -> None:
    """Project each weight matrix onto the sphere of its original's Frobenius norm (FST Alg. 1; D3 Eq. 4)."""
    for layer, original in zip(layers, originals, strict=True):
        layer.weight.mul_(original.norm() / layer.weight.norm())
