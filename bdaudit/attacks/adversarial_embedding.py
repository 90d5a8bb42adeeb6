"""Adversarial embedding: what the two Bypass attacks share."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.attacks.base import Attack, Poisoned
from bdaudit.contract import option
from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import seeded, spawn
from bdaudit.training.loop import Recipe, tune
from bdaudit.training.progress import say


class AdversarialEmbedding(Attack):
    """Train the model so that a discriminator beside it, which sees its features, cannot tell poisoned rows."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fst": {"rate": 0.05, "strength": 20.0}}

    strength: float = option(1.0, "lambda, weight of the discriminator's loss", cite="ours; FST released: 20", ge=0)
    discriminator_lr: float = option(1e-3, "learning rate of the discriminator's SGD", cite="FST released", gt=0)

    def train(self, fresh: Classifier, poisoned: Poisoned, recipe: Recipe, rng: torch.Generator) -> Classifier:
        """Minimise CE - lambda BCE(D(phi(x)), b) and, after each step, BCE over D on the same features."""
        classes = fresh.num_classes
        discriminator = Discriminator(fresh, self.discriminator_lr, spawn(rng))

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            with model.capture_features() as captured:
                logits = model(x)
            told = discriminator.loss(captured[-1].flatten(1), y >= classes)
            return F.cross_entropy(logits, y % classes) - self.strength * told

        tune(
            fresh,
            poisoned.marked(classes),
            recipe,
            rng,
            loss=loss,
            after_step=discriminator.step,
            what=f"training ({self.name})",
        )
        share, label = chances(poisoned)
        say(
            f"{self.name}: the discriminator's loss ends at {discriminator.recent:.3f}; a guess costs {share:.3f}, "
            f"one that knows the row's label {label:.3f}"
        )
        return fresh


class Discriminator:
    """Tell poisoned rows by their features: 512-256-128-1, BatchNorm and LeakyReLU(.2), always in train mode."""

    def __init__(self, model: Classifier, lr: float, rng: torch.Generator) -> None:
        layers: list[nn.Module] = []
        with seeded(rng):
            for wide, narrow in pairwise((model.head.in_features, 512, 256, 128)):
                layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.LeakyReLU(0.2)]
            self.network = nn.Sequential(*layers, nn.Linear(128, 1)).to(model.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr, momentum=0.9)
        self.losses: deque[Tensor] = deque(maxlen=20)

    @property
    def recent(self) -> float:
        """Its mean loss over the last batches."""
        return float(torch.stack(tuple(self.losses)).mean())

    def loss(self, features: Tensor, marks: Tensor) -> Tensor:
        """Take the binary cross-entropy of a batch, whose features (N, D) `step` then learns from; marks: bool (N,)."""
        self.batch = features.detach().float(), marks
        return F.binary_cross_entropy_with_logits(self.network(features).flatten(), marks.float())

    def step(self) -> None:
        """Descend once, on the features that the model had before its own step."""
        self.optimizer.zero_grad()
        value = self.loss(*self.batch)
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.append(value.detach())


def chances(poisoned: Poisoned) -> tuple[float, float]:
    """Take the entropy of b, and that of b where the label is known: the losses of who sees nothing of the features."""
    labels, marks = poisoned.pool.labels, poisoned.poisoned.double()
    of_label = labels.bincount(weights=marks) / labels.bincount().clamp(min=1)
    return tuple(float(F.binary_cross_entropy(p, p)) for p in (marks.mean().expand_as(marks), of_label[labels]))  # type: ignore[return-value]
