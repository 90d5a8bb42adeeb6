"""bdaudit bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bdaudit.cli.common import device_option, json_flag, quiet_option, uniform, warn_broken
from bdaudit.errors import UsageError, did_you_mean, one_line

SHOWN = ("terminal", "github", "latex", "csv", "html")
COMPARED = ("terminal", "github", "latex")


class Running(click.Group):
    """A group whose first argument may also be a grid, which is then run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            if (meant := did_you_mean(args[0], self.commands)) and not Path(args[0]).exists():
                raise click.UsageError(f"no grid and no command {one_line(args[0], 40)!r}{meant}", ctx)
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("bench", cls=Running)
def command() -> None:
    """Run a grid of attacks, defenses, probes, contamination, tuning sizes and seeds; show it as a table.

    \b
    bdaudit bench plan GRID.toml            what it comes to, before anything runs
    bdaudit bench GRID.toml --out DIR       run it; the same command goes on where it stopped
    bdaudit bench show DIR                  what was found; see `bench show --help`
    """


def _means(function: Any) -> Any:
    for decorator in (
        click.option("--workers", type=click.IntRange(1), help="Stages at a time.  [default: as many as cores or GPUs]"),
        click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of each worker."),
        device_option,
        quiet_option,
        click.option("--seed", type=click.IntRange(0, 2**62), help="One seed in place of the grid's own."),
    ):  # fmt: skip
        function = decorator(function)
    return function


@command.command("plan")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="A bench's folder: what is done there is not planned again."
)
@_means
@json_flag
def plan(
    grid: Path,
    out: Path | None,
    workers: int | None,
    threads: int,
    device: str,
    quiet: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Show the cells of GRID, the stages that they share, and about how long they take."""
    from bdaudit.bench.session import Means, forecast
    from bdaudit.cli.bench_tables import plan_json, plan_summary

    warn_broken()
    made = forecast(grid, out, Means(workers=workers, threads=threads, device=device, seed=seed))
    click.echo(plan_json(made) if as_json else plan_summary(made))


@command.command("run")
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write, or to go on with.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where stages are done: in processes here, or on a Ray cluster.",
)
@click.option("--address", help="Of the Ray cluster.  [default: RAY_ADDRESS, else one is started on this machine]")
@click.option("--limit", type=click.FloatRange(0, min_open=True), help="Seconds for each stage, at most.")
@click.option(
    "--retries", type=click.IntRange(0), default=2, show_default=True, help="Further tries after a worker was lost."
)
@_means
@json_flag
def run(
    grid: Path,
    out: Path,
    executor: Any,
    address: str | None,
    limit: float | None,
    retries: int,
    workers: int | None,
    threads: int,
    device: str,
    quiet: bool,
    seed: int | None,
    as_json: bool,
) -> int:
    """Run what is left of GRID; exit code 3 if anything failed."""
    from bdaudit.bench.session import Means, run_grid
    from bdaudit.cli.bench_tables import run_json, run_summary

    warn_broken()
    if executor == "ray" and workers is not None:
        raise UsageError("--workers is for --executor local: on Ray as many run as the cluster has cores or GPUs for")
    if executor == "local" and address is not None:
        raise UsageError("--address is for --executor ray")
    means = Means(executor, workers, threads, limit, retries, device, address, seed)
    tally, failures = run_grid(grid, out, means, show=not quiet)
    click.echo(run_json(tally, failures) if as_json else run_summary(tally, failures, out))
    return 3 if tally.failed else 0


@command.command("show")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(SHOWN), default="terminal", show_default=True, help="How to show it."
)
@click.option(
    "--rows", multiple=True, metavar="AXIS", help="An axis that runs down (repeatable).  [default: those that vary]"
)
@click.option("--columns", multiple=True, metavar="AXIS", help="An axis that runs across (repeatable).")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="[PROBE.][SUBJECT.]METRIC",
    help="A figure to show (repeatable): c_acc, retune.p_asr, qra.reference.p_asr, 'lmc.t_asr20[from the suspect]'.",
)
@click.option("--plain", is_flag=True, help="Figures alone, without intervals and deviations.")
@click.option("--out", type=click.Path(path_type=Path), help="Write to a file instead of stdout.")
@uniform
def show(
    folder: Path,
    form: Any,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    metrics: tuple[str, ...],
    plain: bool,
    out: Path | None,
) -> None:
    """Show what a bench has found: axes down and across, means over the others, the best defense in bold.

    \b
    bdaudit bench show DIR --columns attack --metric o_asr --metric retune.p_asr --format latex
    """
    from bdaudit.bench.opened import read_store
    from bdaudit.bench.page import render as page
    from bdaudit.bench.pivot import pivot
    from bdaudit.bench.show import render

    if plain and form in ("csv", "html"):
        raise UsageError(f"--plain is for the formats terminal, github and latex; {form} has it all apart already")
    with read_store(folder) as store:
        shown = pivot(store, down=rows, across=columns, metrics=metrics)
        text = (
            page(store, shown, folder, out.parent if out else folder)
            if form == "html"
            else render(shown, form, plain=plain)
        )
    _write(text, out)


@command.command("compare")
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(COMPARED), default="terminal", show_default=True, help="How to show it."
)
@click.option(
    "--metric", "metrics", multiple=True, metavar="[PROBE.][SUBJECT.]METRIC", help="A figure to compare (repeatable)."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to a file instead of stdout.")
@uniform
def compare(one: Path, other: Path, form: Any, metrics: tuple[str, ...], out: Path | None) -> None:
    """Hold bench B against bench A, cell by cell."""
    from bdaudit.bench.compare import compare as held_against
    from bdaudit.bench.opened import read_store
    from bdaudit.bench.show import lay_out

    with read_store(one) as a, read_store(other) as b:
        made = held_against(a, b, metrics)
    _write(lay_out(made.table, made.notes, form), out)


def _write(text: str, out: Path | None) -> None:
    from bdaudit.inputs.files import atomic_file

    if out is None:
        click.echo(text, nl=False)
        return
    with atomic_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
