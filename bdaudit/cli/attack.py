"""bdaudit attack."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import Configured, PluginName, check_options, common, json_flag, plugin_options, warn_broken


@click.command("attack", cls=Configured)
@click.argument("name", type=PluginName("attack"))
@click.option(
    "--data",
    required=True,
    help="digits, fashion-mnist, cifar10, cifar100, gtsrb, tiny-imagenet, or your own: folder:DIR (one sub-folder a "
    "class), FILE.npz, FILE.csv.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run folder to write.")
@click.option("--target", type=click.IntRange(0), default=0, show_default=True, help="The target class.")
@click.option(
    "--arch",
    help="Architecture: resnet18:width=16, timm:NAME, or your own models.py:make_model.  [default: suits the data]",
)
@click.option("--images", type=click.IntRange(1), help="Training images.  [default: 70% of what is there]")
@click.option(
    "--clean-size", type=click.IntRange(1), help="Images in clean/.  [default: a tenth of the training images]"
)
@click.option(
    "--flagged-size", type=click.IntRange(1), help="Images in flagged/.  [default: half of the mislabelled poison]"
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: 0.1, one cycle]")
@click.option("--with-reference", is_flag=True, help="Also train a clean twin, as a control for audits.")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Where dataset files lie.  [default: BDAUDIT_DATA or ~/.cache/bdaudit]",
)
@click.option("--download", is_flag=True, help="Fetch missing dataset files.")
@plugin_options("the attack")
@json_flag
@common
def command(
    name: str,
    data: str,
    out: Path,
    target: int,
    arch: str | None,
    images: int | None,
    clean_size: int | None,
    flagged_size: int | None,
    epochs: int | None,
    lr: float | None,
    with_reference: bool,
    data_root: Path | None,
    download: bool,
    options: tuple[tuple[str, str], ...],
    as_json: bool,
    seed: int,
    device: str,
    quiet: bool,
    config: Path | None,
) -> None:
    """Train a model with the backdoor NAME and write a run folder.

    \b
    bdaudit attack badnets --data fashion-mnist --images 10000 --arch resnet18:width=16 --out run/
    """
    from bdaudit import api
    from bdaudit.cli.tables import run_summary
    from bdaudit.flow.implant import Sizes
    from bdaudit.training.progress import progress_shown

    warn_broken()
    with progress_shown(not quiet):
        run = api.attack(
            name,
            data=data,
            out=out,
            target=target,
            arch=arch,
            options=check_options(options),
            sizes=Sizes(train=images or -1, clean=clean_size or -1, flagged=flagged_size or -1),
            epochs=epochs,
            lr=lr,
            with_reference=with_reference,
            data_root=data_root,
            download=download,
            seed=seed,
            device=device,
        )
    click.echo(run.record.model_dump_json() if as_json else run_summary(run))
