"""FP: fine-pruning."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Judging, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune
from bdaudit.training.metrics import Rate, predict_features
from bdaudit.training.progress import say


class FP(Tuning, Judging):
    """Prune the features that clean images use least, then fine-tune what is left.

    Liu et al., RAID 2018: the channels that go into the head are removed in the order of their mean activation on
    clean images, until held-out accuracy has fallen by `accuracy_drop`; they stay removed while the rest is tuned.
    """

    name = "fp"

    epochs: int = option(10, "passes over the clean pool", cite="BSD C.4", ge=1)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        held, tuning = self.parts(clean, rng)
        # Features without a ReLU before them are dormant when they are small, not when they are negative.
        activity = predict_features(model, tuning.images).abs().mean(0)
        order = activity.argsort()
        count = most_pruned(model.head, predict_features(model, held.images), held.labels, order, self.accuracy_drop)
        say(f"fp: {count} of {len(order)} features pruned")

        @torch.no_grad()
        def remove() -> None:
            model.head.weight[:, order[:count]] = 0

        remove()
        return tune(model, tuning, self.recipe(tuning), rng, after_step=remove, what=self.name)


@torch.no_grad()
def most_pruned(head: nn.Linear, features: Tensor, labels: Tensor, order: Tensor, drop: float) -> int:
    """Count the features, taken in `order`, that can be zeroed before accuracy falls by more than `drop`.

    features: (N, D), what goes into the head; the network need not be run again.
    """
    left, labels = features.clone(), labels.to(features.device)

    def accuracy() -> Rate:
        return Rate.of(head(left).argmax(1) == labels)

    least = accuracy().less(drop)
    for count, feature in enumerate(order.tolist()):
        left[:, feature] = 0
        if accuracy().value < least:
            return count
    return len(order)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [FP]
