"""Find plugins through entry points, look them up by name, and survive the broken ones."""

from __future__ import annotations

import ast
import hashlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

import bdaudit
from bdaudit import hookspecs
from bdaudit.errors import PluginError, UsageError, did_you_mean, one_line
from bdaudit.inputs.files import sha256

if TYPE_CHECKING:
    from bdaudit.contract import Plugin

GROUP = "bdaudit"
BUILT_IN = "bdaudit"
TRACKER = "tracker"
ALLOW = "BDAUDIT_PLUGINS"
"""Environment variable: the distributions, besides bdaudit, whose plugins are imported. Only the environment decides:
a file beside a suspect came with the suspect."""


@dataclass(frozen=True)
class Kind:
    """A kind of plugin: the hook that returns its classes, and the class they must derive from (`module:name`)."""

    name: str
    hook: str
    base: str


KINDS: Mapping[str, Kind] = {
    k.name: k
    for k in (
        Kind("attack", "bdaudit_attacks", "bdaudit.attacks.base:Attack"),
        Kind("defense", "bdaudit_defenses", "bdaudit.defenses.base:Defense"),
        Kind("probe", "bdaudit_probes", "bdaudit.probes.base:Probe"),
        Kind("importer", "bdaudit_importers", "bdaudit.importers:Importer"),
    )
}
"""Every kind of class that plugins bring: a new one is a row here and a hook in hookspecs.py."""


@dataclass(frozen=True)
class Origin:
    """Where a plugin came from."""

    distribution: str
    version: str
    module: str

    @property
    def sha256(self) -> str:
        """Hash of the plugin's package as it lies on disk (hex; '' where it cannot be read, as in a zip file)."""
        return fingerprint(self.module)

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Found:
    """A usable plugin class and where it came from."""

    cls: type[Plugin]
    origin: Origin


@dataclass(frozen=True)
class Tracker:
    """A `bdaudit_result` hook, the arguments it names, and where it came from."""

    function: Callable[..., object]
    arguments: tuple[str, ...]
    origin: Origin


@dataclass
class Registry:
    """All plugins of this environment: the usable by kind and name, the broken with their reasons.

    left_out: labels of those that the allow-list keeps from being imported.
    """

    found: dict[tuple[str, str], Found] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    trackers: dict[str, Tracker] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> dict[str, Found]:
        """Map names to the plugins of one kind, sorted by name."""
        return {name: found for (k, name), found in sorted(self.found.items()) if k == kind}

    def get(self, kind: str, name: str) -> type[Any]:
        """Look a class up by name; the error suggests close names and owns up to skipped plugins."""
        found = self.found.get((kind, name))
        if found is not None:
            return found.cls
        names = list(self.of_kind(kind))
        raise UsageError(
            f"there is no {kind} named {one_line(name, 40)!r}{did_you_mean(name, names)} "
            f"(known: {', '.join(names)}){self.why_not(name)}"
        )

    def named(self, name: str, kind: str | None = None) -> list[tuple[str, Found]]:
        """Find the plugins of this name, of one kind or of any, each with its kind."""
        found = [(k, f) for (k, n), f in sorted(self.found.items()) if n == name and kind in (None, k)]
        if not found:
            close = did_you_mean(name, {n for k, n in self.found if kind in (None, k)})
            raise UsageError(
                f"there is no {kind or 'plugin'} named {one_line(name, 40)!r}{close} (see: bdaudit plugins list)"
                f"{self.why_not(name)}"
            )
        return found

    def why_not(self, name: str) -> str:
        """Say that a plugin of this name is installed but not in use, ready to append to a message ('' if none is)."""
        skipped = (
            f"; {label} was skipped: {reason}" for label, reason in self.broken.items() if _is_label(label, name)
        )
        left_out = (f"; {label} is left out by {ALLOW}" for label in self.left_out if _is_label(label, name))
        return next(chain(skipped, left_out), "")

    def all_left_out(self, kind: str) -> str:
        """Name the plugins of a kind that the allow-list keeps out, ready to append to a message ('' if none)."""
        kept = [label for label in self.left_out if label.startswith(f"{kind}.")]
        return f"; {ALLOW} leaves out {', '.join(kept)}" if kept else ""

    def origins(self) -> list[Origin]:
        """Name everything from outside bdaudit that was imported, sorted."""
        everything = [f.origin for f in self.found.values()] + [t.origin for t in self.trackers.values()]
        return sorted({o for o in everything if o.distribution != BUILT_IN}, key=lambda o: (str(o), o.module))


def names(kind: str = "") -> list[str]:
    """List the names of one kind, or of all, from entry points alone, without importing anything (for completion)."""
    pairs = (point.name.partition(".") for point in _allowed()[0])
    return sorted({name for prefix, _, name in pairs if name and kind in ("", prefix)})


@cache
def registry() -> Registry:
    """Load every allowed plugin of this environment, once."""
    allowed, left_out = _allowed()
    result = load(allowed)
    result.left_out = tuple(sorted(map(_label, left_out)))
    return result


def get(kind: str, name: str) -> type[Any]:
    """Look up a plugin class of this environment by kind and name."""
    return registry().get(kind, name)


def allow_list() -> frozenset[str] | None:
    """Read the allow-list: canonical names of distributions; None where it is not set and all may be imported."""
    text = os.environ.get(ALLOW)
    if text is None:
        return None
    return frozenset(map(_canonical, re.split(r"[\s,]+", text))) - {"", "none", BUILT_IN}


def unknown_allowed() -> list[str]:
    """Name what the allow-list allows and no installed plugin's distribution is called: misspelt, most likely."""
    installed = {_canonical(_distribution(point)) for point in entry_points(group=GROUP)}
    return sorted((allow_list() or frozenset()) - installed)


def load(points: Iterable[EntryPoint]) -> Registry:
    """Import plugins one by one; whatever goes wrong with one is recorded and stops no other."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    result = Registry()
    # Built-ins first, so that no other distribution can take one of their names.
    for point in sorted(points, key=lambda p: (_distribution(p) != BUILT_IN, p.name, _distribution(p))):
        origin = Origin(_distribution(point), point.dist.version if point.dist else "unknown", point.module)
        kind, _, name = point.name.partition(".")
        try:
            _check_version(point.module)
            with redirect_stdout(sys.stderr):  # stdout is the command's own: `--json` must stay one document
                module = point.load()
            if not manager.is_registered(module):  # one module may stand behind several names
                manager.register(module, name=f"{point.name} of {origin}")
            if kind == TRACKER:
                _add_tracker(result, manager, module, name, origin)
            else:
                _add_classes(result, manager, module, origin)
        except PluginError as e:
            result.broken[_label(point)] = one_line(e, 200)
        except (Exception, SystemExit) as e:  # a stranger's module may raise anything on import
            result.broken[_label(point)] = f"{type(e).__name__}: {one_line(e, 200)}"
    return result


def _hooks(manager: pluggy.PluginManager, module: object) -> Iterable[tuple[str, pluggy.HookImpl]]:
    """Name this module's hooks, and only this module's, so that one failure stays its own."""
    for caller in manager.get_hookcallers(module) or []:
        yield from ((caller.name, hook) for hook in caller.get_hookimpls() if hook.plugin is module)


def _add_classes(result: Registry, manager: pluggy.PluginManager, module: object, origin: Origin) -> None:
    from bdaudit.contract import check_class

    found: dict[tuple[str, str], Found] = {}
    kinds = {kind.hook: kind for kind in KINDS.values()}
    for caller, hook in _hooks(manager, module):
        if caller in kinds:
            kind = kinds[caller]
            base = pkgutil.resolve_name(kind.base)
            returned: Any = hook.function()
            for cls in (check_class(c, base) for c in returned):
                other = result.found.get((kind.name, cls.name))
                if other is not None and other.origin != origin:
                    raise PluginError(f"{kind.name} {cls.name!r} is already provided by {other.origin.distribution}")
                found[kind.name, cls.name] = Found(cls, origin)
    if not found:
        raise PluginError("it returns no plugin from any of bdaudit's hooks")
    result.found |= found


def _add_tracker(result: Registry, manager: pluggy.PluginManager, module: object, name: str, origin: Origin) -> None:
    own = [hook for caller, hook in _hooks(manager, module) if caller == "bdaudit_result"]
    if not own:
        raise PluginError("it has no hook bdaudit_result")
    if name in result.trackers:
        raise PluginError(f"tracker {name!r} is already provided by {result.trackers[name].origin.distribution}")
    result.trackers[name] = Tracker(own[0].function, tuple(own[0].argnames), origin)


def _check_version(module: str) -> None:
    """Refuse a plugin made for another version of the hooks, from its source: it could not be imported to be asked."""
    spec = find_spec(module)
    source = getattr(spec.loader, "get_source", lambda _: None)(module) if spec else None
    if not source or "BDAUDIT_HOOKSPEC" not in source:
        return
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(isinstance(t, ast.Name) and t.id == "BDAUDIT_HOOKSPEC" for t in targets)
            if named and node.value.value != hookspecs.VERSION:
                raise PluginError(
                    f"it is made for version {one_line(node.value.value, 20)} of bdaudit's hooks, "
                    f"this bdaudit {bdaudit.__version__} offers version {hookspecs.VERSION}"
                )


def fingerprint(module: str) -> str:
    """Hash the package that an imported module belongs to: every file's name and content, compiled caches aside.

    The same code has the same hash whether it was installed from a wheel or in editable mode.
    """
    parts = module.split(".")
    outer = (sys.modules.get(".".join(parts[: i + 1])) for i in range(len(parts)))
    # The outermost package that is one: a namespace is shared by strangers, and has no file.
    package = next((m for m in outer if getattr(m, "__file__", None)), None)
    if package is None or not Path(str(package.__file__)).is_file():
        return ""
    return package_digest(Path(str(package.__file__)), hasattr(package, "__path__"))


@cache
def package_digest(path: Path, with_folder: bool) -> str:
    """Hash a file, or all those of its folder; once, however many plugins come from there."""
    inside = path.parent.rglob("*") if with_folder else [path]
    files = {p.relative_to(path.parent).as_posix(): p for p in inside if "__pycache__" not in p.parts and p.is_file()}
    total = hashlib.sha256()
    try:
        for name in sorted(files):
            total.update(f"{name}\0{sha256(files[name])}\n".encode(errors="surrogateescape"))
    except OSError:
        return ""
    return total.hexdigest()


def _allowed() -> tuple[list[EntryPoint], list[EntryPoint]]:
    """Divide this environment's entry points into those that may be imported and those left out."""
    allowed = allow_list()
    yes: list[EntryPoint] = []
    no: list[EntryPoint] = []
    for point in entry_points(group=GROUP):
        name = _distribution(point)
        (yes if allowed is None or name == BUILT_IN or _canonical(name) in allowed else no).append(point)
    return yes, no


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def _label(point: EntryPoint) -> str:
    version = point.dist.version if point.dist else "unknown"
    return one_line(f"{point.name} (from {_distribution(point)} {version})", 120)


def _is_label(label: str, name: str) -> bool:
    """Whether a label, `kind.name (from ...)`, is of a plugin of this name."""
    return label.partition(" ")[0].partition(".")[2] == name


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
