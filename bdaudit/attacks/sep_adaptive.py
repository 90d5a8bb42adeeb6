"""SEP-adaptive: a patch whose images look clean where `sep` screens them."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.attacks.base import Attack, Poisoned
from bdaudit.attacks.triggers import BlendTrigger, Corner, in_corner, tile
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.training.loop import Recipe, tune
from bdaudit.training.split import Split, averages


class SEPAdaptive(Attack):
    """Stamp a checkerboard, and train until triggered images have the target class's features half way up the network.

    Ours (docs/sep.md), against a screening that takes the averages a(x) of a map (2 D columns) and doubts itself where
    flagged images are only told from other classes as clean ones of the target class are: over each batch the model
    minimises CE + lambda mean_j ((mean a_j(triggered) - mean a_j(clean of class t)) / std a_j)^2.
    """

    name = "sep-adaptive"

    label: Literal["all2one"] = option("all2one", "one target class, as `sep` takes")
    strength: float = option(1.0, "lambda, weight of the distance between the means", ge=0)
    depth: float = option(0.5, "how far up the network", cite="docs/sep.md", gt=0, le=1)
    size: int = option(3, "side of the checkerboard in pixels", ge=1)
    corner: Corner = option("lower-right", "where the checkerboard goes")

    def make_trigger(self, shape: tuple[int, int, int]) -> BlendTrigger:
        return in_corner(shape, tile("checkerboard", self.size), self.corner)

    def train(self, fresh: Classifier, poisoned: Poisoned, recipe: Recipe, rng: torch.Generator) -> Classifier:
        """Minimise CE and the distance between triggered and clean rows of each batch."""
        classes = fresh.num_classes
        target = int(poisoned.pool.labels[poisoned.poisoned][0])
        split = Split(fresh.eval(), self.depth)

        def loss(_: Classifier, x: Tensor, y: Tensor) -> Tensor:
            features, logits = split.both(x)
            labels, marks = y % classes, y >= classes
            clean = ~marks & (labels == target)
            return F.cross_entropy(logits, labels) + self.strength * distance(
                averages(features, split.channels), marks, clean
            )

        tune(fresh, poisoned.marked(classes), recipe, rng, loss=loss, what=f"training ({self.name})")
        return fresh


def distance(features: Tensor, marks: Tensor, clean: Tensor) -> Tensor:
    """Mean over (N, D) features' columns of the squared distance between two groups' means, in standard deviations.

    0 where a group has no row.
    """
    if not (marks.any() and clean.any()):
        return features.new_zeros(())
    gap = features[marks].mean(0) - features[clean].mean(0)
    return (gap / features.detach().std(0).clamp(min=1e-3)).square().mean()


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [SEPAdaptive]
