"""bdaudit report."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import uniform
from bdaudit.report.formats import FORMATS, Format


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="How to show it.")
@click.option(
    "--compare",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Show another report beside FILE, with the differences (repeatable); not for junit and json.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to a file instead of stdout.")
@uniform
def command(file: Path, form: Format, others: tuple[Path, ...], out: Path | None) -> int:
    """Show the report FILE (report.json); ends with the exit code of its own verdict, whatever it is compared with."""
    from bdaudit.errors import OutputError, one_line
    from bdaudit.inputs.files import atomic_file, check_writable
    from bdaudit.report.render import render, render_side_by_side
    from bdaudit.report.schema import read_report

    reports = [(str(path), read_report(path)) for path in (file, *others)]
    if out is not None:
        check_writable(out)
        if out.resolve() in [path.resolve() for path in (file, *others)]:
            raise OutputError(f"--out {one_line(out)}: would replace the report itself; give another name")
    report = reports[0][1]
    text = render_side_by_side(reports, form) if others else render(report, form)
    if out is None:
        click.echo(text, nl=False)
    else:
        with atomic_file(out) as partial:
            partial.write_text(text, encoding="utf-8")
    return int(report.exit_code)
