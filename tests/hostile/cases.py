"""Hostile inputs, each made by code: what is put into a team's folder, the command it meets, what must come out."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from benchmarks.fuzz.targets import checkpoints, report, run_folder

CANARY = "pwned"
"""What a payload would make in the folder above the team's."""


@dataclass(frozen=True)
class Case:
    """make: put the input into the folder. says: a part of the one line. code: the exit code; 0: used all the same."""

    name: str
    make: Callable[[Path], object]
    says: str
    command: str = "purify"
    code: int = 2


# Pickles


def order(folder: Path) -> bytes:
    """The payload's command as a pickled string."""
    text = f"touch {folder.parent / CANARY}".encode()
    return b"X" + struct.pack("<I", len(text)) + text


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


Build = Callable[[bytes], bytes]
SYSTEM = b"cos\nsystem\n"
DISGUISES: dict[str, tuple[Build, str]] = {
    "GLOBAL REDUCE": (lambda cmd: SYSTEM + cmd + b"\x85R.", "contains code (os.system)"),
    "posix by name": (lambda cmd: b"cposix\nsystem\n" + cmd + b"\x85R.", "contains code (posix.system)"),
    "STACK_GLOBAL through the memo": (
        lambda cmd: text("system") + b"\x940" + text("os") + b"\x940h\x01h\x00\x93" + cmd + b"\x85R.",
        "contains code (os.system)",
    ),
    "INST": (lambda cmd: b"(" + cmd + b"ios\nsystem\n.", "contains code (os.system)"),
    "OBJ": (lambda cmd: b"(" + SYSTEM + cmd + b"o.", "contains code (os.system)"),
    "NEWOBJ": (lambda cmd: SYSTEM + cmd + b"\x85\x81.", "contains code (os.system)"),
    "NEWOBJ_EX": (lambda cmd: SYSTEM + cmd + b"\x85}\x92.", "contains code (os.system)"),
    "EXT1": (lambda cmd: b"\x82\x01" + cmd + b"\x85R.", "damaged"),
    "EXT4": (lambda cmd: b"\x84\x01\x00\x00\x00" + cmd + b"\x85R.", "damaged"),
    "BUILD of a function": (
        lambda cmd: b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("_function") + SYSTEM + b"sb.",
        "contains code (os.system)",
    ),
    "BUILD of an allowed function": (
        lambda cmd: b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("_function") + cmd + b"sb.",
        "tries to change a function",
    ),
    "getattr": (lambda cmd: b"c__builtin__\ngetattr\n" + SYSTEM + cmd + b"\x86R.", "contains code (__builtin__.getattr)"),
    "eval": (lambda cmd: b"cbuiltins\neval\n" + text("__import__('os')") + b"\x85R.", "contains code (builtins.eval)"),
    "exec": (lambda cmd: b"cbuiltins\nexec\n" + cmd + b"\x85R.", "contains code (builtins.exec)"),
    "import_module": (lambda cmd: b"cimportlib\nimport_module\n" + text("antigravity") + b"\x85R.", "contains code"),
    "a method by its path": (lambda cmd: text("pathlib") + text("Path.touch") + b"\x93" + cmd + b"\x85R.", "contains code"),
    "globals of an allowed function": (
        lambda cmd: text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.",
        "holds more than plain tensors",
    ),
    "torch.hub.load": (lambda cmd: b"ctorch.hub\nload\n" + cmd + b"\x85R.", "holds more than plain tensors (torch.hub.load)"),
    "torch.load": (lambda cmd: b"ctorch\nload\n" + cmd + b"\x85R.", "holds more than plain tensors (torch.load)"),
    "numpy.load": (lambda cmd: b"cnumpy\nload\n" + cmd + b"\x85R.", "holds numpy objects (numpy.load)"),
    "a pickle in a pickle": (lambda cmd: b"c_pickle\nloads\n" + cmd + b"\x85R.", "contains code (_pickle.loads)"),
    "partial": (lambda cmd: b"cfunctools\npartial\n" + SYSTEM + cmd + b"\x86R.", "contains code (functools.partial)"),
    "a persistent id": (lambda cmd: SYSTEM + cmd + b"\x85RQ.", "contains code (os.system)"),
    "a name with a newline": (lambda cmd: text("os\n\x1b[31m") + text("system") + b"\x93" + cmd + b"\x85R.", "contains code"),
    "a lone surrogate": (lambda cmd: b"V\\ud800\n" + text("system") + b"\x93.", "refused"),
    "a whole model": (lambda cmd: b"ctorch.nn.modules.linear\nLinear\n)\x81.", "whole pickled model"),
}  # fmt: skip


def archive(pickled: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """What torch.save writes, with any pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("m/data.pkl", pickled)
        for name, content in {**{f"data/{k}": v for k, v in (storages or {}).items()}, **more}.items():
            out.writestr(f"m/{name}", content)
    return buffer.getvalue()


def write(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.pt").write_bytes(content)


def disguised(build: Build, *, zipped: bool) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        pickled = b"\x80\x04" + build(order(folder))
        (folder / "model.pt").write_bytes(archive(pickled) if zipped else pickled)

    return make


def legacy(at: int) -> Callable[[Path], object]:
    """A file of PyTorch before 1.6 with code in one of the pickles around its weights."""

    def make(folder: Path) -> None:
        parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
        parts[at] = b"\x80\x02" + SYSTEM + order(folder) + b"\x85R."
        (folder / "model.pt").write_bytes(b"".join(parts))

    return make


def tensor(numel: int, offset: str, shape: str, stride: str, key: str = "0", more: str = "") -> bytes:
    """A pickled state dict with one tensor, in words: shapes and what more is given as opcodes of a tuple."""
    storage = f"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00{key}X\x03\x00\x00\x00cpuI{numel}\ntQ"
    call = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n({shape}t({stride}tI00\nccollections\nOrderedDict\n)R{more}tR"
    return f"\x80\x02}}X\x01\x00\x00\x00w{call}s.".encode("latin-1")


def laughs() -> bytes:
    """A list of ten of a list of ten of ...: small in memory, endless when walked as a tree."""
    return b"\x80\x04]" + b"".join(b"\x94](" + (b"h" + bytes([level])) * 10 + b"e" for level in range(40)) + b"."


def ints(*values: object) -> str:
    return "".join(f"I{v}\n" for v in values)


# Archives


def rewritten(change: Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], object]) -> Callable[[Path], object]:
    """A sound model file, its entries written anew by `change`."""

    def make(folder: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(checkpoints()["own"])) as old, zipfile.ZipFile(buffer, "w") as new:
            entries = [(e.filename, old.read(e)) for e in old.infolist()]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about names that are there twice
                change(new, entries)
        (folder / "model.pt").write_bytes(buffer.getvalue())

    return make


def entries_and(*more: tuple[str, bytes]) -> Callable[[Path], object]:
    def change(new: zipfile.ZipFile, entries: list[tuple[str, bytes]]) -> None:
        root = entries[0][0].partition("/")[0]
        for name, content in [*entries, *((n.replace("ROOT", root), c) for n, c in more)]:
            new.writestr(name, content)

    return rewritten(change)


def patched(at: int, value: bytes, mark: bytes = b"PK\x01\x02") -> Callable[[Path], object]:
    """A sound model file with one field of its first header of a kind overwritten."""

    def make(folder: Path) -> None:
        content = bytearray(checkpoints()["own"])
        start = content.index(mark) + at
        content[start : start + len(value)] = value
        (folder / "model.pt").write_bytes(content)

    return make


def two_directories(folder: Path) -> None:
    """Two models in one archive: a large record at its end lists one, its locator points to a record of the other's."""
    first, second = (archive(tensor(1, "0", ints(1), ints(1)), {"0": value}) for value in (bytes(4), b"\0\0\0@"))

    def record(raw: bytes, at: int) -> bytes:
        count, size, start = struct.unpack("<HII", raw[-12:-2])
        return struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start + at)

    # The second one's entries lie elsewhere now, but it is to be refused before they are looked for.
    body = first[:-22] + (other := record(first, 0)) + second[:-22]
    body += record(second, len(first) - 22 + len(other)) + struct.pack("<4sIQI", b"PK\x06\x07", 0, len(first) - 22, 1)
    (folder / "model.pt").write_bytes(body + b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2))


def placed_twice(new: zipfile.ZipFile, entries: list[tuple[str, bytes]]) -> None:
    for name, content in entries:
        info = zipfile.ZipInfo(name)
        info.extra = struct.pack("<HHQ", 1, 8, 0) * 2
        new.writestr(info, content)


def compressed(new: zipfile.ZipFile, entries: list[tuple[str, bytes]]) -> None:
    for name, content in entries:
        new.writestr(name, content, zipfile.ZIP_DEFLATED)
    new.writestr(f"{entries[0][0].partition('/')[0]}/data/99", bytes(10_000_000), zipfile.ZIP_DEFLATED)


# Values


def saved(document: object) -> Callable[[Path], object]:
    return lambda folder: torch.save(document, folder / "model.pt")


def deep_beside(folder: Path) -> None:
    """Sound weights beside what can be read without recursion, and not be pickled again without it."""
    with zipfile.ZipFile(io.BytesIO(checkpoints()["plain"])) as old:
        entries = {e.filename.partition("/")[2]: old.read(e) for e in old.infolist()}
    weights = entries.pop("data.pkl")[2:-1]  # without PROTO and STOP
    deep = b"]" * 2000 + b"a" * 1999
    pickled = b"\x80\x02}" + b"X\x05\0\0\0model" + weights + b"sX\x04\0\0\0deep" + deep + b"s."
    (folder / "model.pt").write_bytes(archive(pickled, **entries))


def spoiled(value: float) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        state = torch.load(io.BytesIO(checkpoints()["plain"]), weights_only=True)
        state["conv1.weight"][0, 0, 0, 0] = value
        torch.save(state, folder / "model.pt")

    return make


def safetensors(head: object, body: bytes = b"", length: int | None = None) -> Callable[[Path], object]:
    raw = head if isinstance(head, bytes) else json.dumps(head).encode()
    return write(struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def row(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def pickled_too(folder: Path) -> None:
    """A safetensors file whose length says UNICODE to an unpickler: its line ends before the header's last brace."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
    body = b"".join(pickle.dumps(part, 2) for part in parts)[2:]
    head = json.dumps({"w": row("U8", (len(body),), (0, len(body)))}).encode()[:-1]
    safetensors(head.ljust(0x154) + b"\n}", body)(folder)


def tar_too(folder: Path) -> None:
    """A legacy file whose first 512 bytes are the header of a tar archive, as torch.load looks for first."""
    head = bytearray(b"\x80\x02X" + struct.pack("<I", 512 - 7) + bytes(512 - 7))
    head[148:156] = b"%06o\0 " % (sum(head) + 8 * ord(" "))
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
    (folder / "model.pt").write_bytes(head + b"".join(pickle.dumps(part, 2) for part in parts)[2:])


# Images: the bad one stands among the clean ones, whose class is 0


def image(content: bytes, name: str = "zz.png") -> Callable[[Path], object]:
    return lambda folder: (folder / "clean" / "0" / name).write_bytes(content)


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8)) -> bytes:
    """A grey PNG with further chunks, its checksums right."""
    pixels = zlib.compress(bytes(9 * 8))
    whole = ((b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in whole)
    return b"\x89PNG\r\n\x1a\n" + body


def link(target: str, name: str = "zz.png") -> Callable[[Path], object]:
    return lambda folder: (folder / "clean" / "0" / name).symlink_to(target)


def sound_image() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(buffer, "PNG")
    return buffer.getvalue()


# Configuration, policies, reports, run folders


def beside(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "bdaudit.toml").write_text(content)


def bounds(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "policy.toml").write_text(content)


def changed_report(**change: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "report.json").write_text(json.dumps(json.loads(report()) | change))


def raw_report(old: bytes, new: bytes) -> Callable[[Path], object]:
    assert old in report()
    return lambda folder: (folder / "report.json").write_bytes(report().replace(old, new, 1))


def a_run(folder: Path, change: dict[str, Any] | None = None, **files: bytes) -> Path:
    for name, content in (run_folder() | files).items():
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    record = json.loads(run_folder()["attack.json"]) | (change or {})
    (folder / "run" / "attack.json").write_text(json.dumps(record))
    return folder / "run"


def record(**change: Any) -> Callable[[Path], object]:
    return lambda folder: a_run(folder, change)


def trigger(pattern: torch.Tensor, weight: torch.Tensor, kind: object = "blend") -> Callable[[Path], object]:
    content = safetensors_bytes({"pattern": pattern, "weight": weight}, {"bdaudit_trigger": json.dumps({"kind": kind})})
    return lambda folder: a_run(folder, **{"trigger.safetensors": content})


def linked_pool(folder: Path) -> None:
    run = a_run(folder)
    (run / "test").symlink_to(folder / "clean")
    for name in ("flagged", "reserve"):
        (run / name).symlink_to(folder / "clean")


SOUND = torch.zeros(1, 8, 8, dtype=torch.uint8)
DEEP = "[" * 100_000
COLUMNS = {"probe": "evaluation", "subject": "purified", "metric": "o_asr", "low": None, "high": None, "n": 1}

CASES = [
    *(Case(f"pickle: {n}", disguised(b, zipped=True), says) for n, (b, says) in DISGUISES.items()),
    *(Case(f"bare pickle: {n}", disguised(DISGUISES[n][0], zipped=False), DISGUISES[n][1]) for n in ("GLOBAL REDUCE", "INST", "EXT1")),
    *(Case(f"legacy: code in pickle {at}", legacy(at), "contains code (os.system)") for at in range(5)),
    Case("legacy: code behind text", lambda f: (f / "model.pt").write_bytes(SYSTEM + order(f) + b"\x85R."), "contains code"),
    # Bombs of memory and time
    Case("bomb: LONG4", write(archive(b"\x80\x04\x8b\xff\xff\xff\x7f1.")), "damaged"),
    Case("bomb: BINUNICODE8", write(archive(b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"x.")), "damaged"),
    Case("bomb: BYTEARRAY8", write(archive(b"\x80\x05\x96" + (1 << 45).to_bytes(8, "little") + b"x.")), "refused|damaged|MiB"),
    Case("bomb: FRAME", write(archive(b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b".")), "damaged"),
    Case("bomb: memo index", write(archive(b"\x80\x04Nr\xff\xff\xff\x7f.")), "MiB|damaged"),
    Case("bomb: lists in lists", write(archive(b"\x80\x04" + b"]" * 50_000 + b"a" * 49_999 + b".")), "nested more than"),
    Case("bomb: tuples in tuples", write(archive(b"\x80\x04)" + b"\x85" * 50_000 + b".")), "nested more than"),
    Case("bomb: billion laughs", write(archive(laughs())), "holds a list"),
    Case("bomb: a number of a million digits", write(archive(b"\x80\x04I" + b"9" * 1_000_000 + b"\n.")), "damaged|number"),
    Case("bomb: a long number", write(archive(b"\x80\x04\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b".")), "number of"),
    Case("tensor: storage of absurd size", write(archive(tensor(1 << 50, "0", ints(1), ints(1)), {"0": bytes(4)})), "damaged"),
    Case("tensor: storage of negative size", write(archive(tensor(-1, "0", ints(1), ints(1)), {"0": bytes(4)})), "damaged"),
    Case("tensor: beyond its storage", write(archive(tensor(1, "0", ints(2), ints(1)), {"0": bytes(4)})), "beyond its storage"),
    Case("tensor: negative offset", write(archive(tensor(1, "-1", ints(1), ints(1)), {"0": bytes(4)})), "without a sound storage"),
    Case("tensor: negative stride", write(archive(tensor(2, "1", ints(2), ints(-1)), {"0": bytes(8)})), "absurd shape"),
    Case("tensor: one value posing as many", write(archive(tensor(1, "0", ints(1 << 40), ints(0)), {"0": bytes(4)})), "absurd size"),
    Case("tensor: overflowing shape", write(archive(tensor(1, "0", ints(1 << 40, 1 << 40), ints(0, 0)), {"0": bytes(4)})), "absurd|unsound"),
    Case("tensor: a thousand dimensions", write(archive(tensor(1, "0", ints(1) * 1000, ints(1) * 1000), {"0": bytes(4)})), "absurd shape"),
    Case("tensor: key out of the archive", write(archive(tensor(1, "0", ints(1), ints(1), "/"), {"0": bytes(4)})), "missing"),
    Case("tensor: short data", write(archive(tensor(4, "0", ints(4), ints(1)), {"0": bytes(8)})), "missing or of another size"),
    Case("tensor: negated when read", write(archive(tensor(1, "0", ints(1), ints(1), more="}X\x03\0\0\0neg\x88s"), {"0": bytes(4)})), "negated or conjugated"),
    # Archives
    Case("zip: two pickles of one name", entries_and(("ROOT/data.pkl", b"\x80\x04N.")), "entries of one name"),
    Case("zip: two pickles but for case", entries_and(("ROOT/DATA.PKL", b"\x80\x04N.")), "entries of one name"),
    Case("zip: two archives in one", entries_and(("other/data.pkl", b"\x80\x04N.")), "several archives"),
    Case("zip: a name that climbs", entries_and(("../../../pwned", b"x")), "several archives"),
    Case("zip: an absolute name", entries_and(("/tmp/pwned", b"x")), "several archives"),
    Case("zip: bytes before it", lambda f: (f / "model.pt").write_bytes(b"#!/bin/sh\ntouch pwned\n" + checkpoints()["own"]), "neither"),
    Case("zip: a zip before it", lambda f: (f / "model.pt").write_bytes(archive(b"\x80\x04N.") + checkpoints()["own"]), "bytes before its archive"),
    Case("zip: two directories", two_directories, "bytes before its archive"),
    Case("zip: a place given twice", rewritten(placed_twice), "place twice"),
    Case("zip: a name that ends at a NUL", write(archive(b"\x80\x04N.", **{"byteorder@": b"big"}).replace(b"order@", b"order\0")), "odd name"),
    Case("zip: a name beyond ASCII", entries_and(("ROOT/data/\xe9", b"x")), "odd name"),
    Case("zip: a byte order but for case", rewritten(lambda new, entries: [
        new.writestr(n.replace("byteorder", "ByteOrder"), b"big" if "byteorder" in n else c) for n, c in entries]), "in capitals"),
    Case("zip: compressed", rewritten(compressed), "is compressed"),
    Case("zip: encrypted", patched(8, b"\x01\x00"), "truncated or damaged|encrypted"),
    Case("zip: encrypted, says the local header", patched(6, b"\x01\x00", b"PK\x03\x04"), "USED", code=0),
    Case("zip: sizes of four gigabytes", patched(20, b"\xfe\xff\xff\xff" * 2), "overlapping entries"),
    Case("zip: zip64 without its field", patched(20, b"\xff\xff\xff\xff" * 2), "damaged|overlapping"),
    Case("zip: a header elsewhere", patched(42, b"\x07\x00\x00\x00"), "truncated or damaged"),
    Case("zip: a name of 65535 bytes", patched(26, b"\xff\xff", b"PK\x03\x04"), "truncated|damaged"),
    Case("zip: an odd compression", patched(10, b"\x63\x00"), "compressed|damaged"),
    Case("zip: TorchScript", write(archive(b"\x80\x04N.", **{"constants.pkl": b"x", "code/__torch__.py": b"import os"})), "TorchScript"),
    Case("zip: an exported program", write(archive(b"\x80\x04N.", archive_format=b"pt2")), "exported program (.pt2)"),
    Case("zip: a document", entries_and(("word/document.xml", b"<x/>")), "several archives"),
    # Values
    Case("weights: NaN", spoiled(float("nan")), "conv1.weight holds NaN or infinite values"),
    Case("weights: infinite", spoiled(float("inf")), "conv1.weight holds NaN or infinite values"),
    Case("weights: whole numbers", saved({"w": torch.ones(2, dtype=torch.int64)}), "no floating-point weights"),
    Case("weights: complex", saved({"w": torch.ones(2, dtype=torch.complex64)}), "complex64"),
    Case("weights: none", saved({"epoch": 3}), "holds no tensors"),
    Case("weights: names that write on terminals", saved({"\x1b[2J\n": 1, "w": torch.ones(1)}), "holds an int"),
    Case("weights: sparse", saved({"w": torch.eye(3).to_sparse()}), "refused"),
    Case("beside the weights: lists in lists", deep_beside, "nested more than"),
    # safetensors
    Case("safetensors: metadata of half a character", safetensors(b'{"__metadata__":{"a":"\\ud800"}}'), "damaged safetensors"),
    Case("safetensors: header beyond the file", safetensors({"w": row()}, bytes(4), 1 << 33), "header is longer"),
    Case("safetensors: overlapping", safetensors({"a": row(), "b": row()}, bytes(4)), "overlap or leave holes"),
    Case("safetensors: holes", safetensors({"a": row(offsets=(4, 8))}, bytes(8)), "overlap or leave holes"),
    Case("safetensors: unknown type", safetensors({"w": row("F31")}, bytes(4)), "unknown type"),
    Case("safetensors: negative shape", safetensors({"w": row(shape=(-1, -1))}, bytes(4)), "unsound"),
    Case("safetensors: overflowing shape", safetensors({"w": row(shape=(1 << 62, 4))}, bytes(4)), "unsound"),
    Case("safetensors: offsets that run backwards", safetensors({"w": row(offsets=(4, 0))}, bytes(4)), "unsound"),
    Case("safetensors: one name twice", safetensors(b'{"w":1,"w":1}'), "stands there twice"),
    Case("safetensors: a pickle too", pickled_too, "is a pickle and a safetensors file at once"),
    Case("safetensors: a zip too", write(b"PK\x03\x04\0\0\0\0{" + bytes(100)), "is a zip archive and a safetensors file at once"),
    Case("legacy: a tar too", tar_too, "is a tar archive"),
    Case("safetensors: nested without end", safetensors(b'{"w":' + DEEP.encode()), "damaged safetensors"),
    Case("safetensors: NaN in the header", safetensors(b'{"w":NaN}'), "no number"),
    Case("safetensors: metadata that is no text", safetensors({"__metadata__": {"a": 1}}), "metadata is not text"),
    Case("safetensors: an absurd architecture", safetensors(
        {"__metadata__": {"bdaudit": '{"version":1,"arch":{"name":"../x.py:make","options":{}}}'}, "w": row()}, bytes(4)), "runs no code that a file names"),
    # Images
    Case("image: a bomb", image(png(size=(60_000, 60_000))), "1 of 7 entries are not used", "clean", 0),
    Case("image: a bomb of text", image(png((b"zTXt", b"x\0\0" + zlib.compress(bytes(80 << 20))))), "1 of 7 entries are not used|USED", "clean", 0),
    Case("image: a bomb of a profile", image(png((b"iCCP", b"x\0\0" + zlib.compress(bytes(80 << 20))))), "1 of 7 entries are not used|USED", "clean", 0),
    Case("image: PostScript", image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch pwned) (w) file\n"), "1 of 7 entries are not used", "clean", 0),
    Case("image: PostScript named so", image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "zz.eps"), "1 of 7 entries are not used|USED", "clean", 0),
    Case("image: SVG", image(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'), "1 of 7 entries are not used", "clean", 0),
    Case("image: PDF", image(b"%PDF-1.4\n1 0 obj<</OpenAction<</S/JavaScript>>>>endobj\n"), "1 of 7 entries are not used", "clean", 0),
    Case("image: nothing", image(b""), "1 of 7 entries are not used", "clean", 0),
    Case("image: a PNG and a zip", image(sound_image() + archive(b"x")), "USED", "clean", 0),
    Case("image: a pipe", lambda f: os.mkfifo(f / "clean" / "0" / "zz.png"), "1 of 7 entries are not used", "clean", 0),
    Case("image: a link to itself", link("zz.png"), "1 of 7 entries are not used", "clean", 0),
    Case("image: a link to a device", link("/dev/zero"), "1 of 7 entries are not used", "clean", 0),
    Case("image: a link out of the folder", link("/etc/passwd"), "1 of 7 entries are not used", "clean", 0),
    Case("image: a link to the parent", lambda f: (f / "clean" / "loop").symlink_to(".."), "1 of 7 entries are not used|USED", "clean", 0),
    Case("image: a name that writes on terminals", image(b"", "\x1b[2J\nerror: ok.png"), "1 of 7 entries are not used", "clean", 0),
    Case("image: a name that is no text", lambda f: Path(os.fsdecode(os.fsencode(f / "clean" / "0") + b"/\xff.png")).write_bytes(b""), "1 of 7 entries are not used", "clean", 0),
    Case("image: a class that is none", lambda f: (f / "clean" / "\u202e9").mkdir() or (f / "clean" / "\u202e9" / "a.png").write_bytes(sound_image()), "the model has no class", "clean"),
    Case("image: clean images behind a link", lambda f: (f / "clean").rename(f / "other") and (f / "clean").symlink_to("other"), "is a link"),
    # bdaudit.toml beside the model
    Case("config: where to write", beside('[purify]\nout = "/etc/cron.d/x"\n'), "came with the suspect"),
    Case("config: what to read", beside('[purify]\nclean = "/home"\n'), "came with the suspect"),
    Case("config: Python code", beside('arch = "evil.py:make"\n'), "Python code"),
    Case("config: another configuration", beside('config = "/etc/x"\n'), "came with the suspect"),
    Case("config: weaker probes", beside('[audit]\noption = ["retune.epochs=0"]\n'), "came with the suspect", "audit"),
    Case("config: no probes", beside("[audit]\nprobe = []\n"), "came with the suspect", "audit"),
    Case("config: plugins", beside('[purify]\nplugins = ["evil"]\n'), "has no option 'plugins'"),
    Case("config: a number that cannot be printed", beside(f"seed = 0x{'F' * 8000}\n"), "too large to show"),
    Case("config: a number of ten thousand digits", beside(f"seed = {'9' * 10_000}\n"), "cannot be read as TOML"),
    Case("config: nested without end", beside(f"seed = {DEEP}\n"), "cannot be read as TOML"),
    Case("config: a name of ten thousand parts", beside(f"{'a.' * 10_000}a = 1\n"), "dots on one line"),
    Case("config: null bytes", beside('[purify]\narch = "\\u0000"\n'), "expected a number or a short text"),
    Case("config: control characters", beside('[purify]\n"\\u001b[2J\\n" = 1\n'), "has no option"),
    Case("config: of another kind", beside("quiet = [1]\n"), "expected true or false"),
    Case("config: bytes that are no text", lambda f: (f / "bdaudit.toml").write_bytes(b"\xff\xfe\0"), "cannot be read as TOML"),
    Case("config: without end", lambda f: (f / "bdaudit.toml").write_bytes(b"#" * (2 << 20)), "longer than 1 MiB"),
    Case("config: a pipe", lambda f: os.mkfifo(f / "bdaudit.toml"), "USED", code=0),
    # Policies
    Case("policy: a bound above one", bounds("max_o_asr = 2.0\n"), "less than or equal to 1", "policy"),
    Case("policy: a bound too long to print", bounds(f"max_o_asr = 0x{'f' * 4000}\n"), "int too large to show", "policy"),
    Case("policy: a bound that is no number", bounds("max_p_asr = nan\n"), "max_p_asr", "policy"),
    Case("policy: an infinite bound", bounds("max_p_asr = inf\n"), "max_p_asr", "policy"),
    Case("policy: no images needed", bounds("min_triggered = 0\n"), "min_triggered", "policy"),
    Case("policy: a misspelt bound", bounds("max_asr = 0.1\n"), "max_asr", "policy"),
    Case("policy: nested without end", bounds(f"require = {DEEP}\n"), "cannot be read", "policy"),
    Case("policy: a pipe", lambda f: os.mkfifo(f / "policy.toml"), "not a regular file", "policy"),
    # Reports
    Case("report: NaN", raw_report(b'"value": 0.5', b'"value": NaN'), "not a bdaudit report", "report"),
    Case("report: 1e400", raw_report(b'"value": 0.5', b'"value": 1e400'), "not a bdaudit report", "report"),
    Case("report: a count of five thousand digits", raw_report(b'"n": 100', b'"n": ' + b"9" * 5000), "not a bdaudit report", "report"),
    Case("report: of another version", changed_report(schema_version="2"), "schema_version", "report"),
    Case("report: a verdict of its own", changed_report(verdict="PASS"), "verdict", "report"),
    Case("report: unknown fields", changed_report(exit_code=0), "exit_code", "report"),
    Case("report: nested without end", changed_report(inputs={"x": 1}) and raw_report(b'"seed": 0', b'"seed": ' + DEEP.encode()), "not a bdaudit report", "report"),
    Case("report: names that write on terminals", changed_report(**{"\x1b[2J\nerror": 1}), "not a bdaudit report", "report"),
    Case("report: a pipe", lambda f: os.mkfifo(f / "report.json"), "not a regular file", "report"),
    Case("report: a device", lambda f: (f / "report.json").symlink_to("/dev/zero"), "not a regular file", "report"),
    Case("report: a folder", lambda f: (f / "report.json").mkdir(), "cannot be read", "report"),
    Case("report: scripts in names", changed_report(title="<script>alert(1)</script>", notes=["<img src=x onerror=alert(1)>"]), "USED", "report", 1),
    Case("report: an address as a picture", changed_report(exhibits=[
        {"probe": "qra", "metric": "p_asr", "title": "t", "picture": "http://127.0.0.1/x.png"}]), "USED", "report", 1),
    Case("report: values beyond belief", changed_report(findings=[
        {**COLUMNS, "value": 1e308, "seeds": -5, "spread": -1e308}]), "USED", "report", 1),
    # Run folders
    Case("run: an attack by its path", record(attack="../../evil"), "attack", "run"),
    Case("run: an attack that writes on terminals", record(attack="\x1b[2J\nx"), "attack", "run"),
    Case("run: a target that is no class", record(target=99), "target 99 is out of range", "run"),
    Case("run: absurd images", record(shape=[3, 1 << 40, 1 << 40]), "not a record of `bdaudit attack`", "run"),
    Case("run: nested without end", lambda f: (a_run(f) / "attack.json").write_text(DEEP), "not a record of `bdaudit attack`", "run"),
    Case("run: a record that is a pipe", lambda f: (a_run(f) / "attack.json").unlink() or os.mkfifo(f / "run" / "attack.json"), "not a run folder", "run"),
    Case("run: pools that are links", linked_pool, "is a link", "run"),
    Case("run: a trigger of another shape", trigger(SOUND[:, :4], torch.zeros(8, 8)), "its weight is", "run"),
    Case("run: a trigger of floats", trigger(SOUND.float(), torch.zeros(8, 8)), "its pattern is torch.float32", "run"),
    Case("run: a trigger of NaN", trigger(SOUND, torch.full((8, 8), torch.nan)), "not between 0 and 1", "run"),
    Case("run: a trigger of no kind", trigger(SOUND, torch.zeros(8, 8), kind=["blend"]), "not a trigger file of a known kind", "run"),
    Case("run: a trigger that is a pickle", lambda f: (a_run(f) / "trigger.safetensors").write_bytes(b"\x80\x04" + SYSTEM + order(f) + b"\x85R."), "contains code", "run"),
    Case("run: a trigger without end", lambda f: (a_run(f) / "trigger.safetensors").unlink() or (f / "run" / "trigger.safetensors").symlink_to("/dev/zero"), "no such trigger file", "run"),
]  # fmt: skip
