"""What a grid is: axes, settings, exclusions, and the places that its cells have; `grid_file.py` reads one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bdaudit.contract import Plugin
from bdaudit.flow.contamination import Contamination
from bdaudit.report.schema import Policy

AXES = ("data", "arch", "attacks", "malicious", "defenses", "contamination", "budgets", "seeds")
"""What cells differ in, in the order of a place; every cell is audited with all the probes."""
OWN: Literal["own"] = "own"
"""Flagged images of the very attack that the model was backdoored with."""


class Table(BaseModel):
    """A table of settings, which knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class VictimSettings(Table):
    """How the backdoored models are trained: what `bdaudit attack` takes, and whether each gets a clean twin."""

    images: int = Field(-1, ge=-1)
    clean: int = Field(-1, ge=-1)
    reserve: int = Field(-1, ge=-1)
    test: int = Field(-1, ge=-1)
    flagged: int = Field(-1, ge=-1)
    epochs: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    target: int = Field(0, ge=0)
    reference: bool = True


class AuditSettings(Table):
    """How the cells are audited: what `bdaudit audit` takes."""

    evaluate: int = Field(2000, ge=1)
    screen: bool = False
    flagged: int | None = Field(None, ge=1)
    transfer_to: list[Any] = Field(default_factory=list)
    policy: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A plugin with options, and what it is called in tables: its name and the options that its entry gives."""

    label: str
    plugin: Plugin

    @property
    def name(self) -> str:
        return self.plugin.name


def called(value: object) -> frozenset[object]:
    """What an exclusion may call a value of an axis: a plugin by its label, or by its name alone."""
    return frozenset({value.label, value.name} if isinstance(value, Choice) else {value})


@dataclass(frozen=True)
class Place:
    """Where in the grid a cell is; budget None: all clean images there are; arch '': what suits the data.

    malicious: the attack whose flagged images a defense is given.
    """

    data: str
    arch: str
    attack: Choice
    malicious: Choice | Literal["own"]
    defense: Choice
    contamination: Contamination
    budget: int | None
    seed: int

    @property
    def donor(self) -> Choice | None:
        """The other attack that the flagged images are of; None where they are of the model's own."""
        other = self.malicious if isinstance(self.malicious, Choice) else None
        return None if other is None or other.label == self.attack.label else other


@dataclass(frozen=True)
class Grid:
    """A grid that was read and checked. transfer_to: defenses whose purified models `transfer` tries its queries on."""

    title: str
    data: tuple[str, ...]
    arch: tuple[str, ...]
    attacks: tuple[Choice, ...]
    defenses: tuple[Choice, ...]
    probes: tuple[Choice, ...]
    contamination: tuple[Contamination, ...]
    budgets: tuple[int | None, ...]
    seeds: tuple[int, ...]
    malicious: tuple[Choice | Literal["own"], ...] = (OWN,)
    transfer_to: tuple[Choice, ...] = ()
    victim: VictimSettings = field(default_factory=VictimSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    policy: Policy = field(default_factory=Policy)
    excludes: tuple[Mapping[str, frozenset[object]], ...] = ()

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        return {name: getattr(self, name) for name in AXES}

    def places(self) -> list[Place]:
        """List the cells that are not excluded, the last axis running fastest.

        Where `own` is listed beside an attack's name, that attack's own cells are there once, as `own`.
        """
        places = (Place(*where) for where in product(*self.axes.values()) if not self._excluded(where))
        return [p for p in places if OWN not in self.malicious or p.malicious == OWN or p.donor]

    def _excluded(self, where: Sequence[Any]) -> bool:
        at = dict(zip(AXES, where, strict=True))
        return any(all(called(at[axis]) & values for axis, values in rule.items()) for rule in self.excludes)
