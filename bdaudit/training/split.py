"""A network cut in two at its last feature map, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import Runtime

Change = Callable[[Tensor], Tensor]


class Split:
    """f = h(g(x)): g up to the last map of features (channels by height by width, or tokens by width), h the rest.

    The cut is the output of the last module whose value alone decides the logits: what goes into the pooling of
    a convolutional network, the tokens that leave a transformer. A network without maps is cut at its head's input.
    """

    def __init__(self, model: Classifier) -> None:
        """Find the cut by running the network on blank images; UsageError where it has none."""
        self.model = model
        self._blank = torch.zeros(1, *model.preprocessing.shape, device=model.device)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self.at = self._find()
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

    def logits(self, features: Tensor) -> Tensor:
        """Map features (N, ...) to h's logits (N, K); the model must be in eval mode.

        One blank image goes through g, and what g makes of it is replaced: h is never copied out of the network.
        """
        return self._logits(self.at, features)

    def _logits(self, at: str, features: Tensor) -> Tensor:
        with self._changing(at, lambda _: features):
            logits: Tensor = self.model(self._blank)
        return logits.float()

    def _find(self) -> str:
        images = torch.rand(2, *self._blank.shape[1:], generator=torch.Generator().manual_seed(0))
        images = images.to(self.model.device)
        outputs, expected = maps_of(self.model, images)
        for name in [*reversed(outputs), ""]:
            self.at = name
            try:
                again = self._logits(name, self.features(images))
            except RuntimeError:  # a branch of one image beside features of several: no cut here
                continue
            if again.shape == expected.shape and torch.allclose(again, expected, rtol=1e-3, atol=1e-4):
                return name
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


def maps_of(model: Classifier, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Run once; return what each module that gives one map gave, in the order in which they finish, and the logits."""
    calls: dict[str, list[Any]] = {}
    hooks = []
    for name, module in model.body.named_modules():
        if name:

            def note(_: nn.Module, __: object, out: object, name: str = name) -> None:
                calls.setdefault(name, []).append(out)

            hooks.append(module.register_forward_hook(note))
    try:
        logits = model(images).float()
    finally:
        for hook in hooks:
            hook.remove()
    maps = {n: outs[0] for n, outs in calls.items() if len(outs) == 1 and _is_map(model.body.get_submodule(n), outs[0])}
    return maps, logits


def _is_map(module: nn.Module, out: object) -> bool:
    """Whether a module gave features of places, and does not pool them: what goes into the last pooling is wanted."""
    return isinstance(out, Tensor) and out.ndim > 2 and "Pool" not in type(module).__name__
