"""A grid as somebody writes it: lists per axis, options, exclusions. One clear line for whatever is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from bdaudit import plugins
from bdaudit.bench.grid import AXES, OWN, AuditSettings, Choice, Grid, Table, VictimSettings, called
from bdaudit.contract import Plugin
from bdaudit.errors import InputError, OptionError, UsageError, did_you_mean, first_mistake, one_line
from bdaudit.flow.contamination import Contamination
from bdaudit.inputs.toml import read_toml
from bdaudit.report.schema import Policy

KINDS = {"attacks": "attack", "defenses": "defense", "probes": "probe"}
TABLES = ("victim", "audit", "options", "exclude")
MOST_CELLS = 100_000

DELIVERED = frozenset({"suspect", "purified", "reference", "others", "benign", "backdoor", "test", "rng"})
"""What a probe can be given in a grid; others: where transfer_to under [audit] says which."""

T = TypeVar("T", bound=BaseModel)


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


def read_grid(path: Path, seed: int | None = None) -> Grid:
    """Read and check a grid file. Raises InputError, or UsageError for a plugin or an option that there is not.

    seed: stands for the grid's own seeds, as what is typed stands for what a file says.
    """
    shown = one_line(path, 120)
    table = read_toml(path, shown)
    return parse_grid(table if seed is None else {**table, "seeds": [seed]}, shown)


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
    choices = {
        axis: _choices(kind, _listed(table.get(axis, ["retune", "qra"])), options, f"{shown}: {axis}")
        for axis, kind in KINDS.items()
    }
    for choice in choices["probes"]:
        if lacking := [name for name in choice.plugin.needs() if name not in DELIVERED]:
            raise InputError(
                f"{shown}: probes: {choice.name} needs {lacking[0]}, which the cells of a grid do not have"
            )
    transfer_to = _choices("defense", audit.transfer_to, options, f"{shown}: [audit]: transfer_to")
    _check_transfer(transfer_to, choices["probes"], choices["defenses"], shown)
    grid = Grid(
        title=title,
        data=tuple(lists.data),
        arch=tuple(lists.arch or [""]),
        attacks=choices["attacks"],
        defenses=choices["defenses"],
        probes=choices["probes"],
        contamination=tuple(map(_contamination, lists.contamination)),
        budgets=tuple(lists.budgets) if lists.budgets else (None,),
        seeds=tuple(lists.seeds),
        malicious=_donors(_listed(table.get("malicious", OWN)), choices["attacks"], shown),
        transfer_to=transfer_to,
        victim=_checked(VictimSettings, table.get("victim", {}), shown, "victim"),
        audit=audit,
        policy=_checked(Policy, audit.policy, shown, "audit.policy"),
    )
    count = math.prod(map(len, grid.axes.values()))
    if count > MOST_CELLS:
        raise InputError(f"{shown}: {count:,} cells, at most {MOST_CELLS:,} fit into one grid")
    for axis in Lists.model_fields:
        _check_unlike(grid.axes[axis], f"{shown}: {axis}")
    grid = replace(grid, excludes=tuple(_exclusions(table.get("exclude", []), grid.axes, shown)))
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
        raise InputError(f"{at}: {first_mistake(e)}") from None


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
            _lookup(kind, name, f"{shown}: [options.{kind}]")
            found[kind, name] = dict(_tables(options, shown, f"options.{kind}.{name}"))
    return found


def _tables(given: object, shown: str, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{shown}: [{one_line(where, 60)}]: expected a table, got {one_line(given, 40)}")
    return given


def _choices(
    kind: str, entries: Sequence[object], options: Mapping[tuple[str, str], dict[str, Any]], where: str
) -> tuple[Choice, ...]:
    """Look up the plugins of a list; an option that is a list stands for an entry a value."""
    made: list[Choice] = []
    for entry in entries:
        name, own = _entry(entry, where)
        cls = _lookup(kind, name, where)
        if empty := [option for option, value in own.items() if value == []]:
            raise InputError(f"{where}: {name}: {one_line(empty[0], 40)} is an empty list")
        for values in product(*(_listed(v) for v in own.values())):
            varied = dict(zip(own, values, strict=True))
            label = " ".join([name, *(f"{k}={_word(v)}" for k, v in varied.items())])
            try:
                made.append(Choice(label, cls.parse({**options.get((kind, name), {}), **varied})))
            except OptionError as e:
                raise OptionError(f"{where}: {e}") from None
    _check_unlike([(c.name, repr(c.plugin)) for c in made], where, [c.label for c in made])
    if kind == "probe":
        _check_unlike([c.name for c in made], where)
    return tuple(made)


def _donors(entries: Sequence[object], attacks: Sequence[Choice], shown: str) -> tuple[Choice | Literal["own"], ...]:
    """Find the attacks of the grid whose flagged images are given: each by its label, or all of a name."""
    where, made = f"{shown}: malicious", list[Choice | Literal["own"]]()
    if not entries:
        raise InputError(f'{where} is empty: an axis needs at least one entry, "{OWN}" or one of attacks')
    for entry in entries:
        found = [a for a in attacks if isinstance(entry, str) and entry in called(a)]
        if entry != OWN and not found:
            close = did_you_mean(str(entry), [OWN, *(a.label for a in attacks)])
            raise InputError(f"{where}: {one_line(entry, 60)!r} is none of the grid's attacks{close}")
        made += found or [OWN]
    _check_unlike([one if isinstance(one, str) else one.label for one in made], where)
    return tuple(made)


def _check_transfer(
    transfer_to: Sequence[Choice], probes: Sequence[Choice], defenses: Sequence[Choice], shown: str
) -> None:
    """Make sure that a probe that tries other models has some in every cell, and that they are of use."""
    trying = [p.name for p in probes if "others" in p.plugin.wants()]
    if trying and not transfer_to:
        raise InputError(
            f"{shown}: probes: {trying[0]} tries other purified models: name defenses under transfer_to in [audit]"
        )
    if transfer_to and not trying:
        raise InputError(f"{shown}: [audit]: transfer_to: no probe of the grid tries other models; add transfer")
    if len(transfer_to) == 1 and any(d.plugin == transfer_to[0].plugin for d in defenses):
        raise InputError(
            f"{shown}: [audit]: transfer_to: cells of {transfer_to[0].label} have no other model to try; name another"
        )


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


def _check_unlike(entries: Iterable[object], where: str, labels: Sequence[str] | None = None) -> None:
    seen: set[object] = set()
    for i, entry in enumerate(entries):
        if entry in seen:
            raise InputError(f"{where}: {one_line(labels[i] if labels else entry, 60)} is there twice")
        seen.add(entry)


def _exclusions(
    rules: object, axes: Mapping[str, Sequence[object]], shown: str
) -> Iterator[dict[str, frozenset[object]]]:
    """Read [[exclude]]: a cell is left out that has one of the values on every axis that a rule names."""
    if not isinstance(rules, list):
        raise InputError(f"{shown}: write [[exclude]], with two brackets: there may be several")
    known = {axis: frozenset[object]().union(*map(called, values)) for axis, values in axes.items()}
    for rule in rules:
        made: dict[str, frozenset[object]] = {}
        for axis, values in _tables(rule, shown, "[exclude]").items():
            if axis not in AXES:
                raise InputError(f"{shown}: [[exclude]]: unknown axis {one_line(axis, 40)!r}{did_you_mean(axis, AXES)}")
            made[axis] = frozenset(_excluded_value(axis, v, known[axis], shown) for v in _listed(values))
        if not made:
            raise InputError(f"{shown}: [[exclude]]: a rule without an axis would leave out everything")
        yield made


def _excluded_value(axis: str, value: object, known: frozenset[object], shown: str) -> object:
    if axis == "contamination" and isinstance(value, int | float | dict):
        given = {"clean": value, "flagged": value} if not isinstance(value, dict) else value
        value = Contamination(**_checked(Pools, given, shown, "[exclude]").model_dump())
    if isinstance(value, dict | list) or value not in known:
        close = did_you_mean(str(value), map(str, known))
        raise InputError(f"{shown}: [[exclude]]: {axis} has no {one_line(value, 60)!r}{close}")
    return value
