"""Unpickle what torch.save writes into inert descriptions: nothing that a pickle names is ever imported.

Runs in the sandboxed child (`jail`) and imports the standard library alone. The names below are all that a
pickle may ask for; each stands for a function of this file that takes notes and computes nothing.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

DTYPES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex128": 16, "complex64": 8, "complex32": 4,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
"""torch's name of a type -> its size in bytes."""

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64", "LongStorage": "int64",
    "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
MAX_DIMS = 64
MAX_COUNT = 1 << 46


class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, n: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Refused(Exception):
    """The file is not to be used; the message is the reason, without the path."""


class Foreign(Refused):
    """A pickle asks for a name that is not on the list."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Storage:
    """A block of bytes in the file. dtype: None where the tensors say it. size: in bytes."""

    key: str
    dtype: str | None
    size: int


@dataclass(frozen=True)
class TensorNote:
    """A tensor: which part of which storage, in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool


@dataclass(frozen=True)
class ParameterNote:
    """An nn.Parameter around a tensor."""

    tensor: TensorNote
    requires_grad: bool


@dataclass(frozen=True)
class Named:
    """A value that torch knows by name: a `dtype` or a `device`."""

    kind: str
    name: str


class Size(tuple[int, ...]):
    """A torch.Size."""


class Ordered(OrderedDict[Any, Any]):
    """An OrderedDict, with the `_metadata` that `state_dict()` leaves on it; other attributes are dropped."""

    metadata: object = None

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.metadata = dict.get(state, "_metadata")


class ArrayNote:
    """A numpy array of numbers: its type in numpy's letters, shape, order and bytes."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    data: bytes

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _Dtype(code=code, size=size), bool() | int() as fortran, bytes(data)):
                if code[1] not in "biuf" or len(data) != size * _count(shape):
                    raise Refused("holds a numpy array that is not of plain numbers")
                self.dtype, self.shape, self.fortran, self.data = code, shape, bool(fortran), data
            case _:
                raise Refused("holds a numpy array that is not of plain numbers")


class _Dtype:
    """A numpy dtype of plain numbers or text: `code` such as '<i8', `size` in bytes."""

    def __init__(self, name: object, *_: object) -> None:
        text = str(name).lstrip("<=|>")
        if not isinstance(name, str) or text[:1] not in tuple("biufUS") or not text[1:].isdecimal() or len(text) > 6:
            raise Refused("holds a numpy value that is neither a number nor text")
        self.size = int(text[1:]) * (4 if text[0] == "U" else 1)
        self.code = f"<{text}"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise Refused("holds a numpy value that is neither a number nor text")
        self.code = (">" if state[1] == ">" else "<") + self.code[1:]


class _Call:
    """A function that a pickle may call and cannot change: it has no attributes of its own."""

    __slots__ = ("_function",)
    _function: Callable[..., object]

    def __init__(self, function: Callable[..., object]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise Refused("tries to change a function")

    def __setstate__(self, state: object) -> None:
        raise Refused("tries to change a function")


def _count(shape: tuple[object, ...]) -> int:
    """Multiply the sizes of a shape, whose every part and product must be believable."""
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n <= MAX_COUNT for n in shape):
        raise Refused(f"holds a tensor of an absurd shape ({str(shape)[:60]})")
    return math.prod(shape)  # type: ignore[arg-type]  # checked above


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> TensorNote:
    return _typed_tensor(storage, offset, shape, stride, requires_grad, hooks, None, metadata)


def _typed_tensor(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorNote:
    if not isinstance(storage, Storage) or type(offset) is not int or not 0 <= offset <= MAX_COUNT:
        raise Refused("is damaged: a tensor without a sound storage")
    name = dtype.name if isinstance(dtype, Named) else storage.dtype
    if metadata:  # torch would set bits by it: the same bytes then read as their negatives
        raise Refused("holds a tensor that is negated or conjugated when it is read, which no model needs: refused")
    if name is None or not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise Refused("is damaged: a tensor without a sound type or shape")
    empty = _count(shape) == 0
    _count(stride)
    last = 0 if empty else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if not empty and (offset + last) * DTYPES[name] > storage.size:
        raise Refused("is damaged: a tensor reaches beyond its storage")
    return TensorNote(storage, name, offset, tuple(shape), tuple(stride), bool(requires_grad))


def _parameter(tensor: object, requires_grad: object = True, hooks: object = None) -> ParameterNote:
    if not isinstance(tensor, TensorNote) or not tensor.dtype.startswith(("float", "bfloat", "complex")):
        raise Refused("is damaged: a parameter that is no floating-point tensor")
    return ParameterNote(tensor, bool(requires_grad))


def _size(shape: object = ()) -> Size:
    if not isinstance(shape, tuple | list):
        raise Refused("is damaged: a size that is none")
    _count(tuple(shape))
    return Size(shape)


def _device(*parts: object) -> Named:
    return Named("device", ":".join(str(p)[:20] for p in parts[:2]))


def _set(items: object = ()) -> set[Any]:
    return set(items) if isinstance(items, list | tuple) else set()


def _bytearray(data: object = b"", *_: object) -> bytearray:
    return bytearray(data) if isinstance(data, bytes) else bytearray()


def _bytes(*parts: object) -> bytes:
    if parts:  # this is how empty ones are written
        raise Refused("is damaged: bytes in an odd form")
    return b""


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("is damaged: bytes in an odd encoding")
    return text.encode("latin-1")


def _scalar(dtype: object, data: object) -> object:
    """Turn a numpy scalar into Python's number or text."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != dtype.size:
        raise Refused("holds a numpy value that is neither a number nor text")
    order, kind, size = dtype.code[0], dtype.code[1], dtype.size
    try:
        if kind in "US":
            codec = "latin-1" if kind == "S" else "utf-32-le" if order == "<" else "utf-32-be"
            return data.decode(codec).rstrip("\0")
        if kind == "f":
            return struct.unpack(order + {2: "e", 4: "f", 8: "d"}[size], data)[0]
    except (KeyError, UnicodeDecodeError) as e:
        raise Refused("holds a numpy value that is neither a number nor text") from e
    value = int.from_bytes(data, "little" if order == "<" else "big", signed=kind == "i")
    return bool(value) if kind == "b" else value


_TORCH: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): Ordered,
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("torch", "Size"): _Call(_size),
    ("torch", "device"): _Call(_device),
    ("torch.storage", "UntypedStorage"): Named("storage", ""),
    ("torch", "UntypedStorage"): Named("storage", ""),
    ("builtins", "set"): _Call(_set),
    ("__builtin__", "set"): _Call(_set),
    ("builtins", "bytearray"): _Call(_bytearray),
    ("__builtin__", "bytearray"): _Call(_bytearray),
    ("_codecs", "encode"): _Call(_encode),
    **{("torch", name): Named("dtype", name) for name in DTYPES},
    **{("torch", name): Named("storage", dtype) for name, dtype in _STORAGES.items()},
}
_NUMPY: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): _Call(_Dtype),
    ("numpy", "ndarray"): Named("type", "ndarray"),
    ("builtins", "bytes"): _Call(_bytes),
    ("__builtin__", "bytes"): _Call(_bytes),
    **{(f"numpy.{core}.multiarray", "scalar"): _Call(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Call(lambda *_: ArrayNote()) for core in ("core", "_core")},
}


class Inert(pickle.Unpickler):
    """Unpickle into notes and plain containers. numpy: also read numpy's numbers and arrays of them.

    Raises Foreign for any other name, Refused for what is wrong, and whatever pickle raises for damage.
    """

    def __init__(self, file: Stream, *, numpy: bool = False) -> None:
        super().__init__(file)
        self._allowed = {**_TORCH, **_NUMPY} if numpy else _TORCH
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the list; nothing is imported."""
        found = self._allowed.get((module, name))
        if found is None:
            raise Foreign(f"{module}.{name}")
        return found

    def persistent_load(self, pid: object) -> Storage:
        """Note a storage: ("storage", type, key, location, numel) and, in old files, no view of another."""
        match pid:
            case ("storage", Named(kind="storage", name=dtype), str(key), str(), int(numel), *view):
                if any(part is not None for part in view) or not 0 <= numel <= MAX_COUNT:
                    raise Refused("is damaged: a storage of an odd kind")
                storage = Storage(key, dtype or None, numel * DTYPES.get(dtype, 1))
                known = self.storages.setdefault(key, storage)
                if known.size != storage.size:
                    raise Refused("is damaged: a storage with two sizes")
                return storage
        raise Refused("is damaged: a reference that is no storage")
