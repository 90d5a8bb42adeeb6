"""bdaudit import."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import Configured, PluginName, check_options, common, json_flag, plugin_options, warn_broken


@click.command("import", cls=Configured)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--format",
    "importer",
    type=PluginName("importer"),
    help="Which importer.  [default: the one that recognises RECORD]",
)
@click.option(
    "--data", help="What the record was made from, where clean images come from: cifar10, gtsrb, ..., or a folder."
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Where dataset files lie.  [default: BDAUDIT_DATA or ~/.cache/bdaudit]",
)
@click.option("--with-train", is_flag=True, help="Also write train/, the whole poisoned training set.")
@click.option(
    "--arch",
    help="Architecture, where it cannot be told from the weights: resnet18:width=16, or your own models.py:make_model, which is run.",
)
@plugin_options("the importer")
@json_flag
@common
def command(
    record: Path,
    out: Path,
    importer: str | None,
    data: str | None,
    data_root: Path | None,
    with_train: bool,
    arch: str | None,
    options: tuple[tuple[str, str], ...],
    as_json: bool,
    seed: int,
    device: str,
    quiet: bool,
    config: Path | None,
) -> None:
    """Read what another tool left at RECORD and lay it out for an audit.

    Importers are plugins, such as bdaudit-backdoorbench.

    \b
    bdaudit import record/badnet_0_1 --data cifar10 --out imported/
    """
    from bdaudit import api
    from bdaudit.cli.tables import import_summary
    from bdaudit.training.progress import progress_shown

    warn_broken()
    with progress_shown(not quiet):
        result = api.import_record(
            record,
            out=out,
            importer=importer,
            options=check_options(options),
            data=data,
            data_root=data_root,
            with_train=with_train,
            arch=arch,
            seed=seed,
            device=device,
        )
    click.echo(result.model_dump_json() if as_json else import_summary(result, out, arch))
