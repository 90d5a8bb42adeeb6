"""bdaudit audit."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import Configured, PluginName, check_options, common, json_flag, model_inputs, warn_broken


@click.command("audit", cls=Configured)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--defense", type=PluginName("defense"), help="Purify with this defense first.")
@click.option("--purified", type=click.Path(path_type=Path), help="Or: a model that somebody else purified.")
@model_inputs
@click.option("--reference", type=click.Path(path_type=Path), help="A clean or exactly purified model, as a control.")
@click.option(
    "--transfer-to",
    "others",
    metavar="FILE|DEFENSE",
    multiple=True,
    help="Another purified model, or a defense that makes one, for the probe `transfer`; can be given again.",
)
@click.option(
    "--probe", "probes", type=PluginName("probe"), multiple=True, help="Which probes to run.  [default: retune, qra]"
)
@click.option("--policy", type=click.Path(path_type=Path), help="A TOML file with the bounds to judge by.")
@click.option("--evaluate", type=click.IntRange(1), default=2000, show_default=True, help="Images per rate, at most.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the report and the purified model.  [default: audit-NAME beside MODEL]",
)
@json_flag
@common
def command(
    model: Path,
    defense: str | None,
    purified: Path | None,
    clean: Path | None,
    malicious: Path | None,
    target: int | None,
    train: Path | None,
    screen: bool,
    attack_run: Path | None,
    reference: Path | None,
    others: tuple[str, ...],
    probes: tuple[str, ...],
    policy: Path | None,
    evaluate: int,
    arch: str | None,
    normalisation: str | None,
    options: tuple[tuple[str, str], ...],
    out: Path | None,
    as_json: bool,
    seed: int,
    device: str,
    quiet: bool,
    config: Path | None,
) -> int:
    """Find out whether a purification is real: purify MODEL (or take --purified), retune, query, report.

    \b
    bdaudit audit model.pt --defense fst --malicious flagged/
    bdaudit audit model.pt --purified purified.pt --attack run/
    """
    from bdaudit import api
    from bdaudit.report.render import render
    from bdaudit.training.progress import progress_shown

    warn_broken()
    out = out or model.parent / f"audit-{defense or 'purified'}"
    with progress_shown(not quiet):
        report = api.audit(
            model,
            defense=defense,
            purified=purified,
            clean=clean,
            malicious=malicious,
            target=target,
            train=train,
            screen=screen,
            run=attack_run,
            reference=reference,
            others=others,
            probes=probes or api.DEFAULT_PROBES,
            options=check_options(options),
            policy=policy,
            arch=arch,
            normalisation=normalisation,
            evaluate=evaluate,
            seed=seed,
            device=device,
            out=out,
        )
    click.echo(report.to_json() if as_json else render(report, "text"), nl=False)
    click.echo(f"report: {out / 'report.html'}", err=True)
    return int(report.exit_code)
