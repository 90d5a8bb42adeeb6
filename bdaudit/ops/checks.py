"""What every operator asks of its arguments before an address leaves Python; each failure is one line."""

import torch
from torch import Tensor, dtype
from torch import device as Device

from bdaudit.errors import UsageError


def check(
    tensor: object, name: str, dtypes: tuple[dtype, ...], device: Device, of: str = "images", *, one: bool = False
) -> None:
    """Refuse what is no tensor of one of these types on this device; `of` names what lies on the device."""
    verb = "is" if one else "are"
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        expected = " or ".join(str(kind).removeprefix("torch.") for kind in dtypes)
        raise UsageError(f"{name} {verb} {kind_of(tensor)}; expected a tensor of {expected}")
    if tensor.device != device:
        raise UsageError(f"{name} {verb} on {tensor.device}; expected the device of the {of}, {device}")


def check_range(indices: Tensor, name: str, low: int, high: int) -> None:
    """Refuse indices outside [low, high), where they can be read; on a GPU this waits for it."""
    if indices.numel() and readable(indices):
        least, most = (int(value) for value in indices.aminmax())
        if least < low or most >= high:
            raise UsageError(f"{name} are from {least} to {most}; expected {low} to {high - 1}")


def readable(tensor: Tensor) -> bool:
    """Tell whether a tensor has values to look at: not under torch.compile, nor while a CUDA graph is captured."""
    if torch.compiler.is_compiling() or tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def kind_of(value: object) -> str:
    """Say what a value is: a tensor's type and shape, else the name of its class."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {shape_of(value)}"
    return f"a {type(value).__name__}"


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Give a shape as it is printed in messages."""
    return tuple(tensor.shape)
