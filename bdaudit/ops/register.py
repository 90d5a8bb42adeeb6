"""Register an operator once: its schema, its meaning in torch, its shapes, and how its kernels are called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import UsageError
from bdaudit.ops import extension

# Not custom_op: its calls cost twice as much. Any, because torch leaves its functions untyped.
_torch_library: Any = torch.library
_library = _torch_library.Library("bdaudit", "FRAGMENT")

# Hands a kernel its fields, in their order: tensors by their address, made contiguous first if they are not, None as no
# address, numbers as they are.
Launch = Callable[..., None]


def operator(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    compute: Callable[..., Any],
) -> Callable[..., Any]:
    """Define torch.ops.bdaudit.NAME and return it.

    reference  the operator in plain torch: its meaning, and what runs where there is no kernel
    fake       empty results of the right shapes, for torch.compile
    compute    takes a Launch before the operator's arguments, makes the results and has the kernel fill them
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def on_cpu(*arguments: Any) -> Any:
        if extension.load() is None:
            return reference(*arguments)
        return compute(_cpu_launch(f"{name}_cpu"), *arguments)

    def on_cuda(*arguments: Any) -> Any:
        if not extension.has_cuda():
            return reference(*arguments)
        return compute(_cuda_launch(f"{name}_cuda"), *arguments)

    _torch_library.register_fake(f"bdaudit::{name}", fake, lib=_library)
    _library.impl(name, on_cpu, "CPU")
    _library.impl(name, on_cuda, "CUDA")
    _library.impl(name, reference, "CompositeExplicitAutograd")
    defined: Callable[..., Any] = getattr(torch.ops.bdaudit, name).default
    return defined


def contract(name: str, holds: bool) -> None:
    """Refuse what bdaudit.ops.NAME would never pass on; who calls the operator itself must not read wild memory."""
    if not holds:
        raise UsageError(f"torch.ops.bdaudit.{name} got tensors outside its contract; call bdaudit.ops.{name}")


def _cpu_launch(kernel: str) -> Launch:
    def launch(*fields: Any) -> None:
        fields = _contiguous(kernel, fields)
        extension.call(kernel, *map(_address, fields), torch.get_num_threads())

    return launch


def _cuda_launch(kernel: str) -> Launch:
    def launch(*fields: Any) -> None:
        fields = _contiguous(kernel, fields)
        contract(kernel.removesuffix("_cuda"), fields[0].is_cuda)
        stream = torch.cuda.current_stream(fields[0].device)
        extension.call(kernel, *map(_address, fields), fields[0].get_device(), stream.cuda_stream)

    return launch


def _contiguous(kernel: str, fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """Lay every tensor out as kernels read it; the caller holds them until the kernel has run or is queued."""
    tensors = [field for field in fields if isinstance(field, Tensor)]
    contract(kernel.rpartition("_")[0], all(tensor.device == tensors[0].device for tensor in tensors))
    return tuple(field.contiguous() if isinstance(field, Tensor) else field for field in fields)


def _address(field: Any) -> Any:
    if isinstance(field, Tensor):
        return field.data_ptr()
    return 0 if field is None else field
