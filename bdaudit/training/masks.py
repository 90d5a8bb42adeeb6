"""Masks on the channels that BatchNorm scales: what ANP, RNP and NFT learn, and what CLP finds in the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.metrics import accuracy
from bdaudit.training.progress import say

THRESHOLDS = tuple(i / 20 for i in range(19))
"""Where masks are cut: 0, .05, ... .9 (cards 2.12)."""


def batchnorms(model: Classifier) -> dict[str, _BatchNorm]:
    """List the layers whose channels can be masked, by name, in the order in which they were registered."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.affine}


def obstacle(model: Classifier) -> str:
    """Say in words why a model's channels cannot be masked; '' if they can."""
    if batchnorms(model):
        return ""
    name = model.arch.label if model.arch else type(model.body).__name__
    return f"masks the channels of BatchNorm layers, and {name} has none"


class Multiplier(nn.Module):
    """Multiply a layer's weight or bias, channel by channel, by `value`, plus noise where there is some."""

    noise: Tensor | None = None

    def __init__(self, channels: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones_like(channels))

    def forward(self, channels: Tensor) -> Tensor:
        """Map what the layer holds, (C,), to what it uses."""
        return channels * (self.value if self.noise is None else self.value + self.noise)


class Masked:
    """A copy of a model, frozen but for a mask on its BatchNorm weights: m in the layer's  m w z + b.

    model: to be run and tuned as any other. masks: each layer's, float (C,), ones at first; the only parameters that
    learn. BatchNorm's running statistics are the copy's own as well.
    """

    def __init__(self, model: Classifier) -> None:
        self.model = model.clone().requires_grad_(False)
        self.masks: dict[str, nn.Parameter] = {}
        self._multipliers: list[Multiplier] = []
        for name, layer in batchnorms(self.model).items():
            for what in ("weight", "bias"):
                multiplier = Multiplier(getattr(layer, what))
                parametrize.register_parametrization(layer, what, multiplier)
                self._multipliers.append(multiplier)
                if what == "weight":
                    self.masks[name] = multiplier.value
                else:
                    multiplier.requires_grad_(False)

    def uniform_noise(self, bound: float, rng: torch.Generator) -> list[Tensor]:
        """Draw from U(-bound, bound) what `noisy` adds: for each layer the weights' noise and the biases'."""
        sizes = (m.value for m in self._multipliers)
        return [torch.empty(v.shape).uniform_(-bound, bound, generator=rng).to(v.device) for v in sizes]

    @contextmanager
    def noisy(self, noise: Sequence[Tensor]) -> Iterator[None]:
        """Use weights w (m + noise) and biases b (1 + noise) inside the block; gradients reach the noise."""
        try:
            for multiplier, added in zip(self._multipliers, noise, strict=True):
                multiplier.noise = added
            yield
        finally:
            for multiplier in self._multipliers:
                multiplier.noise = None

    @torch.no_grad()
    def clip(self, floor: Callable[[int], float] = lambda depth: 0.0) -> None:
        """Put the masks back into [floor, 1]; the floor may depend on the layer's number, from 1."""
        for depth, mask in enumerate(self.masks.values(), start=1):
            mask.clamp_(floor(depth), 1)

    def fold(self) -> Classifier:
        """Multiply the masks into the weights and return the model, which is an ordinary one again."""
        for layer in batchnorms(self.model).values():
            for what in ("weight", "bias"):  # the order in which a layer registers them, and states list them
                parametrize.remove_parametrizations(layer, what)
        return self.model


@torch.no_grad()
def silence(model: Classifier, channels: Mapping[str, Tensor], *, bias: bool = False) -> Classifier:
    """Set the BatchNorm weights of the marked channels (bool (C,) by layer) to zero, in place; the biases if asked."""
    layers = batchnorms(model)
    for name, marked in channels.items():
        layers[name].weight[marked] = 0
        if bias:
            layers[name].bias[marked] = 0
    return model


def prune(model: Classifier, masks: Mapping[str, Tensor], held_out: Pool, drop: float, what: str) -> Classifier:
    """Silence the channels whose mask is at most t, in a copy, for the largest t that costs no more than `drop`.

    The cost is accuracy on clean images held out. Thresholds are tried from the top: accuracy over few images wavers
    on its way down, and the first one to cost too much from below need not be where it stays down.
    """
    total, before = sum(mask.numel() for mask in masks.values()), accuracy(model, held_out)
    for threshold in reversed(THRESHOLDS):
        channels = {name: mask <= threshold for name, mask in masks.items()}
        off = sum(int(marked.sum()) for marked in channels.values())
        pruned = silence(model.clone(), channels)
        rate = accuracy(pruned, held_out).value
        if rate >= before.less(drop):
            say(
                f"{what}: {off} of {total} channels switched off (masks up to {threshold:g}), "
                f"held-out accuracy {rate:.3f} (before: {before.value:.3f})"
            )
            return pruned
    say(f"{what}: no channel switched off, as any threshold costs more than {drop:g} of held-out accuracy")
    return model


def convolutions_before(model: Classifier, *, alone: bool = False) -> dict[str, nn.Conv2d]:
    """Map each BatchNorm layer that takes a convolution's output as it is to that convolution.

    Found by running the model, since the order of registration misleads: in pre-activation networks it pairs
    layers that sums lie between. alone: only where nothing else reads that output, as such a network's shortcuts do.
    """
    outputs: list[tuple[nn.Conv2d, Tensor, int]] = []
    pairs: dict[str, nn.Conv2d] = {}
    shared: set[nn.Conv2d] = set()
    within: list[str] = []

    def note(conv: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        outputs.append((conv, out, out._version))

    def look(name: str, x: Tensor) -> None:
        within.append(name)
        # The version tells whether an operation in place came between.
        for conv, out, version in outputs:
            if out is x and out._version == version:
                shared.update({conv} if conv in pairs.values() else ())
                pairs[name] = conv

    def leave(*_: object) -> None:
        within.pop()

    def read(values: list[object]) -> None:
        if not within:
            shared.update(conv for conv, out, _ in outputs if any(value is out for value in values))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    for name, layer in batchnorms(model).items():
        hooks.append(layer.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0])))
        hooks.append(layer.register_forward_hook(leave))
    was_training = model.training
    try:
        with torch.no_grad(), Reading(read):
            model.eval()(torch.zeros(1, *model.preprocessing.shape, device=model.device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {name: conv for name, conv in pairs.items() if not (alone and conv in shared)}


class Reading(TorchFunctionMode):
    """Tells what every function of torch that makes tensors was given, in lists or not, while this is entered."""

    def __init__(self, note: Callable[[list[object]], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, (Tensor, tuple, list)):  # not a look at shapes or versions
            given = (*args, *(kwargs or {}).values())
            self.note([v for value in given for v in (value if isinstance(value, (tuple, list)) else [value])])
        return made
