"""What an attack is: it makes a trigger, poisons a pool, and trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from bdaudit.attacks.triggers import KINDS, Trigger
from bdaudit.contract import Plugin, option
from bdaudit.errors import PluginError, UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.loop import Recipe, tune


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


@dataclass(frozen=True)
class Implanted:
    """What an attack leaves behind. train_trigger differs from trigger where the papers are asymmetric."""

    model: Classifier
    trigger: Trigger
    train_trigger: Trigger
    goal: Goal
    poisoned: Poisoned


class Attack(Plugin):
    """Implant a backdoor. A subclass writes `make_trigger`, and `poison` or `train` where it differs."""

    kind: ClassVar[str] = "attack"
    method: ClassVar[str] = "make_trigger"
    trigger_kinds: ClassVar[Mapping[str, type[Trigger]]] = KINDS
    clean_label: ClassVar[bool] = False
    """Whether poisoned rows keep their labels (and so are taken from the target class only)."""

    rate: float = option(0.05, "poison rate, as a share of the whole training set", cite="SS B.2", gt=0, le=1)
    label: Literal["all2one", "all2all"] = option("all2one", "one target class, or y -> y + 1", cite="cards 1.14")

    make_trigger: ClassVar[Callable[..., Trigger]]
    """Make the trigger used at test time, from any of: shape, train, target, fresh, rng."""

    @classmethod
    def family(cls) -> str:
        """`clean-label` if poisoned rows keep their labels, else `dirty-label`."""
        return "clean-label" if cls.clean_label else "dirty-label"

    def make_train_trigger(self, shape: tuple[int, int, int], trigger: Trigger) -> Trigger:
        """Make the variant planted at training time; the same one unless the paper is asymmetric."""
        return trigger

    def goal(self, target: int, num_classes: int) -> Goal:
        """Say what the backdoor does to labels."""
        return Goal(target if self.label == "all2one" else None, num_classes)

    def poison(self, train: Pool, trigger: Trigger, goal: Goal, rng: torch.Generator) -> Poisoned:
        """Plant the trigger in round(rate * N) rows drawn from ALL classes, the target included (cards 0.2)."""
        count = round(self.rate * len(train))
        if count < 1:
            raise UsageError(f"{self.name}: -o rate={self.rate} selects no row out of {len(train)} training images")
        poisoned = torch.zeros(len(train), dtype=torch.bool)
        poisoned[torch.randperm(len(train), generator=rng)[:count]] = True
        labels = train.labels.clone()
        labels[poisoned] = goal.wanted(labels[poisoned])
        pool = train.map(trigger, poisoned).labelled(labels)
        return Poisoned(pool, poisoned, torch.zeros_like(poisoned), train.labels)

    def train(self, fresh: Classifier, poisoned: Poisoned, recipe: Recipe, rng: torch.Generator) -> Classifier:
        """Train the victim on the poisoned set, like any customer would."""
        return tune(fresh, poisoned.pool, recipe, rng, what=f"training ({self.name})")

    @final
    def implant(self, fresh: Classifier, train: Pool, target: int, recipe: Recipe, rng: torch.Generator) -> Implanted:
        """Make the trigger, poison, train. The invariants of every attack are checked here, once.

        fresh: trained in place. train: clean, on the CPU, left as it was.
        """
        goal = self.goal(target, fresh.num_classes)
        available = {"shape": train.shape, "train": train, "target": target, "fresh": fresh, "rng": spawn(rng)}
        trigger = self.make_trigger(**self.grant(available))
        train_trigger = self.make_train_trigger(train.shape, trigger)
        poisoned = self.poison(train, train_trigger, goal, spawn(rng))
        if len(poisoned.pool) != len(train) or (poisoned.poisoned & poisoned.cover).any():
            raise PluginError(f"{self.name}.poison lost count of its rows")
        model = self.train(fresh, poisoned, recipe, spawn(rng)).eval()
        return Implanted(model, trigger, train_trigger, goal, poisoned)
