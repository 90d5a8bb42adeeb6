"""What the tests of several operators use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bdaudit.ops import extension

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
each_device = pytest.mark.parametrize("device", DEVICES)
needs_kernels = pytest.mark.skipif(extension.load() is None, reason="the extension is not built")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Move every tensor among the arguments."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def without_kernels(call: Callable[[], Any]) -> Any:
    """What a call gives where the extension was never built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "load", lambda: None)
        return call()
