"""LP: linear probing."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class LP(Tuning):
    """Tune the head alone; features that carry the backdoor stay, and it with them.

    FST section 3 and B.3: min over the head of CE(f(x), y), the extractor's weights frozen. BatchNorm's statistics
    follow the clean images, as in the released code.
    """

    name = "lp"

    lr: float = option(0.3, "learning rate, falling to zero on a cosine", cite="FST-repo: .3, .5 or .7", gt=0)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        model.requires_grad_(False).head.requires_grad_(True)
        return tune(model, clean, self.recipe(clean), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [LP]
