"""The path-aware step of PAM: learn at a point on the way back to the backdoored model (Superficial Safety, Eq. 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bdaudit.inputs.classifier import Classifier
from bdaudit.training.loop import Loss


def weights_to_go_back_to(model: nn.Module) -> dict[str, Tensor]:
    """Copy the parameters by name, before the model is tuned."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def path_aware(origin: dict[str, Tensor], rho: float, mixed: Callable[[Tensor], Tensor] = lambda x: x) -> Loss:
    """CE of the model `rho` closer to the backdoored one; its gradient in the shifted weights is that in the weights.

    W~ = W + rho (W0 - W) / ||W0 - W||_2, with W0 = origin. Nearer than rho to W0 the shift ends at W0, which is the end
    of the path. mixed: what is done to a batch of pixels first.
    """

    def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
        weights = dict(model.named_parameters())
        with torch.no_grad():
            path = {name: origin[name] - w for name, w in weights.items()}
            distance = torch.stack([d.norm() for d in path.values()]).norm()
            scale = rho / distance.clamp(min=rho)
        shifted = {name: w + scale * path[name] for name, w in weights.items()}
        return F.cross_entropy(functional_call(model, shifted, (mixed(x),)), y)

    return loss
