"""The whole plugin contract on one screen.

A plugin is a module with one or more of these hooks, named by an entry point of the group `bdaudit`:
`"defense.mine" = "my_package.mine"`. Built-ins arrive the same way (see pyproject.toml).
What the classes must look like: `attacks.base.Attack`, `defenses.base.Defense`, `probes.base.Probe`,
`importers.Importer`; what their methods may ask for: `contract.RESOURCES`. Whether they keep the contract:
`bdaudit plugins check NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from bdaudit.attacks.base import Attack
    from bdaudit.defenses.base import Defense
    from bdaudit.importers import Importer
    from bdaudit.probes.base import Probe
    from bdaudit.report.schema import Report

VERSION = 1
"""Of this contract. A module that says `BDAUDIT_HOOKSPEC = 2` is skipped, with one line, where this is not 2."""

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


@hookspec
def bdaudit_importers() -> Iterable[type[Importer]]:
    """Return importer classes."""
    raise NotImplementedError


@hookspec
def bdaudit_result(report: Report, folder: Path | None) -> None:
    """Take note of a finished audit (a tracker): its report, a copy, and the folder of it, if one was asked for.

    What a tracker raises becomes one warning; it changes neither the verdict nor the exit code.
    """
    raise NotImplementedError
