"""Damage files the way their formats can be damaged. All choices come from the generator that is passed in."""

from __future__ import annotations

import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from typing import Any

EDGES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
WORDS = (
    "", "\0", "\n", "\x1b[31m", "\u202e", "\ud800", "..", "../../x", "/etc/passwd", "a" * 300, "é", "%s", "{}", "{{7*7}}",
    "<script>alert(1)</script>", "javascript:x", "http://127.0.0.1/x", "https://x/y.png", "file:///etc/passwd", "NaN", "__class__",
    "os.system", "model.py:make", "weights", "\N{PILE OF POO}", "-1", "1e999",
)  # fmt: skip


DEEP = "nested "
"""Stands for lists in lists until the text is written, as deep ones cannot be handled before."""


def data(given: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Change a few bytes, numbers or stretches. other: a second file to take pieces from."""
    out = bytearray(given)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        # Where a file says what it is, changes go deepest.
        at = min(at, rng.choice((16, 256, 4096, len(out))))
        match rng.randrange(9):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice(EDGES) & ((1 << 8 * size) - 1)
                out[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
            case 3:
                del out[at:]
            case 4:
                del out[at : at + rng.choice((1, 4, 64))]
            case 5:
                out[at:at] = out[at : at + rng.choice((1, 8, 64))]
            case 6:
                out[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
            case 7:
                start = rng.randrange(len(other) + 1)
                out[at : at + 32] = other[start : start + 32]
            case _:
                out[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return bytes(out)


def value(rng: random.Random) -> Any:
    """A value that a JSON or TOML reader may not expect."""
    match rng.randrange(11):
        case 0:
            return None
        case 1:
            return rng.choice((True, False))
        case 2:
            return rng.choice(EDGES) * rng.choice((1, -1))
        case 3:
            return rng.choice((10**30, 10**400, -(10**400)))
        case 4:
            return rng.choice((0.0, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")))
        case 5 | 6:
            return rng.choice(WORDS)
        case 7:
            return [value(rng) for _ in range(rng.randrange(3))]
        case 8:
            return {rng.choice(WORDS): value(rng) for _ in range(rng.randrange(3))}
        case 9:
            return DEEP + rng.choice(("5", "200", "3000"))
        case _:
            return rng.choice(WORDS) * rng.choice((2, 1000))


def tree(given: Any, rng: random.Random) -> Any:
    """Change one place of a document of lists and dictionaries, or swap two."""
    places = list(_places(given))
    if not places or rng.random() < 0.02:
        return value(rng)
    parent, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(WORDS)] = parent.pop(key)
        case 2:
            there, its = rng.choice(places)
            if its in there if isinstance(there, dict) else its < len(there):
                parent[key] = there[its]
                return value(rng) if _endless(given) else json.loads(json.dumps(given))
        case _:
            parent[key] = value(rng)
    return given


def _places(node: Any) -> Any:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def _endless(node: Any) -> bool:
    try:
        json.dumps(node)
    except (ValueError, RecursionError):  # a place was put within itself
        return True
    return False


def json_text(given: bytes, rng: random.Random) -> bytes:
    """Change a JSON document as a document, and now and then its text too."""
    document = json.loads(given)
    for _ in range(rng.choice((1, 1, 2, 5))):
        document = tree(document, rng)
        if not isinstance(document, dict | list):
            break
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    text = re.sub(rb'"nested (\d+)"', lambda found: b"[" * int(found[1]) + b"]" * int(found[1]), text)
    if rng.random() < 0.1:  # one name twice
        text = text.replace(b"{", b'{"verdict": "pass", ', 1)
    return data(text, rng) if rng.random() < 0.2 else text


def toml_value(rng: random.Random) -> str:
    """A value as TOML, or something like it."""
    match rng.randrange(9):
        case 0:
            return rng.choice(("true", "false", "nan", "inf", "-inf", "1979-05-27T07:32:00Z", "07:32:00"))
        case 1:
            return rng.choice(
                ("0", "1", "-1", "3", "0x" + "F" * rng.choice((4, 6000)), "9" * rng.choice((20, 5000)), "1e400")
            )
        case 2:
            return "[" * rng.choice((1, 3, 2000)) + "]" * rng.choice((1, 3, 2000))
        case 3:
            return "{" + ", ".join(f'"{k}" = 1' for k in ("lr", "epochs", "a.b")[: rng.randrange(4)]) + "}"
        case 4:
            return "[" + ", ".join(toml_value(rng) for _ in range(rng.randrange(3))) + "]"
        case 5:
            return '"' + "x" * rng.choice((10, 5000)) + '"'
        case _:
            return json.dumps(rng.choice(WORDS).encode("utf-8", "replace").decode())


def toml_text(names: list[str], sections: list[str], rng: random.Random) -> bytes:
    """A configuration made of known and unknown names with odd values."""
    lines = []
    for _ in range(rng.choice((1, 2, 4))):
        match rng.randrange(8):
            case 0:
                lines.append(f"[{rng.choice(sections)}]")
            case 1:
                lines.append(f"{json.dumps(rng.choice(WORDS).encode('utf-8', 'replace').decode())} = {toml_value(rng)}")
            case 2:
                lines.append(".".join(["a"] * rng.choice((2, 50, 3000))) + " = 1")
            case _:
                lines.append(f"{rng.choice(names)} = {toml_value(rng)}")
    text = "\n".join(lines).encode()
    return data(text, rng) if rng.random() < 0.2 else text


HOSTILE_OPS = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", b"ctorch.hub\nload\n", b"cnumpy\nload\n",
    b"\x8c\x02os\x8c\x06system\x93", b"(X\x02\x00\x00\x00idios\nsystem\n", b"ios\nsystem\n", b"(cos\nsystem\nX\x01\x00\x00\x00xo",
    b"X\x01\x00\x00\x00x\x85R", b")R", b")\x81", b"}\x92", b"}b", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00",
    b"\x8b\xff\xff\xff\x7f", b"\x8a\xff", b"\x8d" + b"\xff" * 7 + b"\x7f", b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00",
    b"\x96" + b"\x00" * 5 + b"\x01\x00\x00", b"\x95" + b"\xff" * 8, b"\x94", b"2", b"0", b"1", b"(", b"t", b"l", b"d", b"e", b"u", b"s",
    b"Q", b"P0\n", b"\x97", b"\x98", b"h\x00", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f", b"N", b"]", b"}", b"\x8f", b"\x90", b"\x91",
    b"I" + b"9" * 5000 + b"\n", b"L" + b"9" * 5000 + b"L\n", b"Fnan\n", b"S'\\x'\n", b"V\\ud800\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nSize\n", b"c_codecs\nencode\n", b".",
)  # fmt: skip


def pickled(given: bytes, rng: random.Random) -> bytes:
    """Change a pickle as a sequence of opcodes; where it is none any more, as bytes."""
    marks = []
    try:
        marks.extend(at for _, _, at in pickletools.genops(given) if at is not None)
    except Exception:
        if len(marks) < 3:
            return data(given, rng)
    ops = [given[a:b] for a, b in zip(marks, [*marks[1:], len(given)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not ops:
            break
        at = rng.randrange(len(ops))
        match rng.randrange(7):
            case 0:
                del ops[at]
            case 1:
                ops.insert(at, ops[rng.randrange(len(ops))])
            case 2:
                other = rng.randrange(len(ops))
                ops[at], ops[other] = ops[other], ops[at]
            case 3:
                ops[at] = data(ops[at], rng)
            case _:
                ops.insert(at, rng.choice(HOSTILE_OPS))
    return b"".join(ops)


def zipped(given: bytes, rng: random.Random) -> bytes:
    """Change an archive: its bytes, its pickle, or which entries it has under which names."""
    if rng.random() < 0.3:
        return data(given, rng, given[-200:])
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(given)) as old, zipfile.ZipFile(out, "w") as new:
        entries = [(entry.filename, old.read(entry)) for entry in old.infolist()]
        at = rng.randrange(len(entries))
        name, content = entries[at]
        match rng.randrange(8):
            case 0:
                del entries[at]
            case 1:
                entries[at] = (name, data(content, rng))
            case 2:
                entries.append((name.swapcase(), content))
            case 3:
                entries[at] = (rng.choice(WORDS).encode("utf-8", "replace").decode() or "x", content)
            case _:
                entries = [(n, pickled(c, rng) if n.endswith("data.pkl") else c) for n, c in entries]
        for name, content in entries:
            new.writestr(name.replace("\0", "_"), content, rng.choice((0, 0, 0, 0, 0, 0, 0, 8)))
    return data(out.getvalue(), rng) if rng.random() < 0.1 else out.getvalue()


def safetensors(given: bytes, rng: random.Random) -> bytes:
    """Change the header as JSON with its length right, or anything as bytes."""
    if rng.random() < 0.3:
        return data(given, rng)
    length = int.from_bytes(given[:8], "little")
    head = json_text(given[8 : 8 + length], rng)
    said = len(head) if rng.random() < 0.9 else rng.choice(EDGES)
    return struct.pack("<Q", said) + head + given[8 + length :]


def png(given: bytes, rng: random.Random) -> bytes:
    """Change a PNG by its chunks, with their checksums right."""
    chunks, at = [], 8
    while at + 8 <= len(given):
        (size,) = struct.unpack(">I", given[at : at + 4])
        chunks.append((given[at + 4 : at + 8], given[at + 8 : at + 8 + size]))
        at += 12 + size
    k = rng.randrange(len(chunks))
    kind, content = chunks[k]
    match rng.randrange(6):
        case 0:
            del chunks[k]
        case 1:
            chunks.insert(k, chunks[rng.randrange(len(chunks))])
        case 2:
            bomb = zlib.compress(bytes(rng.choice((10, 1 << 22))))
            kind = rng.choice((b"zTXt", b"iCCP", b"iTXt"))
            chunks.insert(1, (kind, b"x\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + bomb))
        case 3:
            chunks.insert(
                rng.randrange(len(chunks)),
                (rng.choice((b"eXIf", b"acTL", b"fcTL", b"fdAT", b"PLTE", b"tRNS")), rng.randbytes(26)),
            )
        case 4:
            size = struct.pack(">II", rng.choice(EDGES) & 0xFFFFFFFF, rng.choice(EDGES) & 0xFFFFFFFF)
            chunks[0] = (b"IHDR", size + bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(2)) + bytes(3))
        case _:
            chunks[k] = (kind, data(content, rng))
    body = b"".join(struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    return given[:8] + body
