"""Defenses that unlearn a trigger which they reverse from the model: their shared options and steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Purified, Tuning
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.inversion import reversal_measurement
from bdaudit.runtime import spawn
from bdaudit.training.bti import Reversal, Reversed, reverse


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
        rounds.append(reverse(model, clean, self.reversal(), spawn(rng), rounds))
        return rounds[-1]

    def purified(self, model: Classifier, found: Reversed, clean: Pool) -> Purified:
        """Hand in the model together with the trigger that was reversed first, from the suspect itself."""
        return Purified(model, reversal_measurement(found, model.classes, clean, self.name))
