"""How a file wraps its weights: found when reading, put back when writing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from bdaudit.errors import CheckpointError, one_line, quoted

WRAPPERS = (
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "model_state",
    "network",
    "weights",
    "params",
    "module",
)
"""Keys that usually hold the weights, the first one winning."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "body.", "1.")
"""What DataParallel, torch.compile, people's wrapper classes and a Sequential that resizes images put before every
name."""

_CONTAINERS = (dict, list, tuple, set)
MAX_DEPTH = 4
MAX_TENSORS = 100_000
MAX_NAME = 400
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where in a file the weights were, and everything else that was there.

    wrapping: the keys leading to the weights, outermost first; empty for a plain state dict.
    prefix: what stood before every name. siblings: the dictionaries around the weights, outermost first, in
    their order and with None where the next one belongs. kind: the class of the state dict, with what
    `state_dict()` notes on it. parameters: the names that were saved as nn.Parameter, and whether these asked
    for gradients.
    """

    wrapping: tuple[str, ...] = ()
    prefix: str = ""
    siblings: tuple[dict[Any, Any], ...] = ()
    kind: type[dict[Any, Any]] = OrderedDict
    note: object = None
    parameters: Mapping[str, bool]

    def wrap(self, state: Mapping[str, Tensor]) -> dict[Any, Any]:
        """Put a state with clean names back to where it was."""
        inner = self.kind()
        for name, tensor in state.items():
            held = nn.Parameter(tensor, self.parameters[name]) if name in self.parameters else tensor
            inner[self.prefix + name] = held
        if self.note is not None:
            inner._metadata = self.note  # type: ignore[attr-defined]  # as torch's own state_dict() does
        for level, key in zip(reversed(self.siblings), reversed(self.wrapping), strict=True):
            outer = type(level)(level)
            outer[key] = inner
            inner = outer
        return inner


def unwrap(document: object, size: int) -> tuple[Layout, dict[str, Tensor]]:
    """Find the weights in what a file held, and check that they are finite tensors of believable size.

    size: of the file in bytes. Returns the layout and the weights by name, without prefix, detached.
    Raises CheckpointError, which names the first wrong entry.
    """
    wrapping: list[str] = []
    siblings: list[dict[Any, Any]] = []
    while (key := _next_key(document)) is not None:
        if len(wrapping) == MAX_DEPTH:
            raise CheckpointError(f"its weights are more than {MAX_DEPTH} dictionaries deep")
        assert _is_plain_dict(document)
        level = type(document)(dict.items(document))
        document = dict.__getitem__(document, key)
        level[key] = None
        wrapping.append(key)
        siblings.append(level)
    if not _is_plain_dict(document):
        raise CheckpointError(f"holds {_a(document)}, expected a dictionary of tensors")
    held = dict(dict.items(document))
    state = _checked(held, size)
    prefix = common_prefix(state)
    names = {name: name.removeprefix(prefix) for name in state}
    layout = Layout(
        wrapping=tuple(wrapping),
        prefix=prefix,
        siblings=tuple(siblings),
        kind=type(document),
        note=getattr(document, "_metadata", None),
        parameters={names[n]: bool(t.requires_grad) for n, t in held.items() if isinstance(t, nn.Parameter)},
    )
    return layout, {names[name]: tensor for name, tensor in state.items()}


def copies_beside(layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
    """Name the entries beside the weights that hold weights of the same names, such as their moving average."""
    return [
        one_line(key, 60)
        for level in layout.siblings
        for key, value in level.items()
        if any(_is_copy(found, state) for found in _containers(value) if isinstance(found, dict))
    ]


def _is_copy(held: dict[Any, Any], state: Mapping[str, Tensor]) -> bool:
    ends = tuple(f".{name}" for name in state)
    names = [n for n, t in dict.items(held) if isinstance(n, str) and isinstance(t, Tensor)]
    return 2 * sum(n in state or n.endswith(ends) for n in names) > len(state)


def tensors_beside(layout: Layout) -> list[str]:
    """Name the entries beside the weights that hold tensors too, such as averaged weights."""
    return [
        one_line(key, 60)
        for level in layout.siblings
        for key, value in level.items()
        if any(isinstance(v, Tensor) and Tensor.dim(v) > 0 for v in _leaves(value))
    ]


def _leaves(value: object) -> Iterator[object]:
    """Everything in a value that is no container."""
    if not isinstance(value, _CONTAINERS):
        yield value
    for container in _containers(value):
        parts = dict.values(container) if isinstance(container, dict) else container
        yield from (part for part in parts if not isinstance(part, _CONTAINERS))


def _containers(value: object) -> Iterator[Any]:
    """Walk containers without recursion and none twice: a stranger's file may nest and share at will."""
    todo, seen = [value], set()
    while todo:
        value = todo.pop()
        if isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            yield value
            todo.extend(dict.values(value) if isinstance(value, dict) else value)


def _is_plain_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    return type(value) in (dict, OrderedDict)


def _next_key(document: object) -> str | None:
    """The key that the weights are under, None where `document` is the weights or no dictionary."""
    if not _is_plain_dict(document):
        return None
    # dict's own methods, as unpickling may give an OrderedDict attributes that hide them.
    inner = [k for k, v in dict.items(document) if isinstance(k, str) and _is_plain_dict(v) and len(v) > 0]
    if not inner:
        return None
    usual = next((name for name in WRAPPERS if name in inner), None)
    if usual is not None:
        return usual
    values = {key: dict.__getitem__(document, key) for key in inner}
    states = [key for key, v in values.items() if all(isinstance(t, Tensor) for t in dict.values(v))]
    states = states or [key for key, v in values.items() if any(isinstance(t, Tensor) for t in _leaves(v))]
    if len(states) == 1:
        return states[0]
    raise CheckpointError(
        f"has no entry that clearly is the weights (it has: {_listed(dict.keys(document))}); "
        "expected a state dict, alone or under 'state_dict' or 'model'"
    )


def _checked(held: dict[Any, Any], size: int) -> dict[str, Tensor]:
    if not held:
        raise CheckpointError("holds an empty dictionary, expected tensors")
    if len(held) > MAX_TENSORS:
        raise CheckpointError(f"holds {len(held)} entries, more than any image classifier ({MAX_TENSORS})")
    if not any(isinstance(value, Tensor) for value in held.values()):
        raise CheckpointError(f"holds no tensors (it has: {_listed(held)})")
    state: dict[str, Tensor] = {}
    total = 0
    for name, value in held.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise CheckpointError(f"holds an entry named {quoted(name)}, expected the name of a weight")
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"holds {_a(value)} as '{one_line(name, 80)}', expected a tensor (what is no weight goes beside them: {{'state_dict': ..., ...}})"
            )
        # Detached by Tensor's own method: attributes that came with the pickle stay behind.
        tensor = Tensor.detach(value)
        if (
            type(tensor) is not Tensor
            or tensor.is_nested
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
        ):
            raise CheckpointError(f"{one_line(name, 80)} is {_a(value)} of an unusual kind, expected plain values")
        if tensor.dtype not in _FLOATS + _OTHERS:
            raise CheckpointError(f"{one_line(name, 80)} has type {tensor.dtype}, expected floating or integer values")
        # A few bytes may pose as a tensor of any size by being repeated. Weights shared by two layers may
        # not.
        total += tensor.numel() * tensor.element_size()
        if total > 2 * size:
            raise CheckpointError(f"{one_line(name, 80)} has an absurd size, {_shape(tensor)}, for so small a file")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{one_line(name, 80)} holds NaN or infinite values; the model is unusable")
        state[name] = tensor
    if not any(tensor.is_floating_point() and tensor.numel() for tensor in state.values()):
        raise CheckpointError("holds no floating-point weights")
    return state


def common_prefix(names: Collection[str]) -> str:
    """Find the wrappers' prefixes that all names start with, together."""
    prefix = ""
    while True:
        more = next((p for p in PREFIXES if all(n.startswith(prefix + p) and n != prefix + p for n in names)), None)
        if more is None:
            return prefix
        prefix += more


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {one_line(name, 40)}"


def _shape(tensor: Tensor) -> str:
    return one_line(tuple(tensor.shape), 80)


def _listed(keys: Any) -> str:
    names = [one_line(key, 40) for key in keys]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
