"""Describe a model file as JSON: containers, values, and where in the file each tensor's bytes are.

This is what runs on a stranger's bytes, inside the sandboxed child (`jail`); it imports the standard library
alone. It reads no tensor data: the parent does, by offset, once it has checked the description.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import tarfile
import zipfile
from collections import deque
from typing import IO, Any

from bdaudit.inputs.description import Description
from bdaudit.inputs.unpickle import (
    DTYPES,
    Foreign,
    Inert,
    Refused,
    Storage,
    Stream,
    TensorNote,
)

MAX_PICKLE = 64 << 20
MAX_HEADER = 32 << 20
_SAVE = "save model.state_dict() instead"
_NEITHER = "is neither a torch nor a safetensors file; expected what torch.save(model.state_dict(), FILE) writes"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


def describe(file: IO[bytes], size: int, *, numpy: bool = False) -> Description:
    """Tell what a file is by its content, and describe it. Raises Refused with the reason.

    numpy: also accept numpy's numbers and arrays of them, which torch's own loader refuses.
    """
    try:
        return _described(file, size, numpy)
    except Foreign as e:
        file.seek(0)
        raise Refused(_foreign(e.name, file.read(MAX_PICKLE))) from e


def _described(file: IO[bytes], size: int, numpy: bool) -> Description:
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
    document, storages = _unpickle(io.BytesIO(_bytes(file, found["data.pkl"], MAX_PICKLE)), numpy)
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


def _unpickle(stream: Stream, numpy: bool) -> tuple[object, dict[str, Storage]]:
    """Load one pickle. Raises Refused: Foreign itself, and what is damaged with its cause."""
    unpickler = Inert(stream, numpy=numpy)
    try:
        return unpickler.load(), unpickler.storages
    except (Refused, MemoryError):
        raise
    except Exception as e:  # a stranger's bytes make the unpickler fail in any way there is
        raise Refused(f"is truncated, damaged or no model file ({type(e).__name__})") from e


def _foreign(name: str, content: bytes) -> str:
    """Say what a name that no pickle of weights asks for makes of a file; `content` may tell of more such names."""
    if name.startswith("torch.nn.modules.") or b"torch.nn.modules." in content:
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
    """A file from which at most MAX_PICKLE bytes can be read; `asked` is the most that was wanted at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = MAX_PICKLE
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
        return data


def _legacy(file: IO[bytes], size: int, numpy: bool) -> Description:
    start = file.read(1 << 20)
    file.seek(0)
    # The oldest pickles have no mark at the start, and many a text begins like one.
    marked = start.startswith(b"\x80")
    stream = _Counted(file)
    try:
        magic, _ = _unpickle(stream, numpy)
    except Refused as e:
        if not marked and not _ends_as_pickle(start):
            raise Refused(_NEITHER) from e
        raise
    if magic != _MAGIC:
        if not marked and not isinstance(magic, dict):
            raise Refused(_NEITHER)
        raise Refused(f"is a pickle that torch.save did not write: refused, nothing was run; {_SAVE}")
    protocol, _ = _unpickle(stream, numpy)
    system, _ = _unpickle(stream, numpy)
    if protocol != _PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", True):
        raise Refused("is truncated, damaged or of another byte order")
    document, storages = _unpickle(stream, numpy)
    keys, _ = _unpickle(stream, numpy)
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
        magic, _ = _unpickle(stream, True)
    except Refused as e:
        # What is damaged is none; what is refused was understood, and what asks for much could go on behind it.
        return e.__cause__ is None or MAX_PICKLE < stream.asked < size
    finally:
        file.seek(0)
    return magic == _MAGIC


def _ends_as_pickle(data: bytes) -> bool:
    try:
        deque(pickletools.genops(data), maxlen=0)
    except Exception:  # as in `_unpickle`
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


def main(file: IO[bytes], size: int, arguments: list[str]) -> bytes:
    """Answer with the description as JSON, or with the reason why there is none."""
    try:
        return describe(file, size, numpy="numpy" in arguments).to_json().encode()
    except Refused as e:
        return json.dumps({"refused": str(e)[:1000]}).encode()
