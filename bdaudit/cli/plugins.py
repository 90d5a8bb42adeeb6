"""bdaudit plugins."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from bdaudit import plugins
from bdaudit.cli.common import PluginName, json_flag, uniform, warn_broken
from bdaudit.errors import UsageError, one_line

if TYPE_CHECKING:
    from bdaudit.contract import Plugin


WIDE = 170
"""Columns of a terminal from which on `list` shows everything."""


@click.group("plugins", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List what is installed, show its options, check that it keeps the contract."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command("list")
@click.option("--kind", type=click.Choice([*plugins.KINDS, plugins.TRACKER]), help="Only this kind.")
@json_flag
@uniform
def list_(kind: str | None = None, as_json: bool = False) -> None:
    """List what is installed, one line each."""
    from tabulate import tabulate

    warn_broken()
    _say_what_is_left_out()
    rows = [row for row in _rows() if kind in (None, row["kind"])]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    columns: dict[str, list[str]] = {
        "kind": [r["kind"] for r in rows],
        "name": [r["name"] for r in rows],
        "family": [r["family"] for r in rows],
        "needs": [" ".join(r["needs"]) for r in rows],
        "": ["ORACLE" if r["oracle"] else "" for r in rows],
        "what it does": [r["claim"] for r in rows],
        "from": [f"{r['distribution']} {r['version']}" for r in rows],
        "sha256": [r["sha256"][:12] for r in rows],
    }
    widths = {"needs": 26, "what it does": 60}
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    traits = list(rows[0]["traits"]) if kind and rows else []
    columns |= {trait: [r["traits"].get(trait, "") for r in rows] for trait in traits}
    shown = [name for name in columns if name not in traits]
    if traits:  # An attack needs nothing of the user, and its kind is known: what tells attacks apart is shown instead.
        shown = ["name", "family", *traits, "what it does", "from", "sha256"]
    if width < WIDE:
        # What `plugins show` says as well goes, the rest is wrapped.
        gone = {"from", "sha256"} if traits else {"needs", "family"}
        shown = [name for name in shown if name not in gone]
        others = max(map(len, columns["name"])) + (46 if traits else 49)
        widths = {"from": 14, "what it does": max(16, width - others)}
    columns = {name: columns[name] for name in shown}
    limits = [widths.get(name) for name in columns]
    click.echo(tabulate(columns, headers="keys", tablefmt="simple", maxcolwidths=limits, disable_numparse=True))


@command.command("show")
@click.argument("name", type=PluginName(""))
@click.option("--kind", type=click.Choice([*plugins.KINDS, plugins.TRACKER]), help="Only this kind.")
@json_flag
@uniform
def show(name: str, kind: str | None, as_json: bool) -> None:
    """Show one plugin: what it does, what it needs, every option with its default and source."""
    warn_broken()
    tracker = plugins.registry().trackers.get(name) if kind in (None, plugins.TRACKER) else None
    found = [] if tracker is not None else plugins.registry().named(name, kind)
    if as_json:
        options = {k: {"options": f.cls.describe_options()} for k, f in found}
        kinds = options or {plugins.TRACKER: {}}
        rows = [row | kinds[row["kind"]] for row in _rows() if row["name"] == name and row["kind"] in kinds]
        click.echo(json.dumps(rows, indent=2))
        return
    if tracker is not None:
        click.echo(f"{name} (tracker, from {tracker.origin})\n\n{inspect.getdoc(tracker.function)}")
    for own_kind, item in found:
        click.echo(f"{name} ({own_kind}, from {item.origin})\n\n{inspect.getdoc(item.cls)}\n")
        if own_kind != "attack":
            click.echo(_inputs(item.cls) + "\n")
        click.echo(_options(item.cls))


@command.command("check")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=PluginName(""))
@click.option("--kind", type=click.Choice(list(plugins.KINDS)), help="Only this kind.")
@json_flag
@uniform
def check(names: tuple[str, ...], kind: str | None, as_json: bool) -> int:
    """Check that a plugin keeps the contract, on tiny data on the CPU; exit code 1 if it does not.

    \b
    bdaudit plugins check fst
    """
    warn_broken()
    trackers = [name for name in names if kind is None and name in plugins.registry().trackers]
    for name in trackers:
        click.echo(f"{name} is a tracker: nothing to check short of handing it a made-up result", err=True)
    if len(trackers) == len(names):
        raise UsageError("none of these can be checked")
    found = [(k, n, item) for n in names if n not in trackers for k, item in plugins.registry().named(n, kind)]
    from bdaudit.testing import examine

    rows: list[dict[str, Any]] = []
    for own_kind, name, item in found:
        outcomes = examine(item.cls)
        checks = [{"check": o.check, "state": o.state, "why": o.why} for o in outcomes]
        rows.append({"kind": own_kind, "name": name, **_origin(item.origin), "checks": checks})
        if not as_json:
            click.echo(f"{name} ({own_kind}, from {item.origin})")
            click.echo("".join(f"  {o.check:<20}{o}\n" for o in outcomes), nl=False)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    return int(any(c["state"] == "failed" for row in rows for c in row["checks"]))


def _inputs(cls: type[Plugin]) -> str:
    from tabulate import tabulate

    from bdaudit.contract import RESOURCES

    rows = [
        [
            name,
            "needed" if name in cls.needs() else "optional",
            RESOURCES[name].claim,
            RESOURCES[name].source,
            "ORACLE" if RESOURCES[name].oracle else "",
        ]
        for name in cls.wants()
    ]
    headers = ["input", "", "what", "from", ""]
    return tabulate(rows, headers=headers, tablefmt="simple", maxcolwidths=[None, None, 40, 50, None])


def _options(cls: type[Plugin]) -> str:
    from tabulate import tabulate

    rows = cls.describe_options()
    if not rows:
        return "no options"
    widths = [None, 30, None, 44, 30]
    return tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=widths)


def _say_what_is_left_out() -> None:
    left_out = plugins.registry().left_out
    if left_out:
        click.echo(f"{plugins.ALLOW} leaves out {len(left_out)}: {', '.join(left_out)}", err=True)
    for name in plugins.unknown_allowed():
        click.echo(f"{plugins.ALLOW} allows {one_line(name, 60)}, which is not installed", err=True)


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            "name": name,
            "family": found.cls.family(),
            "needs": [] if kind == "attack" else list(found.cls.needs()),
            "oracle": bool(found.cls.oracle()),
            "traits": found.cls.traits(),
            **_origin(found.origin),
            "claim": found.cls.claim(),
        }
        for (kind, name), found in sorted(plugins.registry().found.items())
    ]
    for name, tracker in sorted(plugins.registry().trackers.items()):
        claim = (inspect.getdoc(tracker.function) or "").partition("\n")[0]
        row = {"kind": plugins.TRACKER, "name": name, "family": "", "needs": [], "oracle": False, "traits": {}}
        rows.append({**row, **_origin(tracker.origin), "claim": claim})
    return rows


def _origin(origin: plugins.Origin) -> dict[str, str]:
    return {"distribution": origin.distribution, "version": origin.version, "sha256": origin.sha256}
