"""What bdaudit writes beside the weights, and how a header from a stranger is checked."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from bdaudit.errors import CheckpointError, UsageError, one_line
from bdaudit.inputs.architectures import complete
from bdaudit.inputs.classifier import ArchSpec, Classifier, Preprocessing

KEY = "bdaudit"
"""The header's key: beside "state_dict" in a torch file, in the metadata of a safetensors file."""

VERSION = 1
MAX_BYTES = 4 << 20

_Number = Annotated[float, Field(allow_inf_nan=False, ge=-1000, le=1000)]
_Side = Annotated[int, Field(ge=1, le=4096)]
_ClassName = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    # Not more than the fields' own types, as everything here comes from a possibly hostile file. Unknown
    # fields are dropped: a later bdaudit that adds one need not raise the version.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class HeaderArch(_Strict):
    """The architecture by name with the options that rebuild it."""

    name: str = Field(min_length=1, max_length=400)
    options: dict[Annotated[str, Field(max_length=100)], int] = Field(default={}, max_length=20)


class HeaderPreprocessing(_Strict):
    """The fields of `Preprocessing`."""

    channels: int
    height: _Side
    width: _Side
    mean: list[_Number] = Field(max_length=3)
    std: list[_Number] = Field(max_length=3)


class Header(_Strict):
    """The header of bdaudit's own checkpoints."""

    version: int
    arch: HeaderArch | None = None
    preprocessing: HeaderPreprocessing | None = None
    classes: list[_ClassName] | None = Field(default=None, min_length=1, max_length=100_000)
    provenance: dict[str, JsonValue] = {}

    @field_validator("classes")
    @classmethod
    def _printable(cls, names: list[str] | None) -> list[str] | None:
        for k, name in enumerate(names or ()):
            if not name.isprintable():
                raise ValueError(f"class {k} has a name with control characters")
        return names

    @property
    def code(self) -> str:
        """The function in a Python file that built the model, for messages alone; '' where it was none."""
        if self.arch is None or not ArchSpec(self.arch.name).is_code:
            return ""
        options = ",".join(f"{k}={v}" for k, v in self.arch.options.items())
        return one_line(f"{self.arch.name}:{options}" if options else self.arch.name, 120)

    def spec(self) -> ArchSpec | None:
        """The architecture with all its options, None where that is code; raises CheckpointError if it is not known."""
        if self.arch is None or self.code:
            return None
        try:
            return complete(ArchSpec(self.arch.name, dict(self.arch.options)))
        except UsageError as e:
            raise CheckpointError(f"its header names its network: {e}") from e

    def pixels(self) -> Preprocessing | None:
        """The preprocessing; raises CheckpointError where it contradicts itself."""
        if self.preprocessing is None:
            return None
        p = self.preprocessing
        try:
            return Preprocessing(
                channels=p.channels, height=p.height, width=p.width, mean=tuple(p.mean), std=tuple(p.std)
            )
        except UsageError as e:
            raise CheckpointError(f"its header is invalid: {one_line(e)}") from e


def read_header(raw: object) -> Header:
    """Check a header from a file; raises CheckpointError, which names the first wrong field."""
    version = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"its header has version {one_line(version, 20)}, this bdaudit reads {VERSION}: update it"
        )
    try:
        header = Header.model_validate(raw)
        if header.version != VERSION:
            raise CheckpointError(f"its header has version {one_line(header.version, 20)}, expected {VERSION}")
        if len(header.model_dump_json()) > MAX_BYTES:
            raise CheckpointError(f"its header is longer than {MAX_BYTES >> 20} MiB")
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise CheckpointError(f"its header is invalid: {one_line(where, 80)}: {one_line(first['msg'], 120)}") from e
    except (ValueError, RecursionError) as e:  # text that is no text, provenance nested without end
        raise CheckpointError(f"its header is invalid: {one_line(e, 120)}") from e
    return header


def read_json(text: str) -> Header:
    """Check a header written as JSON, as in the metadata of a safetensors file."""
    if len(text) > MAX_BYTES:
        raise CheckpointError(f"its header is longer than {MAX_BYTES >> 20} MiB")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"its header is no JSON: {one_line(e, 120)}") from e
    return read_header(raw)


def describe(model: Classifier, provenance: dict[str, Any]) -> Header:
    """Make the header for a classifier; raises UsageError where a value could not be read back."""
    p = model.preprocessing
    raw = {
        "version": VERSION,
        "arch": model.arch and {"name": model.arch.label, "options": dict(model.arch.options)},
        "preprocessing": {
            "channels": p.channels,
            "height": p.height,
            "width": p.width,
            "mean": [float(v) for v in p.mean],
            "std": [float(v) for v in p.std],
        },
        "classes": list(model.classes),
        "provenance": provenance,
    }
    try:
        return read_header(raw)
    except CheckpointError as e:
        raise UsageError(f"the model cannot be described in a checkpoint: {e}") from e
