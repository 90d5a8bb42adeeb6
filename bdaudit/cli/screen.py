"""bdaudit screen."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import Configured, as_stored, common, json_flag, pools


@click.command("screen", cls=Configured)
@click.argument("model", type=click.Path(path_type=Path))
@pools(malicious_required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--depth",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="How far up the network the images are compared.",
)
@as_stored
@json_flag
@common
def command(
    model: Path,
    malicious: Path,
    clean: Path | None,
    out: Path,
    target: int | None,
    depth: float,
    arch: str | None,
    normalisation: str | None,
    as_json: bool,
    seed: int,
    device: str,
    quiet: bool,
    config: Path | None,
) -> int:
    """Find triggered images among the clean ones, and clean ones among the flagged, by MODEL's own features.

    Writes clean/ and flagged/ with the images that belong there, the scores of all images, and a chart of them.
    Exit code 4: the two cannot be told apart, and nothing was moved or dropped.

    \b
    bdaudit screen model.pt --clean clean/ --malicious flagged/ --out pools/
    """
    from bdaudit import api
    from bdaudit.cli.tables import screen_summary
    from bdaudit.training.progress import progress_shown

    with progress_shown(not quiet):
        record = api.screen(
            model,
            clean=clean,
            malicious=malicious,
            target=target,
            depth=depth,
            arch=arch,
            normalisation=normalisation,
            seed=seed,
            device=device,
            out=out,
        ).record
    click.echo(record.model_dump_json() if as_json else screen_summary(record, model, out))
    return 4 if record.doubt else 0
