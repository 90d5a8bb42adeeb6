"""Open a stranger's model file without running code from it."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from bdaudit.errors import CheckpointError, one_line

MAX_BYTES = 16 << 30
_MAX_SCANNED = 64 << 20
_HARMLESS = ("torch.", "collections.")
_SAVE = "save model.state_dict() instead"


@dataclass(frozen=True)
class Content:
    """What a file held, not yet trusted: one object, and the metadata of a safetensors file."""

    format: Literal["torch", "safetensors"]
    document: object
    metadata: dict[str, str]


def open_checkpoint(path: Path) -> Content:
    """Read a torch or safetensors file, told apart by content and not by name.

    Torch files are read with `weights_only=True` and nothing else. Raises CheckpointError with the reason,
    without the path.
    """
    try:
        if path.is_dir():
            raise CheckpointError("is a folder, expected a model file")
        if not path.exists():
            raise CheckpointError("no such file")
        if not path.is_file():
            raise CheckpointError("is not a regular file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot be read ({one_line(getattr(e, 'strerror', None) or e, 120)})") from e
    if size == 0:
        raise CheckpointError("is empty")
    if size > MAX_BYTES:
        raise CheckpointError(f"has {size / 2**30:.0f} GiB, more than any image classifier ({MAX_BYTES >> 30} GiB)")
    if start.startswith(b"PK\x03\x04"):
        return _open_zip(path, size)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < MAX_BYTES:
        return _open_safetensors(path)
    # Files of PyTorch before 1.6 are bare pickles. So is what a text editor may have made of a payload.
    if start.startswith(b"\x80") or _pickled_globals(path, whole=True):
        return _open_torch(path)
    raise CheckpointError("is neither a torch nor a safetensors file")


def _open_zip(path: Path, size: int) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise CheckpointError("is truncated or damaged") from e
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(f"is a TorchScript archive, which holds code: refused, nothing was run; {_SAVE}")
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        raise CheckpointError(f"is an exported program (.pt2), not a file of weights; {_SAVE}")
    if "data.pkl" not in names:
        raise CheckpointError("is a zip archive that torch.save did not write")
    # torch.save never compresses. A small file that unpacks into memory without end does.
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError("is compressed or holds overlapping entries, which torch.save never writes: refused")
    return _open_torch(path)


def _open_torch(path: Path) -> Content:
    try:
        # A file object, as torch would go by the extension of a path.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and the like, nothing a user can act on
            document = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged or hostile file makes the unpickler fail in any way there is
        raise CheckpointError(_refusal(path, e)) from e
    return Content("torch", document, {})


def _open_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies, so that nothing depends on the file's fate once it was read.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
            return Content("safetensors", tensors, file.metadata() or {})
    except SafetensorError as e:
        raise CheckpointError(f"is a truncated or damaged safetensors file ({one_line(e, 120)})") from e
    except Exception as e:
        raise CheckpointError(f"cannot be read as safetensors ({one_line(e, 120)})") from e


def _refusal(path: Path, error: Exception) -> str:
    """Explain why torch refused a file."""
    found = _pickled_globals(path)
    if any(name.startswith("torch.nn.modules.") for name in found):
        return f"is a whole pickled model, which runs code when read: refused, nothing was run; {_SAVE}"
    named = re.search(r"GLOBAL (\S+)", str(error))
    foreign = named.group(1) if named else next((n for n in found if not n.startswith(_HARMLESS)), None)
    if foreign:
        return f"contains code ({one_line(foreign, 80)}): refused, nothing was run; {_SAVE}"
    if "Unsupported operand" in str(error):
        return f"is a pickle that torch.save did not write: refused, nothing was run; {_SAVE}"
    return f"is truncated, damaged or no model file ({one_line(type(error).__name__, 40)})"


def _pickled_globals(path: Path, *, whole: bool = False) -> list[str]:
    """List what a pickle would import, without running it.

    whole: list nothing unless it reads as a pickle to its end, which text hardly ever does.
    """
    found: list[str] = []
    strings: list[str] = []
    stopped = False
    try:
        stream = io.BytesIO(_pickle_bytes(path))
        # Before PyTorch 1.6 a file was several pickles in a row: magic number, version, system, object.
        for _ in range(5):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.append(str(argument).replace(" ", ".", 1))
                elif opcode.name == "STACK_GLOBAL":
                    found.append(".".join(strings))
                elif isinstance(argument, str):
                    strings = [*strings[-1:], argument]
            stopped = True
    except Exception:  # a stranger's bytes end anyhow; what was found until there counts
        pass
    return found if stopped or not whole else []


def _pickle_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            return file.read(_MAX_SCANNED)
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("/data.pkl"))
        with archive.open(entry) as pickled:
            return pickled.read(_MAX_SCANNED)
