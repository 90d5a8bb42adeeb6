"""bdaudit doctor."""

from __future__ import annotations

import json

import click

from bdaudit.cli.common import json_flag, uniform


@click.command("doctor")
@json_flag
@uniform
def command(as_json: bool) -> int:
    """Say what runs here; exit code 3 if something installed is broken."""
    from tabulate import tabulate

    from bdaudit.flow.doctor import checkup

    rows, healthy = checkup()
    if as_json:
        click.echo(json.dumps({"healthy": healthy, **rows}, indent=2))
    else:
        click.echo(
            tabulate(
                [[k, v] for k, v in rows.items()], tablefmt="plain", maxcolwidths=[None, 90], disable_numparse=True
            )
        )
    return 0 if healthy else 3
