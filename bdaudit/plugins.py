"""Find plugins through entry points, look them up by name, and survive the broken ones."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

import pluggy

from bdaudit import hookspecs
from bdaudit.errors import PluginError, UsageError, did_you_mean, one_line

if TYPE_CHECKING:
    from bdaudit.contract import Plugin

GROUP = "bdaudit"


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
    )
}
"""Every kind there is: a new one is a row here and a hook in hookspecs.py."""


@dataclass(frozen=True)
class Found:
    """A usable plugin class and the distribution that brought it."""

    cls: type[Plugin]
    distribution: str
    version: str


@dataclass
class Registry:
    """All plugins of this environment: the usable by kind and name, the broken with their reasons."""

    found: dict[tuple[str, str], Found] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[str, Found]:
        """Map names to the plugins of one kind, sorted by name."""
        return {name: found for (k, name), found in sorted(self.found.items()) if k == kind}

    def get(self, kind: str, name: str) -> type[Any]:
        """Look a class up by name; the error suggests close names and owns up to broken plugins."""
        found = self.found.get((kind, name))
        if found is not None:
            return found.cls
        names = list(self.of_kind(kind))
        why = next((f"; {ep} is installed but broken: {r}" for ep, r in self.broken.items() if name in ep), "")
        raise UsageError(
            f"there is no {kind} named {one_line(name, 40)!r}{did_you_mean(name, names)} (known: {', '.join(names)}){why}"
        )


def names(kind: str) -> list[str]:
    """List the names of one kind from entry points alone, without importing anything (for completion)."""
    prefix = f"{kind}."
    return sorted(ep.name.removeprefix(prefix) for ep in entry_points(group=GROUP) if ep.name.startswith(prefix))


@cache
def registry() -> Registry:
    """Load every plugin of this environment, once."""
    return load(entry_points(group=GROUP))


def get(kind: str, name: str) -> type[Any]:
    """Look up a plugin class of this environment by kind and name."""
    return registry().get(kind, name)


def load(points: Iterable[EntryPoint]) -> Registry:
    """Import plugins one by one; whatever goes wrong with one is recorded and stops no other."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    result = Registry()
    # Built-ins first, so that no other distribution can take one of their names.
    for point in sorted(points, key=lambda p: (p.dist is None or p.dist.name != "bdaudit", p.name)):
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "unknown"
        try:
            module = point.load()
            manager.register(module, name=point.name)
            for kind, cls in _classes(manager, module):
                key = (kind, cls.name)
                if key in result.found:
                    other = result.found[key].distribution
                    raise PluginError(f"{kind} {cls.name!r} is already provided by {other}")
                result.found[key] = Found(cls, distribution, version)
        except (Exception, SystemExit) as e:  # a stranger's module may raise anything on import
            label = f"{point.name} (from {distribution} {version})"
            result.broken[label] = f"{type(e).__name__}: {one_line(e, 200)}"
    return result


def _classes(manager: pluggy.PluginManager, module: object) -> list[tuple[str, type[Plugin]]]:
    """Call this module's hooks, and only this module's, so that one failure stays its own."""
    from bdaudit.contract import check_class

    kinds = {kind.hook: kind for kind in KINDS.values()}
    classes = []
    for caller in manager.get_hookcallers(module) or []:
        kind = kinds[caller.name]
        base = pkgutil.resolve_name(kind.base)
        for implementation in caller.get_hookimpls():
            if implementation.plugin is module:
                hook = cast(Callable[[], Iterable[object]], implementation.function)
                classes += [(kind.name, check_class(cls, base)) for cls in hook()]
    if not classes:
        raise PluginError("it returns no plugin from any of bdaudit's hooks")
    return classes
