"""bdaudit plugins."""

from __future__ import annotations

import json
from typing import Any

import click

from bdaudit.cli.common import PluginName, json_flag, uniform, warn_broken
from bdaudit.plugins import KINDS


@click.group("plugins", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List attacks, defenses and probes, and their options."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command("list")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only this kind.")
@json_flag
@uniform
def list_(kind: str | None = None, as_json: bool = False) -> None:
    """List what is installed, one line each."""
    from tabulate import tabulate

    warn_broken()
    rows = [row for row in _rows() if kind in (None, row["kind"])]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = [
        [
            r["kind"],
            r["name"],
            r["family"],
            " ".join(r["needs"]),
            "ORACLE" if r["oracle"] else "",
            r["claim"],
            r["distribution"],
        ]
        for r in rows
    ]
    headers = ["kind", "name", "family", "needs", "", "what it does", "from"]
    click.echo(tabulate(table, headers=headers, tablefmt="simple", maxcolwidths=[None, None, None, 26, None, 60, None]))


@command.command("show")
@click.argument("name", type=PluginName(""))
@json_flag
@uniform
def show(name: str, as_json: bool) -> None:
    """Show one plugin: what it does, what it needs, every option with its default and source."""
    import inspect

    from tabulate import tabulate

    from bdaudit.contract import RESOURCES
    from bdaudit.errors import UsageError, did_you_mean
    from bdaudit.plugins import registry

    warn_broken()
    found = [(kind, f) for (kind, n), f in registry().found.items() if n == name]
    if not found:
        names = {n for _, n in registry().found}
        raise UsageError(f"there is no plugin named {name!r}{did_you_mean(name, names)} (see: bdaudit plugins list)")
    if as_json:
        rows = [row | {"options": f.cls.describe_options()} for row in _rows() for _, f in found if row["name"] == name]
        click.echo(json.dumps(rows, indent=2))
        return
    for kind, item in found:
        click.echo(f"{name} ({kind}, from {item.distribution} {item.version})\n\n{inspect.getdoc(item.cls)}\n")
        if kind != "attack":
            needs = [
                [
                    n,
                    "needed" if n in item.cls.needs() else "optional",
                    RESOURCES[n].claim,
                    RESOURCES[n].source,
                    "ORACLE" if RESOURCES[n].oracle else "",
                ]
                for n in item.cls.wants()
            ]
            click.echo(
                tabulate(
                    needs,
                    headers=["input", "", "what", "from", ""],
                    tablefmt="simple",
                    maxcolwidths=[None, None, 40, 50, None],
                )
                + "\n"
            )
        options = item.cls.describe_options()
        if options:
            click.echo(
                tabulate(
                    options,
                    headers="keys",
                    tablefmt="simple",
                    disable_numparse=True,
                    maxcolwidths=[None, 30, None, 44, 30],
                )
            )
        else:
            click.echo("no options")


def _rows() -> list[dict[str, Any]]:
    from bdaudit.plugins import registry

    rows: list[dict[str, Any]] = []
    for (kind, name), found in sorted(registry().found.items()):
        cls = found.cls
        rows.append(
            {
                "kind": kind,
                "name": name,
                "family": cls.family(),
                "needs": [] if kind == "attack" else list(cls.needs()),
                "oracle": bool(cls.oracle()),
                "distribution": found.distribution,
                "version": found.version,
                "claim": cls.claim(),
            }
        )
    return rows
