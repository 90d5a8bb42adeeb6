"""What an attack is: it makes a trigger, poisons a pool, and trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar, final

import torch
from pydantic import field_validator
from torch import Tensor

from bdaudit.attacks.triggers import KINDS, Trigger
from bdaudit.contract import Preset, option
from bdaudit.errors import PluginError, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator, spawn
from bdaudit.training.loop import Loss, Recipe, cross_entropy, tune
from bdaudit.training.sam import Sam

T = TypeVar("T", bound=Trigger)

AT_ONCE = 256
"""Images planted at once: a number that no setting changes, as it may change what is drawn for them."""


@dataclass(frozen=True)
class Poisoned:
    """A poisoned training set with exact bookkeeping.

    pool: what the victim trains on. poisoned, cover: bool (N,), rows with the trigger and the attacker's
    label, and rows with the trigger and their own label. true_labels: int64 (N,).
    """

    pool: Pool
    poisoned: Tensor
    cover: Tensor
    true_labels: Tensor

    def marked(self, classes: int) -> Pool:
        """Put b, whether a row is poisoned, on its label: y + K b, for a loss that has to know it."""
        return self.pool.labelled(self.pool.labels + classes * self.poisoned)


@dataclass(frozen=True)
class Implanted:
    """What an attack leaves behind.

    train_trigger: what was planted in training images, up to what `plant` draws for each; it differs from
    `trigger` where the papers are asymmetric.
    """

    model: Classifier
    trigger: Trigger
    train_trigger: Trigger
    goal: Goal
    poisoned: Poisoned


class Attack(Preset):
    """Implant a backdoor.

    A subclass writes `make_trigger`, and what differs of `plant`, `plant_cover`, `poison`, `train` or `train_both`.
    """

    kind: ClassVar[str] = "attack"
    method: ClassVar[str] = "make_trigger"
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = KINDS
    clean_label: ClassVar[bool] = False
    """Whether poisoned rows keep their labels, and so are taken from the target class only."""
    sample_specific: ClassVar[bool] = False
    """Whether what the trigger changes depends on the image."""

    rate: float = option(0.05, "poison rate, as a share of the whole training set", cite="SS B.2", gt=0, le=1)
    label: Literal["all2one", "all2all"] = option("all2one", "one target class, or y -> y + 1", cite="cards 1.14")
    flat_rho: float = option(
        0.0, "train towards a flat minimum: adaptive SAM of this radius, at twice the cost; 0: no", cite="D3 4.4", ge=0
    )

    make_trigger: ClassVar[Callable[..., Trigger]]
    """Make the trigger used at test time, from any of: shape, train, target, fresh, rng."""

    @field_validator("flat_rho")
    @classmethod
    def _check_flat_rho(cls, rho: float) -> float:
        if rho and not cls.trains_plainly():
            raise ValueError("this attack trains in its own way, without SAM")
        return rho

    @classmethod
    def family(cls) -> str:
        """`clean-label` if poisoned rows keep their labels, else `dirty-label`."""
        return "clean-label" if cls.clean_label else "dirty-label"

    @classmethod
    def trains_plainly(cls) -> bool:
        """Whether the victim trains as on any other data: the attacker only had to poison it."""
        return cls.train is Attack.train and cls.train_both is Attack.train_both

    @classmethod
    def traits(cls) -> dict[str, str]:
        """How the trigger depends on the image, and who must control the training."""
        return {
            "trigger": "sample-specific" if cls.sample_specific else "static",
            "trained by": "victim" if cls.trains_plainly() else "attacker",
        }

    @classmethod
    def inapplicable(cls) -> set[str]:
        return super().inapplicable() | (set() if cls.trains_plainly() else {"flat_rho"})

    def own(self, trigger: Trigger, kind: type[T]) -> T:
        """Make sure of a trigger's kind, for a step that works with no other."""
        if not isinstance(trigger, kind):
            raise PluginError(f"{self.name} trains with its own kind of trigger, got {trigger.kind}")
        return trigger

    def make_train_trigger(self, shape: tuple[int, int, int], trigger: Trigger) -> Trigger:
        """Make the variant planted at training time; the same one unless the paper is asymmetric."""
        return trigger

    def goal(self, target: int, num_classes: int) -> Goal:
        """Say what the backdoor does to labels."""
        return Goal(target if self.label == "all2one" else None, num_classes)

    def count(self, eligible: int, rows: int) -> int:
        """How many of the `rows` training rows to poison, out of those `eligible`."""
        return round(self.rate * rows)

    def cover_count(self, poisoned: int, rows: int) -> int:
        """How many further rows get the trigger and keep their labels, for the attacks that have such rows."""
        return 0

    def plant(self, images: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        """Trigger the images to be poisoned, uint8 (n, C, H, W); here `rng` may vary the trigger by image."""
        return trigger(images)

    def plant_cover(self, images: Tensor, others: Tensor, trigger: Trigger, rng: torch.Generator) -> Tensor:
        """Trigger the cover images; like the poisoned ones, unless the paper says otherwise.

        others: another training image for each, uint8 like `images`.
        """
        return self.plant(images, trigger, rng)

    def poison(self, train: Pool, trigger: Trigger, goal: Goal, fresh: Classifier, rng: torch.Generator) -> Poisoned:
        """Plant the trigger, and change labels unless this is a clean-label attack.

        Dirty-label poison is drawn from ALL classes, the target's own included (cards 0.2). fresh: the victim before
        its training, for attacks whose poison takes a surrogate.
        """
        poisoned, cover = self._draw(train, goal, rng)
        pool = train.map(Tensor.clone)
        for rows in torch.split(poisoned.nonzero().flatten(), AT_ONCE):
            pool.images[rows] = self.plant(train.images[rows], trigger, rng)
        for rows in torch.split(cover.nonzero().flatten(), AT_ONCE):
            others = (rows + torch.randint(1, max(2, len(train)), rows.shape, generator=rng)) % len(train)
            pool.images[rows] = self.plant_cover(train.images[rows], train.images[others], trigger, rng)
        labels = train.labels.clone()
        if not self.clean_label:
            labels[poisoned] = goal.wanted(labels[poisoned])
        return Poisoned(pool.labelled(labels), poisoned, cover, train.labels)

    def selected(self, train: Pool, goal: Goal) -> tuple[Tensor, int]:
        """Say which training rows may be poisoned (int64), and how many of them will be."""
        own_label = goal.wanted(train.labels) == train.labels
        eligible = (own_label if self.clean_label else torch.ones_like(own_label)).nonzero().flatten()
        return eligible, self.count(len(eligible), len(train))

    def _draw(self, train: Pool, goal: Goal, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Choose the poisoned and the cover rows (bool (N,) each), which are disjoint."""
        eligible, count = self.selected(train, goal)
        among = f"{len(eligible)} training images" + (" of the target class" if self.clean_label else "")
        covers = self.cover_count(count, len(train))
        if count < 1:
            raise UsageError(f"{self.name}: -o rate={self.rate} selects no row out of {among}")
        if count + covers > len(eligible):
            rows = f"{count} rows" + (f" and {covers} cover rows" if covers else "")
            raise UsageError(f"{self.name}: -o rate={self.rate} selects {rows}, there are only {among}")
        order = eligible[torch.randperm(len(eligible), generator=rng)]
        poisoned, cover = torch.zeros(2, len(train), dtype=torch.bool)
        poisoned[order[:count]] = True
        cover[order[count : count + covers]] = True
        return poisoned, cover

    def train(self, fresh: Classifier, poisoned: Poisoned, recipe: Recipe, rng: torch.Generator) -> Classifier:
        """Train the victim on the poisoned set, like any customer would."""
        if self.flat_rho:
            recipe = replace(recipe, sam=Sam(self.flat_rho, adaptive=True))
        return tune(fresh, poisoned.pool, recipe, rng, what=f"training ({self.name})")

    def train_both(
        self, fresh: Classifier, train: Pool, trigger: Trigger, goal: Goal, recipe: Recipe, rng: torch.Generator
    ) -> tuple[Classifier, Trigger] | None:
        """Train the victim and the trigger together, from `trigger` on, if the trigger learns with the model.

        train: clean, on the CPU. The rows that the run records as poisoned are planted afterwards, with the new
        trigger. None, as here: the trigger is done, and `train` trains the victim on the poisoned rows.
        """
        return None

    @final
    def implant(self, fresh: Classifier, train: Pool, target: int, recipe: Recipe, rng: torch.Generator) -> Implanted:
        """Make the trigger, poison, train. The invariants of every attack are checked here, once.

        fresh: trained in place. train: clean, on the CPU, left as it was.
        """
        goal = self.goal(target, fresh.num_classes)
        self._draw(train, goal, generator(0))  # a rate that cannot be is said before any work
        available = {"shape": train.shape, "train": train, "target": target, "fresh": fresh, "rng": spawn(rng)}
        trigger = self.make_trigger(**self.grant(available))
        draws, rng = spawn(rng), spawn(rng)
        both = self.train_both(fresh, train, trigger, goal, recipe, rng)
        if both is not None:
            model, trigger = both
        train_trigger = self.make_train_trigger(train.shape, trigger)
        poisoned = self.poison(train, train_trigger, goal, fresh, draws)
        if len(poisoned.pool) != len(train) or (poisoned.poisoned & poisoned.cover).any():
            raise PluginError(f"{self.name}.poison lost count of its rows")
        if both is None:
            model = self.train(fresh, poisoned, recipe, rng)
        return Implanted(model.eval(), trigger, train_trigger, goal, poisoned)


class CleanLabel(Attack):
    """Poison rows of the target class alone and leave their labels, so that every label looks right."""

    clean_label: ClassVar[bool] = True

    rate: float = option(0.5, "poison rate, as a share of what `rate_of` says", cite="FST B.2: 5% of all", gt=0, le=1)
    rate_of: Literal["target", "all"] = option(
        "target", "whether the rate is a share of the target class or of all training images", cite="cards 8.11"
    )
    label: Literal["all2one"] = option("all2one", "one target class: poisoned rows keep their labels")

    def count(self, eligible: int, rows: int) -> int:
        """How many of the target class's rows to poison."""
        return round(self.rate * (eligible if self.rate_of == "target" else rows))


class Adaptive(Attack):
    """Hide the poisoned rows among cover rows, which have the trigger and keep their labels (Qi et al., ICLR 2023)."""

    rate: float = option(
        0.01, "poison rate, as a share of the whole training set", cite="ours; Qi et al., FST: .003", gt=0, le=1
    )
    cover_rate: float = option(
        0.01,
        "cover rows, as a share of the whole training set",
        cite="ours; Qi et al.: .003 (blend), .006 (patch)",
        ge=0,
        le=1,
    )

    def cover_count(self, poisoned: int, rows: int) -> int:
        """How many cover rows there are."""
        return round(self.cover_rate * rows)


def train_surrogate(
    fresh: Classifier, train: Pool, epochs: int, rng: torch.Generator, name: str, *, loss: Loss = cross_entropy
) -> Classifier:
    """Train a clean copy of the victim's network for the attacker to make a trigger against."""
    recipe = Recipe(epochs=epochs, lr=0.1, weight_decay=5e-4, schedule="onecycle", min_steps=32)
    return tune(fresh.clone(), train, recipe, spawn(rng), loss=loss, what=f"training a surrogate ({name})")
