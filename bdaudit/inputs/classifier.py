"""A model with its preprocessing inside: pixels in, logits out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bdaudit.errors import UsageError, one_line

MAX_TRIED = 512
"""The largest side of an image that a network is tried on."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a model expects of its images, applied inside `Classifier`.

    channels: 1 (grey) or 3 (RGB). height, width: pixels; images of another size are resized when read.
    mean, std: per channel, on pixels scaled to [0, 1].
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or min(self.height, self.width) < 1:
            raise UsageError(f"preprocessing wants 1 or 3 channels and a positive size, got {self}")
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise UsageError(f"preprocessing wants one mean and one positive std per channel, got {self}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class ArchSpec:
    """An architecture by name with the options that rebuild it, e.g. `resnet18` with width 16.

    name: as the registry spells it; for a function of the user's own, `/path/to/models.py:make_model`.
    """

    name: str
    options: dict[str, int] = field(default_factory=dict)

    @property
    def is_code(self) -> bool:
        """Whether the name is that of a function in a Python file."""
        return ".py:" in self.name

    @property
    def label(self) -> str:
        """The name as it is shown and recorded: without the folder that a Python file lies in."""
        return self.name.rpartition("/")[2]

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.label}({options})"


class Classifier(nn.Module):
    """Pixels in, logits out: a network together with the preprocessing that it was trained with.

    `body` keeps its own parameter names, so `body.state_dict()` is what a checkpoint holds.
    `forward(x)`: uint8 in [0, 255] or float in [0, 1], shape (N, C, H, W) -> logits (N, K).
    `head` is the last `nn.Linear` of the network, `features(x)` what goes into it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        preprocessing: Preprocessing,
        *,
        arch: ArchSpec | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.body = body
        self.preprocessing = preprocessing
        self.arch = arch
        self.head_name, head = last_linear(body)
        self.classes = classes or tuple(str(k) for k in range(head.out_features))
        if len(self.classes) != head.out_features:
            raise UsageError(f"{len(self.classes)} class names for a head with {head.out_features} outputs")
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).reshape(shape), persistent=False)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer: features (N, D) -> logits (N, K)."""
        head = self.body.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def normalise(self, x: Tensor) -> Tensor:
        """Turn uint8 pixels, or floats in [0, 1], into what the network was trained on."""
        if x.dtype == torch.uint8:
            x = x.to(self.mean.dtype) / 255
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to logits (N, K)."""
        # Convolutions take the layout of whichever comes in channels_last, so the images follow the weights.
        # A copy, since `contiguous` sees no difference between the layouts of one-channel images; oneDNN does.
        layout = self._layout()
        x = (
            x.to(self.mean.dtype, memory_format=layout) / 255
            if x.dtype == torch.uint8
            else x.clone(memory_format=layout)
        )
        logits: Tensor = self.body(self.normalise(x))
        return logits

    def _layout(self) -> torch.memory_format:
        last = any(p.ndim == 4 and not p.is_contiguous() for p in self.body.parameters())
        return torch.channels_last if last else torch.contiguous_format

    def features(self, x: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to the penultimate features (N, D), the input of `head`."""
        with self.capture_features() as captured:
            self(x)
        return captured[-1]

    @contextmanager
    def capture_features(self) -> Iterator[list[Tensor]]:
        """Collect the penultimate features of every forward pass inside the block."""
        captured: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        try:
            yield captured
        finally:
            hook.remove()

    def check(self) -> None:
        """Make sure that it takes an image of its size and gives one logit a class; raises UsageError.

        Sizes above `MAX_TRIED` are not tried: that takes long, and no network finds them too small.
        """
        if max(self.preprocessing.shape) > MAX_TRIED:
            return
        name = self.arch.label if self.arch else type(self.body).__name__
        image = torch.zeros(1, *self.preprocessing.shape, dtype=torch.uint8, device=self.device)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                logits = self(image)
        except Exception as e:  # whatever the code of somebody's network raises
            size = "x".join(str(n) for n in self.preprocessing.shape)
            raise UsageError(f"{name} fails on a {size} image ({type(e).__name__}: {one_line(e, 160)})") from e
        finally:
            self.train(training)
        expected = (1, self.head.out_features)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UsageError(
                f"{name} gives {got} for one image, expected {expected}: the logits of its last linear layer, {self.head_name}"
            )

    def preprocessed(self, preprocessing: Preprocessing) -> Classifier:
        """Give the same network, not a copy, another preprocessing."""
        made = Classifier(self.body, preprocessing, arch=self.arch, classes=self.classes)
        return made.to(self.device).train(self.training)

    def clone(self) -> Classifier:
        """Copy the model so that the copy can be changed in place, and trained even if this one is frozen."""
        return copy.deepcopy(self).requires_grad_(True)


def last_linear(body: nn.Module) -> tuple[str, nn.Linear]:
    """Find the classification layer by name: the linear layer that was registered last."""
    found = [(name, m) for name, m in body.named_modules() if isinstance(m, nn.Linear)]
    if not found:
        raise UsageError(f"{type(body).__name__} has no linear classification layer")
    return found[-1]
