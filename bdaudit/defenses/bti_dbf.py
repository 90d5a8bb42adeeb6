"""BTI-DBF: trigger inversion by decoupling benign features."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Purified
from bdaudit.defenses.inverting import Inverting
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.bti import Reversed, poisoned_in
from bdaudit.training.loop import Loss, tune
from bdaudit.training.split import Split


class BTIDBF(Inverting):
    """Reverse a trigger from the features that clean images do not need, then unlearn it.

    Xu et al., ICLR 2024, variant (U), f = h(g(x)): a mask M keeps the benign features, a generator G changes the
    others, and f learns min CE(f(x'), y) + MSE(g(x), g(x')), where some images of x' are G(x), under true labels.
    """

    name = "bti-dbf"

    share: float = option(0.1, "share of each batch that is poisoned, with true labels", cite="BTI U", gt=0, le=1)
    epochs: int = option(5, "passes over the clean pool in a round", cite="BTI: 30", ge=1)
    lr: float = option(1e-4, "Adam's learning rate, falling to zero on a cosine in each round", cite="BTI U", gt=0)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Purified:
        rounds: list[Reversed] = []
        for _ in range(self.rounds):
            found = self.reverse_again(model, clean, rounds, rng)
            recipe = self.recipe(clean, optimizer="adam")
            tune(model, clean, recipe, rng, loss=unlearning(Split(model), found, self.share), what=self.name)
        return self.purified(model, rounds[0], clean)


def unlearning(split: Split, found: Reversed, share: float) -> Loss:
    """CE on batches of which a share is poisoned, and how far that moves their features; both sides learn."""

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        n, k = len(x), poisoned_in(len(x), share)
        mixed = found.mix(x, share)
        # Only replaced images differ from their originals, so only their originals go through the network again.
        features, logits = split.both(torch.cat([mixed, x[:k] / 255]))
        shift = (features[:k] - features[n:]).square().sum() / features[:n].numel()
        return F.cross_entropy(logits[:n], y) + shift

    return loss


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [BTIDBF]
