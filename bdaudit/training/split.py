"""A network cut in two at a feature map, the last one or one at some depth, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bdaudit.errors import UsageError
from bdaudit.inputs import scratch
from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import Runtime

Change = Callable[[Tensor], Tensor]


class Split:
    """f = h(g(x)): g up to a map of features (channels by height by width, or tokens by width), h the rest.

    The cut is the output of a module whose value alone decides the logits. Of these it is the last one: what goes
    into the pooling of a convolutional network, the tokens that leave a transformer. With `depth` it is the one by
    which about that share of the layers with weight matrices has run: at .5, a ResNet's second stage, half the
    blocks of a transformer. A network without maps is cut at its head's input. `channels`: the axis of g(x) that counts
    them.
    """

    def __init__(self, model: Classifier, depth: float = 1.0) -> None:
        """Find the cut by running the network on blank images; UsageError where it has none."""
        self.model = model
        self.depth = depth
        self._blank = torch.zeros(1, *model.preprocessing.shape, device=model.device)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self.at, self.channels = self._find()
        finally:
            model.train(was_training)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (N, C, H, W) to g(x) (N, ...) and the logits (N, K), in fp32."""
        seen: list[Tensor] = []

        def see(features: Tensor) -> Tensor:
            seen.append(features)
            return features

        with self._changing(self.at, see):
            logits = self.model(x)
        return seen[0].float(), logits.float()

    def features(self, x: Tensor) -> Tensor:
        """Map pixels to g(x)."""
        return self.both(x)[0]

    @torch.no_grad()
    def features_of(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Map all uint8 pixels to g(x), in batches."""
        with Runtime.of(self.model.device).autocast():
            return torch.cat([self.features(x.to(self.model.device)) for x in torch.split(images, batch_size)])

    @torch.no_grad()
    def averages_of(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Take the `averages` of g(x) for all uint8 pixels (N, C, H, W); in eval mode, the result is on the CPU."""
        found = []
        with Runtime.of(self.model.device).autocast():
            for x in torch.split(images, batch_size):
                found.append(averages(self.features(x.to(self.model.device)), self.channels).cpu())
                scratch.release(images)
        return torch.cat(found)

    def logits(self, features: Tensor) -> Tensor:
        """Map features (N, ...) to h's logits (N, K); the model must be in eval mode.

        One blank image goes through g, and what g makes of it is replaced: h is never copied out of the network.
        """
        return self._logits(self.at, features)

    def _logits(self, at: str, features: Tensor) -> Tensor:
        with self._changing(at, lambda _: features):
            logits: Tensor = self.model(self._blank)
        return logits.float()

    def _find(self) -> tuple[str, int]:
        images = torch.rand(2, *self._blank.shape[1:], generator=torch.Generator().manual_seed(0))
        images = images.to(self.model.device)
        reached, expected = maps_of(self.model, images)
        layouts = with_channels([(n, m.value.shape) for n, m in reached.items()], self.model.preprocessing.shape)
        axes = {name: axis for name, _, axis in layouts}
        later_first = list(reached)[::-1]  # of several at one depth, the last is the one that is normalised and summed
        for name in [*sorted(later_first, key=lambda n: abs(reached[n].depth - self.depth)), ""]:
            self.at = name
            try:
                again = self._logits(name, self.features(images))
            except RuntimeError:  # a branch of one image beside features of several: no cut here
                continue
            if again.shape == expected.shape and torch.allclose(again, expected, rtol=1e-3, atol=1e-4):
                return name, axes.get(name, 1)
        raise UsageError(
            f"{type(self.model.body).__name__} cannot be cut at its features: more than they decides its logits"
        )

    @contextmanager
    def _changing(self, at: str, change: Change) -> Iterator[None]:
        if at:
            module = self.model.body.get_submodule(at)
            hook = module.register_forward_hook(lambda _, __, out: change(out))
        else:
            hook = self.model.head.register_forward_pre_hook(lambda _, args: (change(args[0]),))
        try:
            yield
        finally:
            hook.remove()


Layout = tuple[str, torch.Size, int]
"""A module's name, the shape of what it gave, and the axis of that shape that counts channels."""


class Map(NamedTuple):
    """What a module gave, and the share of the layers with weight matrices that had run by then."""

    value: Tensor
    depth: float


def maps_of(model: Classifier, images: Tensor) -> tuple[dict[str, Map], Tensor]:
    """Run once; return what each module that gives one map gave, in the order in which they finish, and the logits."""
    calls: dict[str, list[Any]] = {}
    run_by: dict[str, int] = {}
    weighted = 0
    hooks = []
    for name, module in model.body.named_modules():
        if name:

            def note(module: nn.Module, _: object, out: object, name: str = name) -> None:
                nonlocal weighted
                weighted += any(p.ndim > 1 for p in module.parameters(recurse=False))
                calls.setdefault(name, []).append(out)
                run_by[name] = weighted

            hooks.append(module.register_forward_hook(note))
    try:
        logits = model(images).float()
    finally:
        for hook in hooks:
            hook.remove()
    names = [n for n, outs in calls.items() if len(outs) == 1 and _is_map(model.body.get_submodule(n), outs[0])]
    return {n: Map(calls[n][0], run_by[n] / max(1, weighted)) for n in names}, logits


def _is_map(module: nn.Module, out: object) -> bool:
    """Whether a module gave features of places, and does not pool them: what goes into the last pooling is wanted."""
    return isinstance(out, Tensor) and out.ndim > 2 and "Pool" not in type(module).__name__


def with_channels(maps: list[tuple[str, torch.Size]], image: tuple[int, int, int]) -> list[Layout]:
    """Tell the axis of channels: maps keep the image's proportions, (N, C, H, W) or (N, H, W, C); tokens are (N, T, C).

    A map of as many channels as rows and columns says nothing, and has the layout of the next that does.
    """
    _, height, width = image
    told, axis = [], 1
    for name, shape in reversed(maps):
        if len(shape) == 4:
            first, last = (abs(h * width - w * height) for h, w in (shape[2:], shape[1:3]))
            axis = axis if first == last else 1 if first < last else 3
        told.append((name, shape, axis if len(shape) == 4 else len(shape) - 1))
    return told[::-1]


def averages(features: Tensor, channels: int) -> Tensor:
    """Average maps (N, ...), D channels along that axis, over their places: (N, 2 D), positive and negative parts.

    The mean of a map that no ReLU has cut, such as a transformer's tokens, would cancel most of what is in it.
    """
    places = [axis for axis in range(1, features.ndim) if axis != channels]
    return torch.cat([h.mean(places) if places else h for h in (features.clamp(min=0), features.clamp(max=0))], 1)
