"""CLP: channel Lipschitzness based pruning."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdaudit.contract import option
from bdaudit.defenses.base import Defense
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.training.masks import batchnorms, convolutions_before, obstacle, silence
from bdaudit.training.progress import say


class CLP(Defense):
    """Prune the channels that can amplify their input most; it needs no images at all.

    Zheng et al., ECCV 2022, Algorithm 1: a channel's Lipschitz bound is the largest singular value of its convolution
    kernel, (inputs, height x width), times BatchNorm's |gamma| / sigma; those above mean + u std of their layer go.
    """

    name = "clp"

    u: float = option(3.0, "standard deviations above the layer's mean", cite="CLP: 3 CIFAR-10, 5 Tiny", ge=0)

    def obstacle(self, model: Classifier) -> str:
        if reason := obstacle(model):
            return reason
        return (
            ""
            if measured(model)
            else "needs BatchNorm layers that follow convolutions and keep a variance, and finds none"
        )

    def purify(self, model: Classifier) -> Classifier:
        bounds = {name: lipschitz_bounds(conv, layer) for name, (conv, layer) in measured(model).items()}
        channels = {name: bound > bound.mean() + self.u * bound.std() for name, bound in bounds.items()}
        marked = torch.cat(list(channels.values()))
        say(f"clp: {int(marked.sum())} of {len(marked)} channels switched off")
        return silence(model, channels, bias=True)


def measured(model: Classifier) -> dict[str, tuple[nn.Conv2d, _BatchNorm]]:
    """List the convolutions whose BatchNorm layer keeps the variance that a bound is counted with."""
    layers = batchnorms(model)
    pairs = {name: (conv, layers[name]) for name, conv in convolutions_before(model).items()}
    return {name: pair for name, pair in pairs.items() if pair[1].running_var is not None}


@torch.no_grad()
def lipschitz_bounds(conv: nn.Conv2d, layer: _BatchNorm) -> Tensor:
    """Bound each output channel of a convolution and its BatchNorm, (C,)."""
    assert layer.running_var is not None
    norms: Tensor = torch.linalg.matrix_norm(conv.weight.float().flatten(2), ord=2)
    return norms * (layer.weight.abs() / (layer.running_var + layer.eps).sqrt())


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [CLP]
