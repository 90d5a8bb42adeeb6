"""What is measured on a model: predictions, rates with their counts, DER."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bdaudit.inputs import scratch
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime

ROUNDING = 1e-9
"""What subtracting from a rate may add to it: .91 - .06 is more than .85."""


@dataclass(frozen=True)
class Rate:
    """k successes out of n images; hits (bool (n,), on the CPU) tells which, where rates are to be compared."""

    successes: int
    n: int
    hits: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def value(self) -> float:
        """Share of successes in [0, 1]; NaN over no images."""
        return self.successes / self.n if self.n else float("nan")

    def less(self, drop: float) -> float:
        """Say which rate is still enough where so much of this one may be lost."""
        return self.value - drop - ROUNDING

    @classmethod
    def of(cls, hits: Tensor) -> Rate:
        """Count a boolean tensor."""
        return cls(int(hits.sum()), hits.numel(), hits)


def at_once(device: torch.device) -> int:
    """How many images to take at a time where nothing is learned.

    What more of them leave between layers, a processor's memory is asked for anew each time: a sixth longer for a
    ResNet-18 of width 16.
    """
    return 128 if device.type == "cpu" else 512


def predict_logits(model: Classifier, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Run the model in eval mode over uint8 or float pixels; logits fp32 (N, K) on the model's device."""
    return _over(model, model, images, batch_size, model.num_classes)


def predict_features(model: Classifier, images: Tensor, batch_size: int | None = None) -> Tensor:
    """Run the model in the same way; penultimate features fp32 (N, D), what goes into its head."""
    features = _over(model, model.features, images, batch_size, model.head.in_features)
    return features.flatten(1)


def _over(
    model: Classifier, forward: Callable[[Tensor], Tensor], images: Tensor, batch_size: int | None, width: int
) -> Tensor:
    runtime = Runtime.of(model.device)
    with torch.inference_mode(False):  # what is copied in it lets no gradient through ever after
        runtime.place(model)
    was_training = model.training
    model.eval()
    out = []
    with torch.inference_mode():
        for x in torch.split(images, batch_size or at_once(model.device)):
            with runtime.autocast():
                out.append(forward(x.to(model.device)).float())
            scratch.release(images)
    model.train(was_training)
    return torch.cat(out) if out else torch.empty((0, width), device=model.device)


def predict(model: Classifier, images: Tensor) -> Tensor:
    """Predicted classes (N,), int64, on the CPU."""
    return predict_logits(model, images).argmax(1).cpu()


def accuracy(model: Classifier, pool: Pool) -> Rate:
    """C-ACC: clean images given their true class."""
    return Rate.of(predict(model, pool.images) == pool.labels.cpu())


def attack_rates(model: Classifier, triggered: Pool, goal: Goal) -> tuple[Rate, Rate]:
    """ASR and robust accuracy over triggered images that carry their TRUE labels.

    Images whose true class is the target count in neither (design section 6; cards 0.2).
    """
    counted = goal.counted(triggered.labels)
    kept = triggered.take(counted)
    predicted, labels = predict(model, kept.images), kept.labels.cpu()
    return Rate.of(predicted == goal.wanted(labels)), Rate.of(predicted == labels)


def der(acc_before: float, acc_after: float, asr_before: float, asr_after: float) -> float:
    """Defense effectiveness rating in [0, 1] (D3 Eq. 5, BSD Eq. 12), from fractions."""
    return (max(0.0, asr_before - asr_after) - max(0.0, acc_before - acc_after) + 1) / 2
