"""D3: distance-driven detoxification."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Shifting, keep_norms, weights_of
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.loop import tune


class D3(Shifting):
    """Move the head as far from its backdoored weights as clean accuracy allows.

    Wei et al., ICCV 2025, Eq. 4: min -||w - w_ori|| + lambda max(0, CE(f(x), y) - epsilon) subject to
    ||w|| = ||w_ori|| (Frobenius), projected after every step. Starts from a random direction, as the distance has no
    gradient at w_ori.
    """

    name = "d3"
    presets = {
        "paper": {"form": "paper", "penalty": 10.0},
        "released": {"form": "released", "penalty": 0.5},
        "fashion-mnist": {"crop": 1},  # ours: docs/deviations.md
    }

    penalty: float = option(10.0, "lambda, the weight of the clean loss above epsilon", cite="D3 4.1", ge=0)
    epsilon: float = option(0.1, "clean loss that costs nothing", cite="D3 4.1", ge=0)
    form: Literal["paper", "released"] = option(
        "paper",
        "`released` takes the maximum image by image, and divides the loss by 1 + lambda where lambda exceeds 1",
        cite="D3 Eq. 4; D3-repo; cards D-5",
    )
    epochs: int = option(100, "passes over the clean pool", cite="BackdoorBench", ge=1)
    batch_size: int = option(256, "images a step", cite="BackdoorBench", ge=2)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        released, penalty = self.form == "released", self.penalty
        heads = self.moved(model)
        original = weights_of(heads)
        for head in heads:
            head.weight.data.copy_(torch.empty(head.weight.shape).uniform_(-0.5, 0.5, generator=rng))
        keep_norms(heads, original)

        def distant_loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            distance = torch.stack([(h.weight - w).norm() for h, w in zip(heads, original, strict=True)]).sum()
            loss = F.cross_entropy(model(x), y, reduction="none" if released else "mean")
            objective = penalty * (loss - self.epsilon).clamp(min=0).mean() - distance
            return objective / (1 + penalty) if released and penalty > 1 else objective

        def project() -> None:
            keep_norms(heads, original)

        return tune(model, clean, self.recipe(clean), rng, loss=distant_loss, after_step=project, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [D3]
