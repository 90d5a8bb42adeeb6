"""bdaudit split."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import (
    Configured,
    PluginName,
    check_options,
    common,
    json_flag,
    keeps_checkpoints,
    plugin_options,
    warn_broken,
)


@click.command("split", cls=Configured)
@click.option(
    "--train",
    required=True,
    help="The untrusted training set: a folder (one sub-folder a class), .npz or .csv.",
)
@click.option("--by", type=PluginName("defense"), required=True, help="A defense that splits it, e.g. bsd, abl.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A model whose architecture, classes and preprocessing to take; its weights are not used.",
)
@click.option(
    "--clean",
    type=click.Path(path_type=Path),
    help="A few clean images with labels, for a defense that starts from them.",
)
@click.option("--arch", help="Else the architecture to train, e.g. resnet18:width=16.  [default: resnet18]")
@click.option("--normalise", "normalisation", help="How pixels are normalised: a dataset's name, [0,1] or [-1,1].")
@plugin_options("the defense")
@keeps_checkpoints
@json_flag
@common
def command(
    train: str,
    by: str,
    out: Path,
    model: Path | None,
    clean: Path | None,
    arch: str | None,
    normalisation: str | None,
    options: tuple[tuple[str, str], ...],
    checkpoints: Path | None,
    as_json: bool,
    seed: int,
    device: str,
    quiet: bool,
    config: Path | None,
) -> int:
    """Split an untrusted training set into clean and flagged images, by a defense that trains on it.

    Writes clean/ and flagged/ (hard links to the set's files where that can be, else copies), the scores of all images
    and charts of them. Exit code 4: the split should not be relied on; the reason is printed.

    \b
    bdaudit split --train poisoned/ --by bsd --out pools/
    bdaudit purify model.pt --defense sep --clean pools/clean --malicious pools/flagged
    """
    from bdaudit import api
    from bdaudit.cli.tables import split_summary
    from bdaudit.training.progress import progress_shown

    warn_broken()
    with progress_shown(not quiet):
        record = api.split(
            train,
            by=by,
            options=check_options(options),
            clean=clean,
            model=model,
            arch=arch,
            normalisation=normalisation,
            seed=seed,
            device=device,
            out=out,
            checkpoints=checkpoints,
        ).record
    click.echo(record.model_dump_json() if as_json else split_summary(record, model, out))
    return 4 if record.doubt else 0
