"""A run folder: everything an attack left behind, enough to rebuild its triggered test set elsewhere."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from bdaudit import plugins
from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import KINDS, Trigger, load_trigger
from bdaudit.errors import InputError, UsageError, one_line
from bdaudit.flow.record import Record
from bdaudit.inputs.folders import read_folder
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool

INDEX = "train.csv"

_Side = Annotated[int, Field(ge=1, le=4096)]


class AttackRecord(Record):
    """What attack.json says: how the run was made, and the figures it had when it was finished."""

    FILE = "attack.json"

    attack: str
    options: dict[str, Any]
    target: int | None
    classes: list[str] = Field(max_length=100_000)
    shape: tuple[Literal[1, 3], _Side, _Side]
    rows: dict[str, int]
    metrics: dict[str, dict[str, float | int]]
    data: str
    arch: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def goal(self) -> Goal:
        return Goal(self.target, len(self.classes))

    @model_validator(mode="after")
    def _aims_at_a_class(self) -> Self:
        try:
            _ = self.goal
        except UsageError as e:
            raise ValueError(str(e)) from None
        return self


@dataclass(frozen=True)
class Run:
    """A run folder, opened: its record and its trigger; pools are read when asked for."""

    folder: Path
    record: AttackRecord
    trigger: Trigger

    @property
    def goal(self) -> Goal:
        return self.record.goal

    @property
    def model_path(self) -> Path:
        return self.folder / "model.pt"

    @property
    def reference_path(self) -> Path | None:
        """The clean twin, if the run has one."""
        path = self.folder / "reference.pt"
        return path if path.is_file() else None

    def pool(self, name: str, notes: list[str] | None = None) -> Pool:
        """Read one of clean, flagged, reserve, test, train; `notes` gets a line about files that are not used."""
        if (self.folder / name).is_symlink():
            raise InputError(f"{one_line(self.folder / name)}: is a link; a run folder holds its images itself")
        return read_folder(self.folder / name, classes=self.record.classes, shape=self.record.shape, notes=notes)


def read_record(folder: Path) -> AttackRecord:
    """Read and check a run folder's record."""
    name = AttackRecord.FILE
    if not (folder / name).is_file():
        raise InputError(f"{one_line(folder)}: not a run folder (it has no {name}); make one with: bdaudit attack")
    return AttackRecord.read(folder)


def open_run(folder: Path | str, trigger_kinds: Mapping[str, type[Trigger]] | None = None) -> Run:
    """Open a run folder; the trigger's class comes from the attack plugin that the record names."""
    folder = Path(folder)
    record = read_record(folder)
    if trigger_kinds is None:
        attack: type[Attack] = plugins.get("attack", record.attack)
        trigger_kinds = attack.trigger_kinds
    trigger = load_trigger(folder / "trigger.safetensors", {**KINDS, **trigger_kinds})
    return Run(folder, record, trigger)


class TrainingRow(NamedTuple):
    """What a run's index says of a training image, which is called by its number in train/."""

    image: str
    label: int
    true_label: int
    poisoned: bool
    cover: bool


def training_rows(folder: Path) -> list[TrainingRow]:
    """Read the index of a run's training set; InputError where there is none that can be read."""
    path = folder / INDEX
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                TrainingRow(
                    row["image"], int(row["label"]), int(row["true_label"]), row["poisoned"] == "1", row["cover"] == "1"
                )
                for row in csv.DictReader(file)
            ]
    except KeyError as e:
        raise InputError(f"{one_line(path)}: has no column {e}") from None
    except (OSError, TypeError, ValueError, csv.Error) as e:
        raise InputError(f"{one_line(path)}: cannot be read as a run's index ({one_line(e, 120)})") from None


def known_poison(folder: Path, pool: Pool) -> torch.Tensor | None:
    """Look up which rows of a run's training set are poisoned (bool (N,)), for an evaluation; None where nothing tells.

    folder: where the rows' origins lie: the run's train/, or the run itself. Images are called by their row, and
    must have the labels that they have there.
    """
    for run in (folder.resolve().parent, folder):
        try:
            read_record(run)
            known = {row.image: row for row in training_rows(run)}
        except (InputError, OSError):
            continue
        unknown = TrainingRow("", UNKNOWN, UNKNOWN, poisoned=False, cover=False)
        rows = [known.get(PurePosixPath(origin).stem, unknown) for origin in pool.origin]
        if [row.label for row in rows] == pool.labels.tolist():
            return torch.tensor([row.poisoned for row in rows])
    return None


WRITTEN = frozenset(
    {AttackRecord.FILE, "model.pt", "reference.pt", "trigger.safetensors", "train_trigger.safetensors", "preview.png"}
    | {"clean", "flagged", "reserve", "test", "train", INDEX}
)
"""What an attack writes into its run folder."""


def is_run(folder: Path, also: frozenset[str] = frozenset()) -> bool:
    """Whether a folder holds a run and nothing else (and so may be replaced by a new one).

    also: further names that the caller writes beside a run.
    """
    return AttackRecord.fills(folder, WRITTEN | also)
