"""What a model file holds, as JSON: one row per container or tensor, shared ones once, inner ones first.

Written in the sandboxed child (`jail`) and so of the standard library alone; `checkpoint_read` reads it.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from bdaudit.inputs.unpickle import ArrayNote, Named, Ordered, ParameterNote, Refused, Size, Storage, TensorNote

MAX_NODES = 2_000_000
MAX_DEPTH = 100
"""Of containers in containers: what lies deeper could be read and not be written back."""
_MAX_INT_BITS = 1024


@dataclass
class Description:
    """What a file holds.

    format: torch, legacy (torch's own before PyTorch 1.6) or safetensors. places: storage key -> (offset in the
    file, size in bytes).
    """

    format: str
    document: object
    places: dict[str, tuple[int, int]]
    metadata: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write it as JSON that `checkpoint_read` understands."""
        nodes = _Nodes(self.places)
        root = nodes.add(self.document)
        return json.dumps(
            {
                "format": self.format,
                "root": root,
                "nodes": nodes.rows,
                "storages": nodes.storages,
                "metadata": self.metadata,
            }
        )


class _Nodes:
    """Rows for everything that is not a plain number or text; a value is itself, or [its row]."""

    def __init__(self, places: dict[str, tuple[int, int]]) -> None:
        self.rows: list[list[Any]] = []
        self.storages: list[list[int]] = []
        self._places = places
        self._storage_rows: dict[str, int] = {}
        self._done: dict[int, int] = {}

    def add(self, root: object) -> Any:
        """Add a value with all that is in it, without recursion, and return how to refer to it."""
        open_: set[int] = set()
        todo: list[tuple[object, bool]] = [(root, False)]
        while todo:
            value, inner_done = todo.pop()
            if _plain(value) or id(value) in self._done:
                continue
            if inner_done:
                open_.discard(id(value))
                self._done[id(value)] = len(self.rows)
                self.rows.append(self._row(value))
                if len(self.rows) > MAX_NODES:
                    raise Refused(f"holds more than {MAX_NODES} objects, more than any model needs")
                continue
            if id(value) in open_:
                raise Refused("holds a container that contains itself")
            if len(open_) == MAX_DEPTH:
                raise Refused(f"holds containers nested more than {MAX_DEPTH} deep")
            open_.add(id(value))
            todo.append((value, True))
            todo.extend((part, False) for part in _inside(value))
        return self._ref(root)

    def _ref(self, value: object) -> Any:
        return value if _plain(value) else [self._done[id(value)]]

    def _row(self, value: object) -> list[Any]:
        match value:
            case Ordered():
                pairs = [[self._ref(k), self._ref(v)] for k, v in OrderedDict.items(value)]
                return ["odict", pairs, self._ref(value.metadata)]
            case dict():
                return ["dict", [[self._ref(k), self._ref(v)] for k, v in value.items()]]
            case Size():
                return ["size", list(value)]
            case list() | tuple() | set():
                return [type(value).__name__, [self._ref(part) for part in value]]
            case bytes() | bytearray():
                return [type(value).__name__, base64.b64encode(value).decode()]
            case TensorNote():
                where = self._storage(value.storage)
                return ["tensor", where, value.dtype, value.offset, value.shape, value.stride, value.requires_grad]
            case ParameterNote():
                return ["parameter", self._ref(value.tensor), value.requires_grad]
            case Named(kind="dtype" | "device"):
                return [value.kind, value.name]
            case ArrayNote():
                data = base64.b64encode(value.data).decode()
                return ["array", value.dtype, list(value.shape), value.fortran, data]
        raise Refused(f"holds a value that is no data ({type(value).__name__})")

    def _storage(self, storage: Storage) -> int:
        if storage.key not in self._storage_rows:
            self._storage_rows[storage.key] = len(self.storages)
            self.storages.append(list(self._places[storage.key]))
        return self._storage_rows[storage.key]


def _plain(value: object) -> bool:
    if type(value) is int:
        if value.bit_length() > _MAX_INT_BITS:
            raise Refused(f"holds a number of {value.bit_length()} bits")
        return True
    return value is None or type(value) in (bool, float, str)


def _inside(value: object) -> list[Any]:
    match value:
        case Ordered():
            return [*OrderedDict.keys(value), *OrderedDict.values(value), value.metadata]
        case dict():
            return [*value.keys(), *value.values()]
        case Size():
            return []
        case list() | tuple() | set():
            return list(value)
        case ParameterNote():
            return [value.tensor]
    return []
