"""How networks are built: without memory for their weights where only names and shapes are wanted, and without a
trace in the global generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bdaudit.errors import UsageError


class Unallocated(TorchFunctionMode):
    """Create parameters without memory or initialisation.

    Unlike `torch.device("meta")` this leaves the arithmetic on small tensors alone by which some of
    torchvision's networks compute their own sizes.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def first_layer(body: nn.Module) -> str:
    """Name the convolution or linear layer that was registered first, which is the one that sees the image."""
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            return str(name)
    raise UsageError(f"{type(body).__name__} has no convolution and no linear layer")


@contextmanager
def untouched_rng(seed: int = 0) -> Iterator[None]:
    """Draw from `seed` on the CPU inside the block, and leave the global generators as they were."""
    # Not torch.manual_seed: that would reseed the GPU's generators too, which are not restored.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
