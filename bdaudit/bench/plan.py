"""What a grid comes to: stages addressed by everything that can change them, each made once for all that need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, get_args

from bdaudit.attacks.base import Attack
from bdaudit.bench.cost import passes_of_audit
from bdaudit.bench.grid import Choice, Grid, Place
from bdaudit.bench.store import Kind, place_of
from bdaudit.errors import UsageError, one_line
from bdaudit.flow.code import code_digest
from bdaudit.flow.contamination import Contamination
from bdaudit.flow.identity import content_digest, digest, plugin_identity
from bdaudit.flow.implant import Sizes, check_flagged, cut
from bdaudit.inputs.architectures import complete, from_user
from bdaudit.inputs.classifier import ArchSpec
from bdaudit.inputs.datasets import Dataset, load_dataset
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator

ADDRESS = 16
"""Hexadecimal digits of a key: among a million stages, two alike by chance in one case out of ten million."""
TRAINED_BY = ("bdaudit.flow.implant",)
AUDITED_BY = ("bdaudit.flow.audit", "bdaudit.flow.gather", "bdaudit.flow.contamination", "bdaudit.defenses.ep")


@dataclass(frozen=True)
class Stage:
    """One piece of work: a clean twin, a backdoored model, or a cell's audit.

    key: of everything that can change its result. needs: keys of the stages that it builds upon. spec: what whoever
    does it is told, in JSON's terms. passes: reckoned images through the network, forward and backward. like: what
    stages have in common that should take equally long.
    """

    kind: Kind
    key: str
    label: str
    needs: tuple[str, ...]
    spec: Mapping[str, Any] = field(hash=False)
    passes: int = 0
    like: str = ""

    @property
    def path(self) -> Path:
        """Where its result lies, below the bench's folder."""
        return place_of(self.kind, self.key)


@dataclass(frozen=True)
class Cell:
    """A place in the grid and the stage that fills it."""

    place: Place
    stage: Stage


@dataclass(frozen=True)
class Plan:
    """All stages of a grid, those that others need first, and its cells in the grid's order."""

    grid: Grid
    stages: tuple[Stage, ...]
    cells: tuple[Cell, ...]

    def of_kind(self, kind: Kind) -> list[Stage]:
        return [s for s in self.stages if s.kind == kind]


def make_plan(grid: Grid, device: str = "auto") -> Plan:
    """Work out the stages of a grid.

    Raises UsageError for data or an architecture that there is not, and for more images than there are.
    """
    planner = _Planner(grid, device)
    cells = tuple(Cell(place, planner.cell(place)) for place in grid.places())
    there: dict[str, Place] = {}
    for cell in cells:
        if (same := there.setdefault(cell.stage.key, cell.place)) is not cell.place:
            both = " and ".join(one_line(planner.label(place), 200) for place in (same, cell.place))
            raise UsageError(f"the grid has a cell twice, under two names: {both}; leave one of them out")
    order = list(get_args(Kind))
    return Plan(grid, tuple(sorted(planner.stages.values(), key=lambda s: order.index(s.kind))), cells)


def data_digest(dataset: Dataset) -> str:
    """Hash all images and labels of a data set, and how they are fed to a network (hex)."""
    parts = [pool.digest() for pool in (dataset.train, dataset.test) if pool is not None]
    return digest([parts, list(dataset.classes), str(dataset.preprocessing), dataset.flip])


@dataclass(frozen=True)
class _Shared:
    """What many stages have in common: for the one who does them, and for their keys.

    like: of what size. train: what a model learns. clean: how many images a defender has. epochs: of that training.
    """

    spec: dict[str, Any]
    identity: dict[str, Any]
    like: str = ""
    train: Pool | None = None
    clean: int = 0
    classes: int = 0
    epochs: int = 0

    @property
    def images(self) -> int:
        """How many a model is trained on."""
        return len(self.train) if self.train is not None else 0


class _Planner:
    """Makes the stages of one grid, each once."""

    def __init__(self, grid: Grid, device: str) -> None:
        self.grid, self.device = grid, device
        self.stages: dict[str, Stage] = {}
        choices = (*grid.attacks, *grid.defenses, *grid.probes, *grid.transfer_to)
        self.identities = {id(c): plugin_identity(c.plugin) for c in choices}
        self.trained = {(data, arch): self._trained(data, arch) for data in grid.data for arch in grid.arch}
        self.audited = self._audited()
        for shared, choice in product(self.trained.values(), grid.attacks):
            assert isinstance(choice.plugin, Attack)
            assert shared.train is not None
            goal = choice.plugin.goal(grid.victim.target, shared.classes)
            check_flagged(choice.plugin, shared.train, goal, grid.victim.flagged)

    def cell(self, place: Place) -> Stage:
        """Make the stage of a cell, and those that it needs."""
        needs = [self._twin(place)] if self.grid.victim.reference else []
        needs.append(self._victim(place))
        reference, victim = needs[0] if len(needs) > 1 else None, needs[-1]
        donor = self._victim(replace(place, attack=place.donor)) if place.donor is not None else None
        needs += [donor] if donor is not None else []
        others = [o for o in self.grid.transfer_to if o.plugin != place.defense.plugin]
        where = {
            "contamination": [place.contamination.clean, place.contamination.flagged],
            "budget": place.budget,
            "seed": place.seed,
        }
        defense = self._named(place.defense)
        identity = [
            [s.key for s in needs],
            defense,
            [[o.label, self._named(o)] for o in others],
            where,
            self.audited.identity,
        ]
        spec = {
            **self.audited.spec,
            **where,
            **_told(defense, "defense"),
            "victim": str(victim.path),
            "reference": str(reference.path) if reference is not None else None,
            "donor": str(donor.path) if donor is not None else None,
            "transfer_to": [{"label": o.label, **_told(self._named(o), "defense")} for o in others],
        }
        trained, budget = self.trained[place.data, place.arch], place.budget
        plugin = place.defense.plugin
        pool = trained.images if "train" in plugin.wants() else budget or trained.clean
        passes = passes_of_audit([plugin, *(o.plugin for o in others)], [c.plugin for c in self.grid.probes], pool)
        return self._stage(
            "cell",
            identity,
            self.label(place),
            spec,
            needs=tuple(s.key for s in needs),
            passes=passes,
            like=f"{trained.like}, {place.defense.label}, {budget}",
        )

    def label(self, place: Place) -> str:
        """Name a cell in a line of progress or in a list of failures."""
        named = [place.attack.label, place.defense.label]
        if place.donor is not None:
            named.append(f"flagged images of {place.donor.label}")
        if place.contamination != Contamination():
            named.append(f"contamination {place.contamination}")
        if place.budget is not None:
            named.append(f"budget {place.budget}")
        return self._label(place, *named)

    def _twin(self, place: Place) -> Stage:
        shared = self.trained[place.data, place.arch]
        label, spec = self._label(place, "clean twin"), shared.spec | {"seed": place.seed}
        return self._model("twin", [shared.identity, place.seed], label, spec, shared)

    def _victim(self, place: Place) -> Stage:
        shared, attack = self.trained[place.data, place.arch], self._named(place.attack)
        target, plugin = self.grid.victim.target, place.attack.plugin
        files = {name: str(path.resolve()) for name, path in plugin.reads().items()}
        options = {"options": attack["options"] | files}
        spec = {**shared.spec, **_told(attack, "attack"), **options, "target": target, "seed": place.seed}
        identity = [shared.identity, attack, target, place.seed]
        return self._model("victim", identity, self._label(place, "backdoored model", place.attack.label), spec, shared)

    def _model(self, kind: Kind, identity: object, label: str, spec: dict[str, Any], shared: _Shared) -> Stage:
        passes = shared.epochs * shared.images
        return self._stage(kind, identity, label, spec, passes=passes, like=f"{shared.like}, {kind}")

    def _stage(self, kind: Kind, identity: object, label: str, spec: dict[str, Any], **more: Any) -> Stage:
        key = digest([kind, identity])[:ADDRESS]
        if key not in self.stages:
            self.stages[key] = Stage(kind, key, label, spec=spec, **({"needs": ()} | more))
        return self.stages[key]

    def _label(self, place: Place, *named: str) -> str:
        """Name a stage: by data and architecture only where the grid has several."""
        data = [place.data] if len(self.grid.data) > 1 else []
        arch = [place.arch or "default"] if len(self.grid.arch) > 1 else []
        return ", ".join([*data, *arch, *named, f"seed {place.seed}"])

    def _named(self, choice: Choice) -> dict[str, Any]:
        return self.identities[id(choice)]

    def _trained(self, data: str, arch: str) -> _Shared:
        dataset = load_dataset(data)
        victim = self.grid.victim
        Goal(victim.target, len(dataset.classes))  # says whether there is such a class
        spec = complete(from_user(arch or dataset.arch))
        sizes = victim.model_dump(include={"clean", "reserve", "test", "flagged"}) | {"train": victim.images}
        if victim.clean < 0:
            # The defender's images must be enough for the largest budget.
            sizes["clean"] = max((b for b in self.grid.budgets if b is not None), default=-1)
        parts = cut(dataset, Sizes(**sizes), generator(0))  # says whether there are enough images
        if too_many := [b for b in self.grid.budgets if b is not None and b > len(parts.clean)]:
            raise UsageError(
                f"budgets: {too_many[0]} is more than the {len(parts.clean)} images of clean under [victim]"
            )
        shared = {"sizes": sizes, "epochs": victim.epochs, "lr": victim.lr, "device": self.device}
        hashed = data_digest(dataset)
        told = {"data": dataset.name, "data_sha256": hashed, "arch": _text(spec)}
        code = running_code(TRAINED_BY, spec)
        return _Shared(
            shared | told | {"code": code},
            shared | {"data": hashed, "arch": str(spec)} | code,
            like=f"{dataset.name}, {spec}",
            train=parts.train,
            clean=len(parts.clean),
            classes=len(dataset.classes),
            epochs=victim.epochs or dataset.epochs,
        )

    def _audited(self) -> _Shared:
        probes = [self._named(choice) for choice in self.grid.probes]
        shared = self.grid.audit.model_dump(exclude={"transfer_to"}) | {
            "policy": self.grid.policy.model_dump(),
            "device": self.device,
        }
        told = [{"name": p["name"], "options": p["options"]} for p in probes]
        code = running_code(AUDITED_BY)
        return _Shared(shared | {"probes": told, "code": code}, shared | {"probes": probes} | code)


def running_code(modules: Sequence[str], arch: ArchSpec | None = None) -> dict[str, Any]:
    """Say what decides a result beside its inputs: libraries' versions, our code, a network of the user's own."""
    code = {name: _version(name) for name in ("torch", "torchvision", "timm")} | {"code": code_digest(*modules)}
    own = Path(arch.name.rpartition(":")[0]).parent if arch is not None and arch.is_code else None
    return code | ({"network": content_digest(own, "*.py")} if own is not None else {})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _told(identity: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {kind: identity["name"], "options": identity["options"], "plugin": identity["code"]}


def _text(spec: ArchSpec) -> str:
    """Write an architecture as a user types it, a file of the user's own with its whole path."""
    return f"{spec.name}:{','.join(f'{k}={v}' for k, v in spec.options.items())}".rstrip(":")
