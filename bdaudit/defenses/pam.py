"""PAM: path-aware minimization."""

from collections.abc import Iterable
from functools import partial

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Grading, Purified
from bdaudit.defenses.inverting import Inverting
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.bti import Reversed
from bdaudit.training.loop import tune
from bdaudit.training.path_aware import path_aware, weights_to_go_back_to

SMALLER = (0.7, 0.5, 0.3, 0.1)
"""Path-aware steps that are tried where the largest costs too much accuracy (SS Table 10)."""


class PAM(Inverting, Grading):
    """Unlearn a reversed trigger at a point on the way back to the backdoored model, so that it does not return.

    Superficial Safety, section 4.2, Eq. 3 and Algorithm 1: W <- W - lr * grad CE(f(W~; x), y), taken at
    W~ = W + rho (W0 - W) / ||W0 - W||_2, over batches some of whose images carry the trigger that BTI reverses,
    under true labels.
    """

    name = "pam"
    presets = {
        "badnets": {"rho": 0.9},
        "lc": {"rho": 0.9},
        "blended": {"rho": 0.5},
        "ssba": {"rho": 0.5},
        "cifar100": {"rho": 0.4},
        "tiny-imagenet": {"rho": 0.4},
    }

    rho: float = option(
        0.9, "path-aware step (an L2 distance), at most", cite="SS B.2: .9 BadNets and LC, .5 Blended and SSBA", gt=0
    )

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Purified:
        origin = weights_to_go_back_to(model)
        held, tuning = self.parts(clean, rng)
        suspect = model
        rounds: list[Reversed] = []
        rho = self.rho
        for _ in range(self.rounds):
            found, start = self.reverse_again(model, tuning, rounds, rng), model

            def unlearnt(step: float, found: Reversed = found, start: Classifier = start) -> Classifier:
                loss = path_aware(origin, step, partial(found.mix, share=self.share))
                recipe = self.recipe(tuning, momentum=0.1)
                return tune(start.clone(), tuning, recipe, spawn(rng), loss=loss, what="pam")

            steps = [rho, *(smaller for smaller in SMALLER if smaller < rho)]
            model, rho = self.strongest(steps, unlearnt, suspect, held, "rho")
        return self.purified(model, rounds[0], tuning)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [PAM]
