"""PAM: path-aware minimization."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Judging, Purified
from bdaudit.defenses.inverting import Inverting
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.bti import Reversed
from bdaudit.training.loop import Loss, tune
from bdaudit.training.metrics import accuracy
from bdaudit.training.progress import say

SMALLER = (0.7, 0.5, 0.3, 0.1)
"""Path-aware steps that are tried where the largest costs too much accuracy (SS Table 10)."""


class PAM(Inverting, Judging):
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
    accuracy_drop: float = option(
        0.03, "fall of held-out accuracy for which a smaller rho is tried; 1: never", cite="cards 8.10", ge=0, le=1
    )

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Purified:
        origin = {name: p.detach().clone() for name, p in model.named_parameters()}
        held, tuning = self.parts(clean, rng)
        least = accuracy(model, held).value - self.accuracy_drop
        rounds: list[Reversed] = []
        rho = self.rho
        for _ in range(self.rounds):
            found = self.reverse_again(model, tuning, rounds, rng)
            tried: list[Tuned] = []
            for step in [rho, *(smaller for smaller in SMALLER if smaller < rho)]:
                loss = path_aware(origin, step, found, self.share)
                tuned = tune(
                    model.clone(), tuning, self.recipe(tuning, momentum=0.1), spawn(rng), loss=loss, what="pam"
                )
                tried.append(Tuned(accuracy(tuned, held).value, step, tuned))
                if tried[-1].accuracy >= least:
                    break
            best = max(tried)  # the last, unless all fell too far
            model, rho = best.model, best.rho
            say(f"pam: rho {rho:g}, held-out accuracy {best.accuracy:.3f} (wanted at least {least:.3f})")
        return self.purified(model, rounds[0], tuning)


@dataclass(frozen=True, order=True)
class Tuned:
    """What one rho led to; the more accurate the better, and of equals the one with the larger rho."""

    accuracy: float
    rho: float
    model: Classifier = field(compare=False)


def path_aware(origin: dict[str, Tensor], rho: float, found: Reversed, share: float) -> Loss:
    """CE of the model `rho` closer to the backdoored one; its gradient in the shifted weights is that in the weights.

    Nearer than rho to W0 the shift ends at W0, which is the end of the path.
    """

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        weights = dict(model.named_parameters())
        with torch.no_grad():
            path = {name: origin[name] - w for name, w in weights.items()}
            distance = torch.stack([d.norm() for d in path.values()]).norm()
            scale = rho / distance.clamp(min=rho)
        shifted = {name: w + scale * path[name] for name, w in weights.items()}
        return F.cross_entropy(functional_call(model, shifted, (found.mix(x, share),)), y)

    return loss


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [PAM]
