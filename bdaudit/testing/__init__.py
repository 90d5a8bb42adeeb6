"""The conformance kit: whether a plugin keeps the contract, on real digits, on the CPU, in seconds.

From the command line, once it is installed: `bdaudit plugins check NAME`. In pytest, one test a check:

    from bdaudit.testing import Conformance

    class TestMine(Conformance):
        plugin = Mine

Anywhere else: `[outcome for outcome in examine(Mine) if outcome.failed]`.

A plugin whose defaults take minutes says in `quick_options` with which options it takes a second. The kit watches an
honest author's plugin; it is no sandbox: what other programs do, and C++ that opens files by itself, it does not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bdaudit.contract import Plugin
from bdaudit.testing.checks import CHECKS, Check, Examination, Outcome

__all__ = ["CHECKS", "Check", "Conformance", "Outcome", "examine"]


def examine(plugin: type[Plugin], options: Mapping[str, Any] | None = None) -> list[Outcome]:
    """Run every check on a plugin class, in the order of `CHECKS`; options: instead of its `quick_options`."""
    examination = Examination(plugin, options)
    return [check(examination) for check in CHECKS]


class Conformance:
    """Tests for pytest: subclass it, name the plugin, and every check is one test."""

    plugin: ClassVar[type[Plugin]]
    options: ClassVar[Mapping[str, Any] | None] = None
    """Instead of the plugin's `quick_options`."""

    _examination: ClassVar[Examination]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test of each check."""
        if "check" in metafunc.fixturenames:
            metafunc.parametrize("check", CHECKS, ids=lambda c: c.name.replace(" ", "-"))

    def test_it_keeps_the_contract(self, check: Check) -> None:
        own = type(self)
        if "_examination" not in own.__dict__:  # the checks share their runs
            own._examination = Examination(own.plugin, own.options)
        outcome = check(own._examination)
        assert not outcome.failed, f"{check.claim} {outcome.why}"
