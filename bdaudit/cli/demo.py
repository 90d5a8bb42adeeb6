"""bdaudit demo."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import Configured, common, json_flag, warn_broken


@click.command("demo", cls=Configured)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="The folder to write."
)
@json_flag
@common
def command(out: Path, as_json: bool, seed: int, device: str, quiet: bool, config: Path | None) -> None:
    """Backdoor a small model on real digits, purify it with PL, audit it, and leave a report to open.

    Ends with exit code 0 when it ran, whatever the verdict on its model.
    """
    from bdaudit import api
    from bdaudit.report.render import render
    from bdaudit.training.progress import progress_shown

    warn_broken()
    with progress_shown(not quiet):
        report = api.demo(out, seed=seed, device=device)
    click.echo(report.to_json() if as_json else render(report, "text"), nl=False)
    click.echo(
        f"\nreport to open: {out / 'audit-pl' / 'report.html'}\nthe trigger:    {out / 'preview.png'}\n"
        f"try it:         cd {out} && bdaudit purify model.pt --defense pl --malicious flagged/",
        err=True,
    )
