"""The whole plugin contract on one screen.

A plugin is a module that returns classes from one of these hooks, named by an entry point of the group
`bdaudit`: `"defense.mine" = "my_package.mine"`. Built-ins arrive the same way (see pyproject.toml).
What the classes must look like: `attacks.base.Attack`, `defenses.base.Defense`, `probes.base.Probe`;
what their methods may ask for: `contract.RESOURCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pluggy

if TYPE_CHECKING:
    from bdaudit.attacks.base import Attack
    from bdaudit.defenses.base import Defense
    from bdaudit.probes.base import Probe

F = TypeVar("F", bound=Callable[..., Any])

hookspec = cast(Callable[[F], F], pluggy.HookspecMarker("bdaudit"))
hookimpl = cast(Callable[[F], F], pluggy.HookimplMarker("bdaudit"))


@hookspec
def bdaudit_attacks() -> Iterable[type[Attack]]:
    """Return attack classes."""
    raise NotImplementedError


@hookspec
def bdaudit_defenses() -> Iterable[type[Defense]]:
    """Return defense classes."""
    raise NotImplementedError


@hookspec
def bdaudit_probes() -> Iterable[type[Probe]]:
    """Return probe classes."""
    raise NotImplementedError
