"""A linear layer over channels, put behind a convolution to be learned, and then folded into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import Runtime
from bdaudit.training.masks import batchnorms, convolutions_before


def places(model: Classifier) -> list[str]:
    """Name the BatchNorm layers that a polarizer fits behind, in the order in which they run.

    The convolution before them has to read all channels, so that it can give any mixture of those that it gives, and
    nothing else may read what it gives.
    """
    layers = batchnorms(model)
    found = convolutions_before(model, alone=True).items()
    return [name for name, conv in found if conv.groups == 1 and layers[name].track_running_stats]


class Polarizer:
    """A 1x1 convolution behind a BatchNorm, the identity at first: all that learns in an otherwise frozen model."""

    def __init__(self, model: Classifier, at: str) -> None:
        """Put it behind the layer `at` of the model, in place."""
        self.model = model.requires_grad_(False)
        self.norm, self.conv = batchnorms(model)[at], convolutions_before(model)[at]
        channels = self.norm.num_features
        # Nothing is drawn: the weights are set below.
        self.layer = nn.Conv2d(channels, channels, 1, device="meta").to_empty(device=model.device)
        nn.init.dirac_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]  # there is one
        self._hook = self.norm.register_forward_hook(lambda _, __, out: self.layer(out))
        # Where `tune` finds what to train; gone again after folding.
        model.add_module("polarizer", self.layer)

    @torch.no_grad()
    def fold(self, images: Tensor) -> Classifier:
        """Write it into the convolution and BatchNorm before it, and return the model: the same logits in eval mode.

        M (g (z - mu) / s + b) + c, z = W x, is one convolution with weight M g/s W. BatchNorm then shifts, and is given
        the statistics of what that convolution makes of `images` (uint8, clean), so that training goes on from there.
        """
        self._hook.remove()
        del self.model.polarizer
        norm, conv, mix = self.norm, self.conv, self.layer.weight.flatten(1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert self.layer.bias is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        before = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        shift = mix @ (scale * before + norm.bias) + self.layer.bias
        conv.weight.copy_(((mix * scale) @ conv.weight.flatten(1)).reshape(conv.weight.shape))
        if conv.bias is not None:
            conv.bias.zero_()
        mean, variance = self._moments(conv, images)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(shift + mean)
        return self.model.requires_grad_(True)

    def _moments(self, conv: nn.Conv2d, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel that the convolution gives."""
        sums: list[Tensor] = []

        def note(_: nn.Module, __: object, out: Tensor) -> None:
            z = out.double().movedim(1, 0).flatten(1)
            sums.append(torch.stack([torch.full_like(z[:, 0], z.shape[1]), z.sum(1), z.square().sum(1)]))

        hook = conv.register_forward_hook(note)
        try:
            for x in torch.split(images, 256):
                with Runtime.of(self.model.device).autocast():
                    self.model.eval()(x.to(self.model.device))
        finally:
            hook.remove()
        n, first, second = torch.stack(sums).sum(0)
        return (first / n).float(), (second / n - (first / n).square()).clamp(min=0).float()
