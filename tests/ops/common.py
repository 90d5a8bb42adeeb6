"""What the tests of several operators use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from bdaudit.ops import extension

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
each_device = pytest.mark.parametrize("device", DEVICES)
needs_kernels = pytest.mark.skipif(extension.load() is None, reason="the extension is not built")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


@st.composite
def image_batches(draw: st.DrawFn, n: int, c: int, h: int, w: int, seed: int) -> Tensor:
    """n images of h x w, or of w x h, with the strides that tensors come with."""
    match draw(st.sampled_from(["contiguous", "channels_last", "sliced", "flipped", "offset"])):
        case "channels_last":
            return random_bytes(n, c, h, w, seed=seed).to(memory_format=torch.channels_last)
        case "sliced":
            return random_bytes(2 * n, c, h, w + 3, seed=seed)[::2, :, :, 1 : w + 1]
        case "flipped":
            return random_bytes(n, c, h, w, seed=seed).transpose(2, 3)
        case "offset":
            return random_bytes(n * c * h * w + 5, seed=seed)[5:].view(n, c, h, w)
    return random_bytes(n, c, h, w, seed=seed)


@st.composite
def row_choices(draw: st.DrawFn, n: int, seed: int) -> Tensor | None:
    """All rows, a mask, or some indices in any order."""
    match draw(st.sampled_from(["all", "mask", "indices"])):
        case "mask":
            return torch.rand(n, generator=seeded(seed)) < 0.5
        case "indices":
            return torch.randperm(n, generator=seeded(seed))[: draw(st.integers(0, n))]
    return None


def on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Move every tensor among the arguments."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def without_kernels(call: Callable[[], Any]) -> Any:
    """What a call gives where the extension was never built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "load", lambda: None)
        return call()
