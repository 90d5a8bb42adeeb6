"""Describe a model file as JSON: containers, values, and where in the file each tensor's bytes are.

This is what runs on a stranger's bytes, inside the sandboxed child (`jail`); it imports the standard library
alone. It reads no tensor data: the parent does, by offset, once it has checked the description.
"""

from __future__ import annotations

import base64
import io
import json
import pickletools
import struct
import tarfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import IO, Any

from bdaudit.inputs.unpickle import (
    DTYPES,
    ArrayNote,
    Foreign,
    Inert,
    Named,
    Ordered,
    ParameterNote,
    Refused,
    Size,
    Storage,
    Stream,
    TensorNote,
)

MAX_PICKLE = 64 << 20
MAX_HEADER = 32 << 20
MAX_NODES = 2_000_000
MAX_DEPTH = 100
"""Of containers in containers: what lies deeper could be read and not be written back."""
_MAX_INT_BITS = 1024
_SAVE = "save model.state_dict() instead"
_NEITHER = "is neither a torch nor a safetensors file; expected what torch.save(model.state_dict(), FILE) writes"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


@dataclass
class Description:
    """What a file holds. format: torch, legacy (its form before PyTorch 1.6) or safetensors. places: storage key -> (offset in the file, size in bytes)."""

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


def describe(file: IO[bytes], size: int, *, numpy: bool = False) -> Description:
    """Tell what a file is by its content, and describe it. Raises Refused with the reason.

    numpy: also accept numpy's numbers and arrays of them, which torch's own loader refuses.
    """
    start = file.read(512)
    file.seek(0)
    headed = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 34
    if start.startswith(b"PK\x03\x04"):
        if headed:  # a length of 67 MB, to the library that reads safetensors
            raise Refused("is a zip archive and a safetensors file at once: refused")
        return _zip(file, size, numpy)
    # torch.load looks for a tar archive next, and for safetensors never.
    if _is_tar(start):
        raise Refused("is a tar archive, as torch wrote in its first months, and maybe something else at once: refused")
    if headed:
        if _is_pickle(file, size):
            raise Refused("is a pickle and a safetensors file at once: refused")
        return _safetensors(file, size)
    return _legacy(file, size, numpy)


def _is_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


# torch.save, since PyTorch 1.6: a zip archive that stores one pickle and every storage as they are


def _zip(file: IO[bytes], size: int, numpy: bool) -> Description:
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as e:
        raise Refused("is truncated or damaged") from e
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise Refused(f"is a TorchScript archive, which holds code: refused, nothing was run; {_SAVE}")
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        raise Refused(f"is an exported program (.pt2), not a file of weights; {_SAVE}")
    if "data.pkl" not in names:
        raise Refused("is a zip archive that torch.save did not write")
    # torch's own reader takes names as they are written: no end at a NUL, no second name in an extra field.
    if any(entry.filename != entry.orig_filename for entry in entries) or not all(map(str.isascii, names)):
        raise Refused("holds an entry with an odd name, which torch.save never writes: refused")
    if any(_large_fields(entry) > 1 for entry in entries):
        raise Refused("gives an entry's place twice, which torch.save never does: refused")
    # zipfile looks for the archive within the file, torch's own reader counts from the file's start.
    if archive.start_dir != _directory(file):
        raise Refused("has bytes before its archive or a comment behind it, which torch.save never writes: refused")
    # torch.save never compresses. A small file that unpacks into memory without end does.
    if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
        raise Refused("is compressed, which torch.save never does: refused")
    if sum(entry.file_size for entry in entries) > size:
        raise Refused("holds overlapping entries, which torch.save never writes: refused")
    # torch's own reader takes no notice of case: two such entries could be one model to us and another to it.
    if (
        len({name.casefold() for name in names}) != len(names)
        or len({entry.filename.partition("/")[0] for entry in entries}) != 1
    ):
        raise Refused("holds several archives or entries of one name, which torch.save never writes: refused")
    if any(name != "byteorder" == name.casefold() for name in names):  # by which torch would turn every number around
        raise Refused("holds an entry in capitals, which torch.save never writes: refused")
    found = {name: _place(file, size, entry) for name, entry in zip(names, entries, strict=True)}
    if "byteorder" in found and _bytes(file, found["byteorder"], 16) != b"little":
        raise Refused("was written on a machine of another byte order; save it again on this one")
    pickled = _bytes(file, found["data.pkl"], MAX_PICKLE)
    document, storages = _unpickle(io.BytesIO(pickled), numpy, pickled)
    places = {}
    for key, storage in storages.items():
        place = found.get(f"data/{key}")
        if place is None or place[1] != storage.size:
            raise Refused("is truncated or damaged: a tensor's data is missing or of another size")
        places[key] = place
    return Description("torch", document, places)


def _directory(file: IO[bytes]) -> int:
    """Where the last bytes of an archive say that its directory begins; -1 where they say nothing."""
    file.seek(-min(98, file.seek(0, io.SEEK_END)), io.SEEK_END)
    tail = file.read()
    if tail[-22:-18] != b"PK\x05\x06":
        return -1
    offset: int = struct.unpack("<I", tail[-6:-2])[0]
    if tail[-42:-38] == b"PK\x06\x07":
        # zipfile takes the large record that stands here, torch's own reader the one that is pointed to.
        if tail[:4] != b"PK\x06\x06" or struct.unpack("<Q", tail[-34:-26])[0] != file.tell() - len(tail):
            return -1
        offset = struct.unpack("<Q", tail[48:56])[0]
    return offset


def _large_fields(entry: zipfile.ZipInfo) -> int:
    """How many extra fields give an entry's sizes and place; readers differ in which of two they believe."""
    extra, count = entry.extra, 0
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        count += kind == 1
        extra = extra[4 + length :]
    return count


def _place(file: IO[bytes], size: int, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Find an entry's bytes: after its local header, whose name and extra field have their own lengths."""
    if entry.header_offset < 0:
        raise Refused("is truncated or damaged")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04" or entry.flag_bits & 1:
        raise Refused("is truncated or damaged")
    offset = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if offset + entry.file_size > size:
        raise Refused("is truncated or damaged")
    return offset, entry.file_size


def _bytes(file: IO[bytes], place: tuple[int, int], most: int) -> bytes:
    offset, size = place
    if size > most:
        raise Refused(f"holds {size >> 20} MiB besides its weights, more than any model needs ({most >> 20} MiB)")
    file.seek(offset)
    return file.read(size)


def _unpickle(stream: Stream, numpy: bool, whole: bytes) -> tuple[object, dict[str, Storage]]:
    """Load one pickle; `whole` is searched for what it would have loaded further on."""
    unpickler = Inert(stream, numpy=numpy)
    try:
        return unpickler.load(), unpickler.storages
    except Foreign as e:
        raise Refused(_foreign(e.name, whole)) from e
    except Refused:
        raise
    except MemoryError:
        raise
    except Exception as e:  # a stranger's bytes make the unpickler fail in any way there is
        raise Refused(f"is truncated, damaged or no model file ({type(e).__name__})") from e


def _foreign(name: str, whole: bytes) -> str:
    if name.startswith("torch.nn.modules.") or b"torch.nn.modules." in whole:
        return f"is a whole pickled model, which runs code when read: refused, nothing was run; {_SAVE}"
    if name.startswith("torch"):
        return f"holds more than plain tensors ({name}): refused, nothing was run; {_SAVE}"
    if name.startswith("numpy."):
        return f"holds numpy objects ({name}), not tensors: refused, nothing was run; {_SAVE}"
    if name.rpartition(".")[2][:1].isupper():  # a class, by the custom of nearly everybody
        return f"holds a Python object ({name}), and reading one can run code: refused, nothing was run; {_SAVE}"
    return f"contains code ({name}): refused, nothing was run; {_SAVE}"


# torch.save, before PyTorch 1.6: several pickles in a row, then the storages


class _Counted:
    """A file from which at most MAX_PICKLE bytes can be read, and what was read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = MAX_PICKLE
        self.seen = bytearray()
        self.asked = 0

    def read(self, n: int = -1) -> bytes:
        return self._taken(self._file.read(self._allowed(n)))

    def readline(self) -> bytes:
        return self._taken(self._file.readline(self._allowed(-1)))

    def _allowed(self, n: int) -> int:
        if self._left <= 0:
            raise Refused("holds more besides its weights than any model needs")
        self.asked = max(self.asked, n)
        return self._left if n < 0 else min(n, self._left)

    def _taken(self, data: bytes) -> bytes:
        self._left -= len(data)
        self.seen += data
        return data


def _legacy(file: IO[bytes], size: int, numpy: bool) -> Description:
    start = file.read(2)
    file.seek(0)
    stream = _Counted(file)
    try:
        magic, _ = _unpickle(stream, numpy, b"")
    except Refused as e:
        whole = bytes(stream.seen) + file.read(MAX_PICKLE)
        # The oldest pickles have no mark at the start, and many a text begins like one.
        if start[:1] != b"\x80" and not _ends_as_pickle(whole):
            raise Refused(_NEITHER) from e
        if isinstance(e.__cause__, Foreign):
            raise Refused(_foreign(e.__cause__.name, whole)) from e
        raise
    if magic != _MAGIC:
        if start[:1] != b"\x80" and not isinstance(magic, dict):
            raise Refused(_NEITHER)
        raise Refused(f"is a pickle that torch.save did not write: refused, nothing was run; {_SAVE}")
    protocol, _ = _unpickle(stream, numpy, b"")
    system, _ = _unpickle(stream, numpy, b"")
    if protocol != _PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", True):
        raise Refused("is truncated, damaged or of another byte order")
    try:
        document, storages = _unpickle(stream, numpy, b"")
    except Refused as e:
        if isinstance(e.__cause__, Foreign):
            raise Refused(_foreign(e.__cause__.name, bytes(stream.seen) + file.read(MAX_PICKLE))) from e
        raise
    keys, _ = _unpickle(stream, numpy, b"")
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys) or set(keys) != set(storages):
        raise Refused("is truncated or damaged: its list of tensors does not fit them")
    places: dict[str, tuple[int, int]] = {}
    at = file.tell()
    for key in keys:
        file.seek(at)
        # Before the data stands how many elements there are.
        count = file.read(8)
        storage = storages[key]
        item = DTYPES.get(storage.dtype or "", 1)
        if len(count) != 8 or int.from_bytes(count, "little") * item != storage.size or at + 8 + storage.size > size:
            raise Refused("is truncated or damaged: a tensor's data is missing or of another size")
        places[key] = (at + 8, storage.size)
        at += 8 + storage.size
    return Description("legacy", document, places)


def _is_pickle(file: IO[bytes], size: int) -> bool:
    """Whether torch.load might find a pickle where a safetensors file begins, with its length and a brace."""
    stream = _Counted(file)
    try:
        magic, _ = _unpickle(stream, True, b"")
    except Refused as e:
        # What is damaged is none; what is refused was understood, and what asks for much could go on behind it.
        return e.__cause__ is None or isinstance(e.__cause__, Foreign) or MAX_PICKLE < stream.asked < size
    finally:
        file.seek(0)
    return magic == _MAGIC


def _ends_as_pickle(data: bytes) -> bool:
    try:
        for _ in pickletools.genops(data[: 1 << 20]):
            pass
    except Exception:  # as above
        return False
    return True


# safetensors: the length of a JSON header, the header, the data


def _safetensors(file: IO[bytes], size: int) -> Description:
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER):
        raise Refused("is a truncated or damaged safetensors file (its header is longer than the file, or than 32 MiB)")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair can be written as JSON, and not as text
    except (ValueError, RecursionError) as e:
        raise Refused(f"is a truncated or damaged safetensors file ({str(e)[:80]})") from e
    if not isinstance(header, dict):
        raise Refused("is a truncated or damaged safetensors file (its header is no object)")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Refused("is a truncated or damaged safetensors file (its metadata is not text)")
    tensors: dict[str, TensorNote] = {}
    places: dict[str, tuple[int, int]] = {}
    for name, row in header.items():
        tensors[name], places[name] = _row(name, row, 8 + length)
    # The data is all there is, without holes or overlaps.
    at = 8 + length
    for offset, count in sorted(places.values()):
        if offset != at:
            raise Refused("is a truncated or damaged safetensors file (its tensors overlap or leave holes)")
        at += count
    if at != size:
        raise Refused("is a truncated or damaged safetensors file (its data is not of the length it says)")
    return Description("safetensors", tensors, places, metadata)


def _row(name: str, row: object, base: int) -> tuple[TensorNote, tuple[int, int]]:
    match row:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            kind = _SAFETENSORS.get(dtype)
            if kind is None:
                raise Refused(f"holds {name[:80]} of an unknown type ({dtype[:20]})")
            if all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 64 and 0 <= begin <= end:
                stride, count = [], 1
                for n in reversed(shape):
                    stride.append(count)
                    count *= n
                if count * DTYPES[kind] == end - begin:
                    storage = Storage(name, kind, end - begin)
                    note = TensorNote(storage, kind, 0, tuple(shape), tuple(reversed(stride)), False)
                    return note, (base + begin, end - begin)
    raise Refused(f"is a truncated or damaged safetensors file (its row for {name[:80]} is unsound)")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number")


# The description as JSON: one row per container or tensor, shared ones once, inner ones first


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


def main(file: IO[bytes], size: int, arguments: list[str]) -> bytes:
    """Answer with the description as JSON, or with the reason why there is none."""
    try:
        return describe(file, size, numpy="numpy" in arguments).to_json().encode()
    except Refused as e:
        return json.dumps({"refused": str(e)[:1000]}).encode()
