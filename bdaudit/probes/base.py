"""What a probe is: it tries to bring the backdoor back, and reports how far it got."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import field_validator
from torch import Tensor

from bdaudit.attacks.triggers import Trigger, noise, patch, stripes
from bdaudit.contract import Plugin, option
from bdaudit.errors import PluginError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.report.schema import Measurement, Subject
from bdaudit.report.statistics import wilson
from bdaudit.training.augment import Augment
from bdaudit.training.loop import Recipe, tune

PAPER_COUNTS = {"badnets": (5, 25), "blended": (1, 10), "ssba": (10, 35), "lc": (2, 2)}
"""Poisoned images in a retuning set of a thousand: on CIFAR-10, and on CIFAR-100 and Tiny-ImageNet (SS B.2, no LC)."""
MANY_CLASSES = 100
THIS = "this model"
"""What the audited model is called among others."""
NULL_IMAGES = 1000
"""Test images per null trigger, at most: a control needs no narrower interval than that."""
STATISTICS_IMAGES = 512


@dataclass(frozen=True)
class Backdoor:
    """Triggered images to reactivate with, and others, disjoint from them, to evaluate on.

    source: `trigger` where the attacker's trigger is known, `flagged` where only some of its images are, `inverted`
    where nothing is and a trigger that was reverse-engineered from the model stands in (a proxy).
    reactivation, evaluation: triggered images with their TRUE labels, `UNKNOWN` in the second case.
    attack: what implanted it, where a run folder says so. nulls: controls that come with it, by name: the same built
    around triggers that are none of a backdoor.
    """

    goal: Goal
    source: Literal["trigger", "flagged", "inverted"]
    reactivation: Pool
    evaluation: Pool
    attack: str = ""
    nulls: Mapping[str, Backdoor] = field(default_factory=dict)

    def draw(self, k: int, rng: torch.Generator) -> Pool:
        """Draw up to k triggered rows at random, labelled as the attacker wants them."""
        rows = torch.randperm(len(self.reactivation), generator=rng)[:k]
        drawn = self.reactivation.take(rows)
        return drawn.labelled(self.goal.wanted(drawn.labels))

    @property
    def labels_known(self) -> bool:
        """Whether robust accuracy can be measured."""
        return bool((self.evaluation.labels != UNKNOWN).all())

    def certainty(self, images: int) -> str:
        """Say what a rate over so many triggered images rests on, and what that costs in certainty."""
        low, high = wilson(images / 2, images)
        known = f"a rate is known to within {50 * (high - low):.1f} points at worst"
        if self.source == "trigger":
            return f"measured with the attacker's own trigger on {images} images: {known}"
        if self.source == "inverted":
            return (
                f"measured on {images} images with a trigger that was reverse-engineered from the model, a proxy: "
                f"{known}, and says nothing certain about the attacker's own"
            )
        text = f"the trigger is unknown, {images} flagged images stand for it: {known}"
        doubt = ", and images that truly belong to the target class would count as attack successes"
        return text if self.labels_known else text + doubt


class Probe(Plugin):
    """Measure a purified model. A subclass writes `measure` and names in its signature what it needs."""

    kind: ClassVar[str] = "probe"
    method: ClassVar[str] = "measure"
    through_pixels: ClassVar[bool] = False
    """Whether it follows gradients to the pixels; where a model lets none through, it is left out."""

    measure: ClassVar[Callable[..., Measurement]]
    """Return findings, exhibits and notes; must leave the models as they were."""

    @final
    def run(self, available: Mapping[str, Any]) -> Measurement:
        """Call `measure` with exactly the inputs it names, on private copies of the models."""
        inputs = {k: _private(v) for k, v in self.grant(available).items()}
        result = self.measure(**inputs)
        if not isinstance(result, Measurement):
            raise PluginError(f"{self.name}.measure returned {type(result).__name__}, expected a Measurement")
        return result


class Retuning(Probe):
    """Options shared by the probes that retune on a few poisoned images, or imitate that."""

    preset: str = option(
        "auto", "whose count of poisoned images: badnets, blended, ssba, lc; auto: the run's attack", cite="SS B.2"
    )
    poisoned: int = option(
        0, "poisoned images that replace benign ones, in a thousand; 0: the preset's", cite="SS B.2", ge=0
    )

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in ("auto", *PAPER_COUNTS):
            raise ValueError(f"should be auto or one of {', '.join(PAPER_COUNTS)}")
        return preset

    def count(self, backdoor: Backdoor, size: int) -> int:
        """How many of `size` benign images are replaced: the option, else the paper's count for this attack."""
        attack = backdoor.attack if self.preset == "auto" else self.preset
        few, many = PAPER_COUNTS.get(attack, PAPER_COUNTS["badnets"])
        return poison_count(self.poisoned or (few if backdoor.goal.num_classes < MANY_CLASSES else many), size)


def _private(value: Any) -> Any:
    """Copy a model, or several by name; all else is frozen."""
    if isinstance(value, dict):
        return {name: _private(v) for name, v in value.items()}
    return value.clone() if isinstance(value, Classifier) else value


def subjects(
    *, suspect: Classifier | None = None, purified: Classifier, reference: Classifier | None
) -> dict[Subject, Classifier]:
    """Name the models that figures are about, in the order of the report; those that are None are left out."""
    models: dict[Subject, Classifier | None] = {"suspect": suspect, "purified": purified, "reference": reference}
    return {subject: model for subject, model in models.items() if model is not None}


def path_rows(
    test: Pool, benign: Pool, backdoor: Backdoor, images: int, rng: torch.Generator
) -> tuple[Pool, Pool, Tensor]:
    """Draw the clean and the triggered images that every point of a path is measured on, at most so many of each.

    Third, clean images (N, C, H, W) to re-estimate BatchNorm's statistics on.
    """
    triggered = backdoor.evaluation.take(backdoor.goal.counted(backdoor.evaluation.labels))
    return test.sample(images, rng), triggered.sample(images, rng), benign.sample(STATISTICS_IMAGES, rng).images


def retuning_recipe(pool: Pool, *, epochs: int = 5, lr: float = 0.01, batch_size: int = 128) -> Recipe:
    """The recipe of the retuning attack (SS B.2): SGD with momentum .9 at a constant rate, 5 epochs of 8 steps."""
    return Recipe(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        min_steps=8,
        schedule="constant",
        augment=Augment.usual(pool.shape),
    )


def poison_count(poisoned: int, size: int) -> int:
    """Scale the paper's count of poisoned images, `poisoned` out of a thousand, to a benign set of `size` images.

    The share is kept, not the number: five in a hundred would teach any model. At least one is poisoned, and one left.
    """
    return max(1, min(round(poisoned * size / 1000), size - 1))


def retuned(
    model: Classifier,
    benign: Pool,
    poisoned: Pool,
    recipe: Recipe,
    rng: torch.Generator,
    on_epoch: Callable[[int, Classifier], None] | None = None,
    what: str = "retuning",
) -> Classifier:
    """Retune a copy of a model on benign images, some of which are replaced by poisoned ones.

    The retuning attack (SS 3.2, B.2): the total stays len(benign). As in the released code, each benign
    image keeps one augmented view for all epochs and poisoned images are never augmented (cards 4.2).
    """
    views = recipe.augment(benign.images, rng)
    kept = benign.with_images(views).take(range(len(poisoned), len(benign)))
    mixed = Pool.concat([kept.to("cpu"), poisoned.to("cpu")])
    return tune(model.clone(), mixed, replace(recipe, augment=Augment()), rng, on_epoch=on_epoch, what=what)


def known_backdoor(
    trigger: Trigger, goal: Goal, benign: Pool, test: Pool, source: Literal["trigger", "inverted"] = "trigger"
) -> Backdoor:
    """Trigger the images whose true class is not the target: some to reactivate with, others to evaluate on."""
    sources, held_out = (p.take(goal.counted(p.labels)) for p in (benign, test))
    return Backdoor(goal, source, trigger.on(sources), trigger.on(held_out))


def unseen_backdoors(benign: Pool, test: Pool, goal: Goal, rng: torch.Generator) -> dict[str, Backdoor]:
    """The same attack around triggers that no model has seen, one a family: the null-trigger control."""
    held_out = test.sample(NULL_IMAGES, rng)
    triggers = null_triggers(benign.shape, rng)
    return {family: known_backdoor(trigger, goal, benign, held_out) for family, trigger in triggers.items()}


def null_triggers(shape: tuple[int, int, int], rng: torch.Generator) -> dict[str, Trigger]:
    """Make triggers that no model has seen, one a family, since a residue may answer to a whole family."""
    _, height, width = shape
    side = max(2, min(height, width) // 8)
    tile = torch.randint(0, 2, (side, side), generator=rng).to(torch.uint8) * 255
    tile[0, 0], tile[-1, -1] = 255, 0
    # Upper half, away from the middle: corners at the bottom are where attacks like to stamp.
    left = int(torch.randint(0, width - side + 1, (), generator=rng))
    top = int(torch.randint(0, max(1, height // 4), (), generator=rng))
    return {
        "patch": patch(shape, tile, top, left),
        "noise": noise(shape, 0.2, rng),
        "stripes": stripes(shape, 0.2, 5),
    }
