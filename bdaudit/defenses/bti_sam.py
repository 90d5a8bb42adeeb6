"""BTI+SAM: reversed triggers unlearned with ordinary sharpness-aware minimisation."""

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
from bdaudit.training.bti import Reversed
from bdaudit.training.loop import tune
from bdaudit.training.sam import Sam


class BTISAM(Inverting):
    """Unlearn a reversed trigger at the worst point nearby: the baseline that PAM is compared with.

    Superficial Safety, C.5: PAM's batches and cross-entropy, with SAM's step, rho g / ||g||, instead of the step
    towards the backdoored model.
    """

    name = "bti-sam"

    rho: float = option(0.05, "radius of the neighbourhood", cite="SAM; SS C.5 does not say", gt=0)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Purified:
        rounds: list[Reversed] = []
        for _ in range(self.rounds):
            found = self.reverse_again(model, clean, rounds, rng)

            def loss(model: Classifier, x: Tensor, y: Tensor, found: Reversed = found) -> Tensor:
                return F.cross_entropy(model(found.mix(x, self.share)), y)

            tune(model, clean, self.recipe(clean, momentum=0.1, sam=Sam(self.rho)), rng, loss=loss, what=self.name)
        return self.purified(model, rounds[0], clean)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [BTISAM]
