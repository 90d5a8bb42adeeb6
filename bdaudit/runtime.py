"""The one place that decides device, precision and memory format, and hands out randomness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bdaudit import ops
from bdaudit.errors import UsageError

M = TypeVar("M", bound=nn.Module)


def pick_device(name: str = "auto") -> torch.device:
    """Resolve `auto`, `cpu` or `cuda` to a device that exists."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no usable GPU was found; use --device cpu or auto")
    return device


@dataclass(frozen=True)
class Runtime:
    """How arithmetic is done on one device.

    bf16 autocast pays where the processor multiplies bf16 in hardware (2.7 times fp32 on a small
    ResNet) and costs a factor of ten where it is emulated, so the processor is asked, not the user.
    """

    device: torch.device
    bf16: bool

    @classmethod
    def of(cls, device: torch.device) -> Runtime:
        """Choose for a device: bf16 on GPUs and on CPUs with AVX512-BF16 or AMX, else fp32."""
        if device.type == "cuda":
            return cls(device, torch.cuda.is_bf16_supported())
        features = ops.backend()["cpu_features"]
        return cls(device, features.get("avx512_bf16", False) or features.get("amx_bf16", False))

    def autocast(self) -> AbstractContextManager[object]:
        """Enter the forward pass in the chosen precision; losses stay in fp32 by autocast's rules."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def place(self, model: M) -> M:
        """Move a model to the device, in the memory format that its convolutions run best in."""
        return model.to(self.device, memory_format=self.memory_format(model))  # type: ignore[call-overload,no-any-return]

    def memory_format(self, model: nn.Module) -> torch.memory_format:
        """Choose channels_last, faster for convolutions on both devices, unless it would corrupt memory.

        oneDNN's 1x1 convolution writes past its workspace in channels_last where it is strided and has fewer
        input channels than a vector register holds (uxlfoundation/oneDNN issue 6035: crashes and wrong weights).
        """
        narrow = self.device.type == "cpu" and any(
            m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 16
            for m in model.modules()
            if isinstance(m, nn.Conv2d)
        )
        return torch.contiguous_format if narrow else torch.channels_last

    def describe(self) -> str:
        """One phrase for reports: device and precision."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{name}, {'bf16 autocast' if self.bf16 else 'fp32'}"


def generator(seed: int) -> torch.Generator:
    """Make the generator that a command's whole randomness flows from (always on the CPU, so that
    a seed means the same rows and weights on every device)."""
    return torch.Generator().manual_seed(seed)


def spawn(rng: torch.Generator) -> torch.Generator:
    """Draw an independent generator, so that one stage's appetite does not change the next stage."""
    return generator(int(torch.randint(2**62, (), generator=rng)))


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Feed torch's global generator (dropout, layer initialisation) from `rng` inside the block."""
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def permutation(n: int, rng: torch.Generator) -> Tensor:
    """Shuffle 0..n-1 (int64, CPU)."""
    return torch.randperm(n, generator=rng)
