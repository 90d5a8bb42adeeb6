"""NFT: neural mask fine-tuning."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.loop import Loss, tune
from bdaudit.training.masks import Masked, obstacle

LAST = 0.4
"""Where the learning rate ends, in shares of where it starts: .02 of .05 in the released code."""


class NFT(Tuning):
    """Fine-tune one multiplier a channel instead of the weights, on images mixed in pairs.

    Karim et al., ECCV 2024: min over m of CE on MixUp + eta sum |1 - m|, over masks of BatchNorm's weights, each held
    in [alpha exp(-beta l), 1] in layer l: deep layers, where backdoors are, may fall further.
    """

    name = "nft"

    lr: float = option(0.05, "learning rate of the masks, falling to two fifths on a cosine", cite="NFT released", gt=0)
    alpha: float = option(0.8, "least mask before the first layer", cite="NFT released", ge=0, le=1)
    beta: float = option(0.5, "fall of the least mask from layer to layer, in the exponent", cite="NFT released", ge=0)
    eta: float = option(1e-3, "weight of sum |1 - m|, over the images a class", cite="NFT released", ge=0)

    def obstacle(self, model: Classifier) -> str:
        return obstacle(model)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        masked = Masked(model)
        eta = self.eta * model.num_classes / len(clean)
        recipe = self.recipe(clean, momentum=0.95, schedule=to_two_fifths)
        tune(
            masked.model,
            clean,
            recipe,
            rng,
            loss=mixed_up(masked, eta, spawn(rng)),
            after_step=lambda: masked.clip(lambda depth: self.alpha * math.exp(-self.beta * depth)),
            what=self.name,
        )
        return masked.fold()


def mixed_up(masked: Masked, eta: float, rng: torch.Generator) -> Loss:
    """CE on pairs of images mixed by a share from Beta(1, 1), which is uniform, and what holds the masks at 1."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        share = torch.rand((), generator=rng).item()
        other = torch.randperm(len(x), generator=rng).to(x.device)
        pixels = x / 255
        logits = model(share * pixels + (1 - share) * pixels[other])
        fit = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[other])
        return fit + eta * torch.stack([(1 - m).abs().sum() for m in masked.masks.values()]).sum()

    return loss


def to_two_fifths(done: float) -> float:
    """The share of the learning rate after a share of the steps."""
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * done)) / 2


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [NFT]
