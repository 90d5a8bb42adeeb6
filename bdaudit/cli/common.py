"""What commands share: options, completion, defaults from bdaudit.toml. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bdaudit.errors import InputError, UsageError, did_you_mean, one_line

F = TypeVar("F", bound=Callable[..., Any])

CONFIG = "bdaudit.toml"
RECOMMENDED = "sep"
"""The defense where images are flagged: by docs/sep.md it withstands retuning nearly as the oracle does."""

# A file beside a suspect model came with the model: it may suggest numbers and names, but never decide where is
# read from or written to, nor how an audit or a screening is made.
PATH_OPTIONS = frozenset(
    {
        "out",
        "config",
        "attack",
        "clean",
        "malicious",
        "train",
        "purified",
        "reference",
        "policy",
        "data_root",
        "checkpoints",
    }
)
HARMLESS = frozenset({"seed", "device", "quiet", "json", "arch", "normalise"})


class PluginName(click.ParamType):  # type: ignore[type-arg] # generic only in recent versions
    """A plugin's name, completed from entry points without importing torch."""

    name = "name"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from bdaudit.plugins import names

        return [CompletionItem(n) for n in names(self.kind) if n.startswith(incomplete)]


class OptionPair(click.ParamType):  # type: ignore[type-arg]
    """`name=value`, completed with the chosen plugin's option names."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"expected name=value, got {one_line(value, 60)!r}", param, ctx)
        return key.strip(), text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from bdaudit.plugins import get

        kind = "attack" if ctx.info_name == "attack" else "defense"
        chosen = ctx.params.get("name") if kind == "attack" else ctx.params.get("defense") or ctx.params.get("by")
        try:
            fields = get(kind, chosen).model_fields if chosen else {}
        except UsageError:
            return []
        return [CompletionItem(f"{n}=") for n in fields if n.startswith(incomplete)]


class Configured(click.Command):
    """A command whose options may have defaults in a bdaudit.toml beside the model, or in --config."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        defaults = self._defaults(args)
        if defaults:
            extra["default_map"] = {**(extra.get("default_map") or {}), **defaults}
        return super().make_context(info_name, args, parent, **extra)

    def _defaults(self, args: list[str]) -> dict[str, Any]:
        explicit, positional = self._scan(args)
        if explicit is not None:
            return self._read(Path(explicit), trusted=True)
        if positional and any(p.name == "model" for p in self.params):
            beside = Path(positional[0]).parent / CONFIG
            if beside.is_file():
                return self._read(beside, trusted=False)
        return {}

    def _scan(self, args: list[str]) -> tuple[str | None, list[str]]:
        """Find --config's value and the arguments that are no option's value, before click parses the line."""
        flags = {o for p in self.params if isinstance(p, click.Option) and p.is_flag for o in p.opts}
        config, positional, rest = None, [], iter(args)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if not argument.startswith("-") or argument == "-":
                positional.append(argument)
            elif name not in flags:
                value = value if equals else next(rest, "")
                config = value if name == "--config" else config
        return config, positional

    def _read(self, path: Path, *, trusted: bool) -> dict[str, Any]:
        from bdaudit.inputs.toml import read_toml

        table = read_toml(path, one_line(path))
        own = table.get(self.name or "", {})
        if not isinstance(own, dict):
            raise InputError(f"{one_line(path)}: [{self.name}] must be a table of options")
        general = {k: v for k, v in table.items() if not isinstance(v, dict)}
        known = {o.lstrip("-").replace("-", "_"): p for p in self.params if isinstance(p, click.Option) for o in p.opts}
        chosen: dict[str, Any] = {}
        shown: list[str] = []
        for key, value in {**general, **own}.items():
            name = key.replace("-", "_")
            if name not in known:
                if key in own:
                    raise InputError(
                        f"{one_line(path)}: {self.name} has no option {one_line(key, 40)!r}{did_you_mean(name, known)}"
                    )
                continue  # meant for another command
            if not trusted and (name in PATH_OPTIONS or (self.name in ("audit", "screen") and name not in HARMLESS)):
                raise InputError(
                    f"{one_line(path)}: {one_line(key, 40)!r} is not for a file beside the model to set: it came with the "
                    "suspect; use --config"
                )
            value = _as_typed(value, known[name], f"{one_line(path)}: {one_line(key, 40)}")
            if not trusted and name == "arch" and ".py" in str(value):
                raise InputError(
                    f"{one_line(path)}: 'arch' names Python code, {one_line(value, 80)!r}: it came with the suspect and "
                    "nothing was run; type --arch yourself, or use --config"
                )
            chosen[str(known[name].name)] = value
            shown.append(f"{key} = {one_line(value, 80)}")
        if chosen:
            click.echo(f"defaults from {one_line(path)}: {', '.join(shown)}", err=True)
        return chosen


def _as_typed(value: object, option: click.Option, where: str) -> object:
    """Turn a TOML value into what would be typed on the command line; click then checks it as if it were."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{where}: expected true or false, got {one_line(value, 40)}")
        return value
    if isinstance(value, dict):
        value = [f"{k}={_word(v, where)}" for k, v in value.items()]
    if option.multiple:
        return [_word(v, where) for v in value] if isinstance(value, list) else [_word(value, where)]
    return _word(value, where)


def _word(value: object, where: str) -> str:
    word = value if isinstance(value, str) else one_line(value, 1001)
    # No argument of a command line can hold a null byte.
    if not isinstance(value, str | int | float) or len(word) > 1000 or "\0" in word:
        raise InputError(f"{where}: expected a number or a short text, got {one_line(value, 40)}")
    return word


seed_option = click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="The only source of randomness.")  # fmt: skip
device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute.")  # fmt: skip
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
config_option = click.option("--config", type=click.Path(path_type=Path), help="A TOML file with defaults for options.")


def common(function: F) -> F:
    """Add --seed, --device, --quiet and --config, which every computing command takes."""
    for decorator in (seed_option, device_option, quiet_option, config_option):
        function = decorator(function)
    return function


def uniform(function: F) -> F:
    """Accept --seed, --device and --quiet where nothing is computed, so that every command takes them."""
    for decorator in (
        click.option("--seed", type=click.IntRange(0), hidden=True, expose_value=False),
        click.option("--device", hidden=True, expose_value=False),
        click.option("--quiet", is_flag=True, hidden=True, expose_value=False),
    ):
        function = decorator(function)
    return function


def pools(malicious_required: bool = False) -> Callable[[F], F]:
    """Add --clean, --malicious and --target: what the defender holds."""
    path = click.Path(path_type=Path)

    def decorate(function: F) -> F:
        for decorator in (
            click.option("--target", type=click.IntRange(0), help="The target class, if known."),
            click.option("--malicious", type=path, required=malicious_required, help="Flagged images: a folder (flat or one sub-folder a true class), .npz or .csv."),
            click.option("--clean", type=path, help="Clean images: a folder (one sub-folder a class), .npz or .csv.  [default: clean/ beside the model]"),
        ):  # fmt: skip
            function = decorator(function)
        return function

    return decorate


def as_stored(function: F) -> F:
    """Add --arch and --normalise, for model files that do not say either."""
    for decorator in (
        click.option("--normalise", "normalisation", help="How pixels are normalised, where the file does not say: a dataset's name, [0,1] or [-1,1]."),
        click.option("--arch", help="Architecture, where it cannot be told from the file: resnet18:width=16, timm:NAME, or your own models.py:make_model, which is run."),
    ):  # fmt: skip
        function = decorator(function)
    return function


def plugin_options(whose: str) -> Callable[[F], F]:
    """Add -o."""
    words = f"Set an option of {whose}; see `plugins show`."
    return click.option("-o", "--option", "options", type=OptionPair(), multiple=True, help=words)


def model_inputs(function: F) -> F:
    """Add the inputs that purify and audit share."""
    path = click.Path(path_type=Path)
    for decorator in (
        plugin_options("a plugin"),
        as_stored,
        click.option(
            "--attack", "attack_run", type=path, help="A run folder: the trigger is then known (ORACLE for defenses)."
        ),
        click.option(
            "--screen",
            is_flag=True,
            help="Screen clean and flagged images against each other first; see `bdaudit screen`.",
        ),
        click.option("--train", type=path, help="The untrusted training set, for in-training defenses."),
        pools(),
    ):
        function = decorator(function)
    return function


def keeps_checkpoints(function: F) -> F:
    """Add --checkpoints."""
    return click.option(
        "--checkpoints",
        type=click.Path(path_type=Path),
        help="Keep checkpoints of long training in this folder, and go on from those in it.",
    )(function)


def json_flag(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(function)


def check_options(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Turn repeated -o pairs into a dictionary; the same name twice is a mistake."""
    result: dict[str, str] = {}
    for key, value in options:
        if key in result:
            raise UsageError(f"-o {one_line(key, 40)} is given twice")
        result[key] = value
    return result


def warn_broken() -> None:
    """Name the plugins that could not be used, one line each on stderr."""
    from bdaudit.plugins import registry

    for label, reason in registry().broken.items():
        click.echo(f"warning: plugin {label} was skipped: {reason}", err=True)
