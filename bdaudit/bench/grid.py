"""A grid as somebody writes it: lists per axis, options, exclusions. One clear line for whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bdaudit import plugins
from bdaudit.contract import Plugin
from bdaudit.errors import InputError, OptionError, UsageError, did_you_mean, one_line
from bdaudit.flow.contamination import Contamination
from bdaudit.inputs.toml import read_toml
from bdaudit.report.schema import Policy

AXES = ("data", "arch", "attacks", "defenses", "contamination", "budgets", "seeds")
"""What cells differ in, in the order of the columns; every cell is audited with all the probes."""
KINDS = {"attacks": "attack", "defenses": "defense", "probes": "probe"}
TABLES = ("victim", "audit", "options", "exclude")
MOST_CELLS = 100_000

DELIVERED = frozenset({"suspect", "purified", "reference", "benign", "backdoor", "test", "rng"})
"""What a probe can be given in a grid: a cell has no other purified models beside its own."""

T = TypeVar("T", bound=BaseModel)


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
    policy: dict[str, Any] = Field(default_factory=dict)


class Pools(Table):
    """Shares of the two pools that are wrong."""

    clean: float = Field(0.0, ge=0, lt=1)
    flagged: float = Field(0.0, ge=0, lt=1)


class Lists(Table):
    """The axes that hold numbers and names alone."""

    data: list[str] = Field(min_length=1)
    arch: list[str] | None = Field(None, min_length=1)
    contamination: list[Annotated[float, Field(ge=0, lt=1)] | Pools] = Field([0.0], min_length=1)
    budgets: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=1)
    seeds: list[Annotated[int, Field(ge=0, le=2**62)]] = Field([0], min_length=1)


@dataclass(frozen=True)
class Choice:
    """A plugin with options, and what it is called in tables: its name and the options that its entry gives."""

    label: str
    plugin: Plugin

    @property
    def name(self) -> str:
        return self.plugin.name


@dataclass(frozen=True)
class Place:
    """Where in the grid a cell is; budget None: all clean images there are; arch '': what suits the data."""

    data: str
    arch: str
    attack: Choice
    defense: Choice
    contamination: Contamination
    budget: int | None
    seed: int

    def axis(self, name: str) -> tuple[object, ...]:
        """What an exclusion may call this place on an axis."""
        match name:
            case "attacks":
                return self.attack.label, self.attack.name
            case "defenses":
                return self.defense.label, self.defense.name
            case "contamination":
                return (self.contamination,)
            case "budgets":
                return (self.budget,)
            case "seeds":
                return (self.seed,)
        return (getattr(self, name),)


@dataclass(frozen=True)
class Grid:
    """A grid that was read and checked."""

    title: str
    data: tuple[str, ...]
    archs: tuple[str, ...]
    attacks: tuple[Choice, ...]
    defenses: tuple[Choice, ...]
    probes: tuple[Choice, ...]
    contamination: tuple[Contamination, ...]
    budgets: tuple[int | None, ...]
    seeds: tuple[int, ...]
    victim: VictimSettings = field(default_factory=VictimSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    policy: Policy = field(default_factory=Policy)
    excludes: tuple[Mapping[str, tuple[object, ...]], ...] = ()

    def places(self) -> list[Place]:
        """List the cells that are not excluded, the last axis running fastest."""
        axes = (self.data, self.archs, self.attacks, self.defenses, self.contamination, self.budgets, self.seeds)
        return [place for where in product(*axes) if not self._excluded(place := Place(*where))]

    def _excluded(self, place: Place) -> bool:
        return any(
            all(any(v in place.axis(axis) for v in values) for axis, values in rule.items()) for rule in self.excludes
        )


def read_grid(path: Path) -> Grid:
    """Read and check a grid file. Raises InputError, or UsageError for a plugin or an option that there is not."""
    shown = one_line(path, 120)
    return parse_grid(read_toml(path, shown), shown)


def parse_grid(table: Mapping[str, Any], shown: str) -> Grid:
    """Check a grid; shown: how to call it in errors."""
    known = ("title", *AXES, "probes", *TABLES)
    for key in table:
        if key not in known:
            raise InputError(
                f"{shown}: unknown axis or table {one_line(key, 40)!r}{did_you_mean(key, known)} "
                f"(axes: {', '.join((*AXES, 'probes'))}; tables: {', '.join(TABLES)})"
            )
    for axis in ("data", "attacks", "defenses"):
        if not table.get(axis):
            raise InputError(f"{shown}: {axis} is missing or empty: an axis needs at least one entry")
    title = table.get("title", "")
    if not isinstance(title, str):
        raise InputError(f"{shown}: title: expected text, got {one_line(title, 40)}")
    lists = _checked(Lists, {axis: _listed(table[axis]) for axis in Lists.model_fields if axis in table}, shown, "")
    audit = _checked(AuditSettings, table.get("audit", {}), shown, "audit")
    options = _options(table.get("options", {}), shown)
    choices = {axis: _choices(axis, _listed(table.get(axis, ["retune", "qra"])), options, shown) for axis in KINDS}
    for choice in choices["probes"]:
        if lacking := [name for name in choice.plugin.needs() if name not in DELIVERED]:
            raise InputError(
                f"{shown}: probes: {choice.name} needs {lacking[0]}, which the cells of a grid do not have"
            )
    grid = Grid(
        title=title,
        data=tuple(lists.data),
        archs=tuple(lists.arch or [""]),
        attacks=choices["attacks"],
        defenses=choices["defenses"],
        probes=choices["probes"],
        contamination=tuple(map(_contamination, lists.contamination)),
        budgets=tuple(lists.budgets) if lists.budgets else (None,),
        seeds=tuple(lists.seeds),
        victim=_checked(VictimSettings, table.get("victim", {}), shown, "victim"),
        audit=audit,
        policy=_policy(audit.policy, shown),
    )
    _check_size(grid, shown)
    for axis, entries in {"data": grid.data, "arch": grid.archs, "contamination": grid.contamination}.items():
        _check_unlike(axis, entries, shown)
    for axis, entries in {"budgets": grid.budgets, "seeds": grid.seeds}.items():
        _check_unlike(axis, entries, shown)
    excludes = tuple(_exclusions(table.get("exclude", []), grid, shown))
    grid = Grid(**{**vars(grid), "excludes": excludes})
    if not grid.places():
        raise InputError(f"{shown}: the grid is empty: the exclusions leave no cell")
    return grid


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _checked(kind: type[T], given: object, shown: str, table: str) -> T:
    """Validate one table, and say the first thing that is wrong with it."""
    at = f"{shown}: [{table}]" if table else shown
    if not isinstance(given, dict):
        raise InputError(f"{at}: expected a table, got {one_line(given, 40)}")
    for key in given:
        if key not in kind.model_fields:
            raise InputError(f"{at}: unknown setting {one_line(key, 40)!r}{did_you_mean(key, kind.model_fields)}")
    try:
        return kind.model_validate(given)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        raise InputError(
            f"{at}: {one_line(where, 60)}: {first['msg'].lower()}, got {one_line(repr(first['input']), 60)}"
        ) from None


def _policy(given: dict[str, Any], shown: str) -> Policy:
    return _checked(Policy, given, shown, "audit.policy")


def _contamination(value: float | Pools) -> Contamination:
    if isinstance(value, Pools):
        return Contamination(value.clean, value.flagged)
    return Contamination(value, value)


def _options(given: object, shown: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Read [options.KIND.NAME]: options that hold wherever the plugin is used."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    kinds = list(KINDS.values())
    for kind, names in _tables(given, shown, "options").items():
        if kind not in kinds:
            raise InputError(f"{shown}: [options.{one_line(kind, 40)}]: expected one of {', '.join(kinds)}")
        for name, options in _tables(names, shown, f"options.{kind}").items():
            found[kind, name] = dict(_tables(options, shown, f"options.{kind}.{name}"))
    return found


def _tables(given: object, shown: str, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{shown}: [{one_line(where, 60)}]: expected a table, got {one_line(given, 40)}")
    return given


def _choices(
    axis: str, entries: Sequence[object], options: Mapping[tuple[str, str], dict[str, Any]], shown: str
) -> tuple[Choice, ...]:
    """Look up the plugins of an axis; an option that is a list stands for an entry a value."""
    kind, made = KINDS[axis], []
    for k, name in options:
        if k == kind:
            _lookup(kind, name, f"{shown}: [options.{kind}]")
    for entry in entries:
        name, own = _entry(entry, f"{shown}: {axis}")
        cls = _lookup(kind, name, f"{shown}: {axis}")
        for values in product(*(_listed(v) for v in own.values())):
            varied = dict(zip(own, values, strict=True))
            label = " ".join([name, *(f"{k}={_word(v)}" for k, v in varied.items())])
            try:
                made.append(Choice(label, cls.parse({**options.get((kind, name), {}), **varied})))
            except OptionError as e:
                raise OptionError(f"{shown}: {axis}: {e}") from None
    _check_unlike(axis, [(c.name, repr(c.plugin)) for c in made], shown, [c.label for c in made])
    if axis == "probes":
        _check_unlike(axis, [c.name for c in made], shown)
    return tuple(made)


def _entry(entry: object, where: str) -> tuple[str, dict[str, Any]]:
    """Read `"NAME option=value ..."` or `{name = "NAME", option = value}`."""
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        return entry["name"], {k: v for k, v in entry.items() if k != "name"}
    if not isinstance(entry, str) or not entry.split():
        raise InputError(
            f'{where}: expected "NAME option=value ..." or {{name = "NAME", ...}}, got {one_line(entry, 60)}'
        )
    name, *words = entry.split()
    own: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or key in own:
            raise InputError(
                f"{where}: {one_line(entry, 60)}: expected option=value once each, got {one_line(word, 40)!r}"
            )
        own[key] = value
    return name, own


def _lookup(kind: str, name: str, where: str) -> type[Plugin]:
    try:
        found: type[Plugin] = plugins.get(kind, name)
    except UsageError as e:
        raise UsageError(f"{where}: {e}") from None
    return found


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else one_line(value, 40)


def _check_unlike(axis: str, entries: Iterable[object], shown: str, labels: Sequence[str] | None = None) -> None:
    seen: set[object] = set()
    for i, entry in enumerate(entries):
        if entry in seen:
            what = labels[i] if labels else entry
            raise InputError(f"{shown}: {axis}: {one_line(what, 60)} is there twice")
        seen.add(entry)


def _check_size(grid: Grid, shown: str) -> None:
    count = len(grid.attacks) * len(grid.defenses) * len(grid.seeds)
    for axis in (grid.data, grid.archs, grid.contamination, grid.budgets):
        count *= len(axis)
    if count > MOST_CELLS:
        raise InputError(f"{shown}: {count:,} cells, at most {MOST_CELLS:,} fit into one grid")


def _exclusions(rules: object, grid: Grid, shown: str) -> Iterator[dict[str, tuple[object, ...]]]:
    """Read [[exclude]]: a cell is left out that has one of the values on every axis that a rule names."""
    if not isinstance(rules, list):
        raise InputError(f"{shown}: write [[exclude]], with two brackets: there may be several")
    places = [place for where in _corners(grid) for place in [Place(*where)]]
    for rule in rules:
        made: dict[str, tuple[object, ...]] = {}
        for axis, values in _tables(rule, shown, "[exclude]").items():
            if axis not in AXES:
                raise InputError(f"{shown}: [[exclude]]: unknown axis {one_line(axis, 40)!r}{did_you_mean(axis, AXES)}")
            known = {v for place in places for v in place.axis(axis)}
            made[axis] = tuple(_excluded_value(axis, v, known, shown) for v in _listed(values))
        if not made:
            raise InputError(f"{shown}: [[exclude]]: a rule without an axis would leave out everything")
        yield made


def _corners(grid: Grid) -> Iterator[tuple[Any, ...]]:
    """Go through every value of every axis once, the others at their first."""
    axes = (grid.data, grid.archs, grid.attacks, grid.defenses, grid.contamination, grid.budgets, grid.seeds)
    first = tuple(axis[0] for axis in axes)
    for i, axis in enumerate(axes):
        for value in axis:
            yield (*first[:i], value, *first[i + 1 :])


def _excluded_value(axis: str, value: object, known: set[object], shown: str) -> object:
    if axis == "contamination" and isinstance(value, int | float | dict):
        given = {"clean": value, "flagged": value} if not isinstance(value, dict) else value
        value = Contamination(**_checked(Pools, given, shown, "[exclude]").model_dump())
    if isinstance(value, dict | list) or value not in known:
        names = [str(k) for k in known]
        raise InputError(
            f"{shown}: [[exclude]]: {axis} has no {one_line(value, 60)!r}{did_you_mean(str(value), names)}"
        )
    return value
