"""The entry point: commands are imported when they are called, errors become one line and an exit code."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from bdaudit import __version__
from bdaudit.errors import BdauditError, UnusedFiles, did_you_mean, one_line

COMMANDS = {
    "demo": "Backdoor a small model on real data, purify it, audit it.",
    "attack": "Train a backdoored model and lay out what an auditor would receive.",
    "screen": "Find triggered images among the clean ones, and clean ones among the flagged.",
    "split": "Split an untrusted training set into clean and flagged images.",
    "purify": "Purify a suspect model.",
    "audit": "Purify, retune, query, report: is the purification real?",
    "bench": "Run a grid of attacks, defenses and probes, and show it as a table.",
    "import": "Lay out what another tool left (BackdoorBench) for an audit.",
    "report": "Show a report file as text, HTML, Markdown or JUnit.",
    "plugins": "List attacks, defenses, probes and importers, show their options, check them.",
    "doctor": "Say what runs here: versions, extension, threads, GPU, paths.",
}


class Lazy(click.Group):
    """A group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"bdaudit.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {one_line(args[0], 40)!r}{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bdaudit")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(debug: bool) -> None:
    """Purify a backdoored image classifier, then find out whether the purification is real.

    Exit codes: 0 pass, 1 the policy failed, 2 wrong usage or unusable input, 3 operational error,
    4 inconclusive.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    # SIGTERM and SIGINT alike unwind the stack, so that nothing half-written stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    # Accepted anywhere on the line: it is typed after something has gone wrong.
    sys.exit(_run([a for a in arguments if a != "--debug"], debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        with _plain_warnings():
            code: Any = cli.main(arguments, prog_name="bdaudit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BdauditError as e:
        if debug:
            raise
        return _fail(one_line(e, 1000), e.exit_code)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.message, err=True)
        return 2
    except click.UsageError as e:
        hint = f" (see: {e.ctx.command_path} --help)" if e.ctx else ""
        return _fail(one_line(e.format_message(), 600) + hint, 2)
    except click.ClickException as e:
        return _fail(one_line(e.format_message(), 600), 2)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was left half-written", 3)
    except BrokenPipeError:
        return 3
    except Exception as e:
        if debug:
            raise
        return _fail(f"unexpected {type(e).__name__}: {one_line(e, 300)} (run with --debug for the traceback)", 3)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print each warning of files that are not used as one line, once: a folder may be read more than once."""
    said: set[str] = set()
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, UnusedFiles):
            usual(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            click.echo(f"warning: {one_line(message, 2000)}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnusedFiles)
        warnings.showwarning = show
        yield


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {message}", err=True)
    return code
