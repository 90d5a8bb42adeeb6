"""The record of a command: the JSON file that it leaves in its folder, by which the folder is known again."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from bdaudit.errors import InputError, one_line
from bdaudit.inputs.files import read_small, visible

MAX_BYTES = 16 << 20


class Record(BaseModel):
    """What a command says of the folder that it wrote. FILE: what the record is called there; it may be hostile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    FILE: ClassVar[str]

    schema_version: str = "1"

    def write(self, folder: Path) -> None:
        (folder / self.FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check a folder's record; InputError in one line if that is not what lies there."""
        path = folder / cls.FILE
        try:
            return cls.model_validate_json(read_small(path, MAX_BYTES))
        except (OSError, ValueError) as e:
            what = cls.FILE.removesuffix(".json")
            raise InputError(f"{one_line(path)}: not a record of `bdaudit {what}` ({one_line(e, 120)})") from None

    @classmethod
    def fills(cls, folder: Path, others: Set[str]) -> bool:
        """Whether a folder holds this record, the named files and nothing else (and so may be replaced)."""
        if not folder.is_dir() or visible(folder) - others - {cls.FILE}:
            return False
        try:
            cls.read(folder)
        except InputError:
            return False
        return True
