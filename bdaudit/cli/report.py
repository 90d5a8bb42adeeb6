"""bdaudit report."""

from __future__ import annotations

from pathlib import Path

import click

from bdaudit.cli.common import uniform


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "html", "markdown", "junit", "json"]),
    default="text",
    show_default=True,
    help="How to show it.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to a file instead of stdout.")
@uniform
def command(file: Path, form: str, out: Path | None) -> int:
    """Show the report FILE (report.json); ends with the report's own exit code."""
    from typing import cast

    from bdaudit.errors import OutputError, one_line
    from bdaudit.inputs.files import atomic_file, check_writable
    from bdaudit.report.render import Format, render
    from bdaudit.report.schema import read_report

    report = read_report(file)
    if out is not None:
        check_writable(out)
        if out.resolve() == file.resolve():
            raise OutputError(f"--out {one_line(out)}: would replace the report itself; give another name")
    text = render(report, cast(Format, form))
    if out is None:
        click.echo(text, nl=False)
    else:
        with atomic_file(out) as partial:
            partial.write_text(text, encoding="utf-8")
    return int(report.exit_code)
