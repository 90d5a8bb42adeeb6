"""Open a stranger's model file without running code from it.

A sandboxed child (`jail`) reads the file's structure (`unpack`, `unpickle`) and describes it as JSON. This
process never unpickles: it checks the description, rebuilds plain containers from it, and reads the tensors'
bytes from where they are said to be. Nothing in the description is trusted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bdaudit.errors import CheckpointError, one_line
from bdaudit.inputs.jail import JailError, Limits, ask
from bdaudit.inputs.opening import Unusable, open_regular

MAX_BYTES = 16 << 30
MAX_DEPTH = 100
"""Of containers in containers: Python itself crashes when it hashes a tuple a hundred thousand deep."""


@dataclass(frozen=True)
class Content:
    """What a file held, not yet trusted: one object, and the metadata of a safetensors file.

    size, sha256: of the very file that was read, whatever may have taken its place since.
    """

    path: Path
    size: int
    sha256: str
    format: Literal["torch", "legacy", "safetensors"]
    document: object
    metadata: dict[str, str]


def open_checkpoint(path: Path, *, numpy: bool = False, limits: Limits | None = None) -> Content:
    """Read a torch or safetensors file, told apart by content and not by name.

    Accepts what `torch.load(weights_only=True)` makes of plain tensors, parameters and containers, and less
    than it otherwise. numpy: accept numpy's numbers, which become Python's, and arrays of them, which become
    tensors. Raises CheckpointError with the reason, without the path.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise CheckpointError("is empty")
        if size > MAX_BYTES:
            raise CheckpointError(f"has {size / 2**30:.0f} GiB, more than any image classifier ({MAX_BYTES >> 30} GiB)")
        try:
            answer = ask("bdaudit.inputs.unpack", ["numpy"] if numpy else [], file, limits or Limits())
            described = json.loads(answer)
        except JailError as e:
            raise CheckpointError(str(e)) from e
        except (ValueError, RecursionError) as e:
            raise CheckpointError("made its reader answer nonsense: refused") from e
        if not isinstance(described, dict):
            raise CheckpointError("made its reader answer nonsense: refused")
        if "refused" in described:
            raise CheckpointError(one_line(described["refused"], 400))
        try:
            document = _rebuilt(described, file, size)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RuntimeError) as e:
            # The child only describes what is sound; what is not comes from a child that was taken over.
            raise CheckpointError(f"is described unsoundly by its reader ({one_line(e, 120)}): refused") from e
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto
        return Content(path, size, digest, described["format"], document, described["metadata"])


def _opened(path: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise CheckpointError("is a folder, expected a model file")
        if not path.exists():
            raise CheckpointError("no such file")
        if not path.is_file():
            raise CheckpointError("is not a regular file")
        return open_regular(path)  # looked at again when it is open: a pipe put there meanwhile would never end
    except Unusable as e:
        raise CheckpointError(f"cannot be read ({e})") from e
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot be read ({one_line(getattr(e, 'strerror', None) or e, 120)})") from e


def _rebuilt(described: dict[str, Any], file: IO[bytes], size: int) -> object:
    """Make containers and tensors of a description; raises ValueError and the like where it is unsound."""
    if described["format"] not in ("torch", "legacy", "safetensors"):
        raise ValueError("an unknown format")
    if not all(isinstance(text, str) for pair in described["metadata"].items() for text in pair):
        raise ValueError("metadata that is not text")
    storages = _storages(described["storages"], file, size)
    made: list[Any] = []
    depths: list[int] = []
    deepest = 0

    def value(given: Any) -> Any:
        nonlocal deepest
        if isinstance(given, list):
            (row,) = given
            if type(row) is not int or row < 0:
                raise ValueError("a reference to nothing")
            deepest = max(deepest, depths[row])
            return made[row]
        if isinstance(given, dict):
            raise ValueError("an object where a value should be")
        return given

    for kind, *parts in described["nodes"]:
        deepest = 0
        made.append(_tensor(storages, *parts) if kind == "tensor" else _MAKERS[kind](value, *parts))
        if deepest == MAX_DEPTH:
            raise ValueError("containers without bottom")
        depths.append(deepest + 1)
    return value(described["root"])


def _storages(places: list[list[int]], file: IO[bytes], size: int) -> list[torch.UntypedStorage]:
    """Read every storage's bytes into memory of its own."""
    if any(type(n) is not int or n < 0 for place in places for n in place):
        raise ValueError("a storage that is nowhere")
    if sum(count for _, count in places) > size or any(offset + count > size for offset, count in places):
        raise ValueError("more data than the file has")
    storages = []
    for offset, count in places:
        data = torch.empty(count, dtype=torch.uint8)
        _fill(data.numpy().data, file.fileno(), offset)
        storages.append(data.untyped_storage())
    return storages


def _fill(view: memoryview, handle: int, offset: int) -> None:
    done = 0
    while done < len(view):
        # A call reads at most 2 GiB; fewer bytes than asked for is usual, none means that the file shrank.
        got = os.preadv(handle, [view[done : done + (1 << 30)]], offset + done)
        if got == 0:
            raise CheckpointError("changed while it was read")
        done += got


def _tensor(
    storages: list[torch.UntypedStorage],
    row: int,
    dtype: str,
    offset: int,
    shape: list[int],
    stride: list[int],
    requires_grad: bool,
) -> Tensor:
    kind = _dtype(None, dtype)
    storage = storages[row]
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (row, offset, *shape, *stride)):
        raise ValueError("a tensor of negative size")
    # torch would enlarge a storage that is too small, with whatever stood there.
    last = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if last and (offset + last) * kind.itemsize > storage.nbytes():
        raise ValueError("a tensor beyond its storage")
    tensor = torch.empty(0, dtype=kind).set_(storage, offset if last else 0, shape, stride)
    return tensor.requires_grad_() if requires_grad and kind.is_floating_point else tensor


def _dtype(_: object, name: str) -> torch.dtype:
    found = getattr(torch, name, None) if name.isidentifier() else None
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"holds values of type {one_line(name, 40)}, which this torch does not know")
    return found


_Value = Callable[[Any], Any]


def _odict(value: _Value, pairs: list[list[Any]], metadata: Any) -> OrderedDict[Any, Any]:
    made = OrderedDict((value(k), value(v)) for k, v in pairs)
    if metadata is not None:
        made._metadata = value(metadata)  # type: ignore[attr-defined]  # as torch's own state_dict() does
    return made


def _parameter(value: _Value, tensor: Any, requires_grad: bool) -> nn.Parameter:
    inner = value(tensor)
    if not isinstance(inner, Tensor):
        raise ValueError("a parameter that is no tensor")
    return nn.Parameter(inner, requires_grad is True)


def _array(_: _Value, dtype: str, shape: list[int], fortran: bool, data: str) -> Tensor:
    kind = np.dtype(dtype)
    if kind.kind not in "biuf":
        raise ValueError("an array that is not of numbers")
    array = np.frombuffer(base64.b64decode(data), dtype=kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind.newbyteorder("=")).copy())


_MAKERS: dict[str, Callable[..., Any]] = {
    "dict": lambda value, pairs: {value(k): value(v) for k, v in pairs},
    "odict": _odict,
    "list": lambda value, parts: [value(part) for part in parts],
    "tuple": lambda value, parts: tuple(value(part) for part in parts),
    "set": lambda value, parts: {value(part) for part in parts},
    "bytes": lambda _, text: base64.b64decode(text),
    "bytearray": lambda _, text: bytearray(base64.b64decode(text)),
    "size": lambda _, shape: torch.Size(shape),
    "dtype": _dtype,
    "device": lambda _, name: torch.device(name),
    "parameter": _parameter,
    "array": _array,
}
"""Kind of a row -> what makes its value, given the function that looks up a value."""
