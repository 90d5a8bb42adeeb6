"""What the registry keeps of one architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Option:
    """An integer that an architecture is built with: its default and its least and greatest value.

    default: None leaves it to the function that builds the network.
    """

    default: int | None
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: how to build it, and how to read its options off the shapes of its weights.

    make: takes `num_classes`, `channels` and the options, all by keyword.
    stem: the weight of the first convolution, (width, channels, kernel, kernel).
    heads: possible names of the last linear layer's weight, (num_classes, features); stem and heads are empty
    where only a built network tells.
    infer: options from shapes that hold the stem and a head. It need not check anything else.
    size, min_size: the usual and the least height and width of an image.
    tensors: how many weights a state holds without BatchNorm's counters; None where that depends on the
    options.
    any_option: what an option that is not listed may be; None where there is no other.
    weightless: whether it can be built without memory for its weights, to learn their names and shapes.
    source: for the record, where the code is from if not from bdaudit or torchvision.
    """

    name: str
    make: Callable[..., nn.Module]
    stem: str = ""
    heads: tuple[str, ...] = ()
    size: int
    min_size: int = 1
    tensors: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    infer: Callable[[Shapes], dict[str, int]] = lambda shapes: {}
    any_option: Option | None = None
    weightless: bool = True
    source: str = ""

    def head(self, shapes: Shapes) -> str | None:
        """The name of the head's weight among `shapes`, None where there is none."""
        return next((name for name in self.heads if len(shapes.get(name, ())) == 2), None)

    def plausible(self, shapes: Shapes) -> bool:
        """Whether the first and last weights are there, which is all that `infer` relies on."""
        return len(shapes.get(self.stem, ())) in (2, 4) and self.head(shapes) is not None
