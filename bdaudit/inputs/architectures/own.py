"""The user's own networks: a function in a Python file that the user names, as in `models.py:make_model`.

Running that file is the user's explicit act. `load` does it, and is called with what the user typed and with
nothing that was read from a file; `family` knows only what `load` has run before.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bdaudit.errors import UsageError, one_line
from bdaudit.inputs.architectures.family import Family, Option
from bdaudit.inputs.classifier import last_linear

NAMED = re.compile(r"\.py(:|$)")
"""What tells a Python file from an architecture's name."""

_FORM = "expected FILE.py:FUNCTION or FILE.py:FUNCTION:option=number"
_READ_OFF = ("num_classes", "channels")
_ANY = Option(None, 0, 10**9)
_loaded: dict[str, Family] = {}


def load(text: str) -> tuple[str, str]:
    """Run the file that `path/to/models.py:make_model:width=16` names and remember its function.

    Returns the name that `family` knows it by, and the options as they were typed. A file is run once, and again
    when it was changed. Raises UsageError in one line for whatever goes wrong in it.
    """
    file, _, rest = text.partition(".py:")
    function, _, options = rest.partition(":")
    if not function.isidentifier():
        raise UsageError(f"--arch {one_line(text, 160)}: {_FORM}")
    path = Path(f"{file}.py")
    try:
        path = path.resolve()
        if not path.is_file():
            raise UsageError(f"--arch {one_line(path, 200)}: no such file")
        source = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as e:  # a loop of links, a name that no file can have
        raise UsageError(f"--arch {one_line(path, 200)}: cannot be read ({one_line(e, 100)})") from None
    name, digest = f"{path}:{function}", hashlib.sha256(source).hexdigest()
    if name not in _loaded or _loaded[name].source != _noted(digest):
        _loaded[name] = _family(name, path, _function(path, source, digest, function), digest)
    return name, options


def family(name: str) -> Family:
    """Look up a function that `load` has found; one that it has not is never run."""
    if name not in _loaded:
        raise UsageError(
            f"'{one_line(name, 60)}' is Python code, which only you may name: --arch FILE.py:FUNCTION with a file that you trust"
        )
    return _loaded[name]


class _Read(SourceLoader):
    """Load what was read and hashed; never the bytecode that may lie beside a file."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path, self.source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        if path != str(self.path):
            raise FileNotFoundError(path)
        return self.source


@contextmanager
def _users_code(path: Path, doing: str) -> Iterator[None]:
    """Run code of the user's: what it prints goes to stderr, what it raises becomes one line."""
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    folder = str(path.parent)
    if beside := folder not in sys.path:
        sys.path.append(folder)  # last, so that what lies beside the file replaces nothing installed
    try:
        with redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except (Exception, SystemExit) as e:
        raise UsageError(f"{one_line(path, 160)}: {doing}: {_explained(e, path)}") from e
    finally:
        sys.dont_write_bytecode = bytecode
        if beside and folder in sys.path:
            sys.path.remove(folder)


def _explained(error: BaseException, path: Path) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    at = f" in line {line}" if line else ""
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}{at}: {one_line(text, 200)}"


def _function(path: Path, source: bytes, digest: str, function: str) -> Callable[..., Any]:
    module = _run(path, source, f"bdaudit_arch_{digest[:16]}")
    found = getattr(module, function, None)
    if found is None:
        callables = [
            n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        there = ", ".join(one_line(n, 40) for n in callables[:8]) or "none"
        raise UsageError(f"{one_line(path, 160)}: has no function {one_line(function, 60)} (it has: {there})")
    if not callable(found):
        raise UsageError(f"{one_line(path, 160)}: {function} is of type {type(found).__name__}, expected a function")
    return found  # type: ignore[no-any-return]  # callable, and what it returns is checked


def _run(path: Path, source: bytes, name: str) -> ModuleType:
    loader = _Read(path, source)
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look there
    try:
        with _users_code(path, "cannot be run"):
            loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _family(name: str, path: Path, function: Callable[..., Any], digest: str) -> Family:
    try:
        signature = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UsageError(f"{one_line(path, 160)}: the arguments of {_short(name)} cannot be told") from None
    named = {n: p for n, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    anything = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    needed = [n for n, p in named.items() if p.default is p.empty and n not in _READ_OFF]
    # Functions that pass **kwargs on, as torchvision's do, know the number of classes and not that of channels.
    accepted = {n for n in _READ_OFF if n in named or (anything and n == "num_classes")}
    return Family(
        name=name,
        make=partial(_make, name, path, function, frozenset(accepted), tuple(needed)),
        size=32,
        options={n: _ANY for n in named if n not in _READ_OFF},
        any_option=_ANY if anything else None,
        weightless=False,
        source=_noted(digest),
    )


def _make(
    name: str,
    path: Path,
    function: Callable[..., Any],
    accepted: frozenset[str],
    needed: tuple[str, ...],
    *,
    num_classes: int,
    channels: int,
    **options: int,
) -> nn.Module:
    missing = [n for n in needed if n not in options]
    if missing:
        raise UsageError(f"{_short(name)} needs {missing[0]}: give --arch {_short(name)}:{missing[0]}=N")
    read_off: Mapping[str, int] = {"num_classes": num_classes, "channels": channels}
    with _users_code(path, f"{name.rpartition(':')[2]} failed"):
        body = function(**{n: v for n, v in read_off.items() if n in accepted}, **options)
        _check(body, _short(name), num_classes if "num_classes" in accepted else None)
        # A copy, since a function may hand out one module again and again, and each model is changed in place.
        copied: nn.Module = copy.deepcopy(body)
        return copied.to("cpu", torch.float32)


def _check(body: nn.Module, name: str, num_classes: int | None) -> None:
    """Make sure that a function returned a network with a head for so many classes, where it was told how many."""
    if not isinstance(body, nn.Module):
        raise UsageError(f"{name} returned an object of type {type(body).__name__}, expected a torch.nn.Module")
    if any(is_lazy(p) for p in body.parameters()):
        raise UsageError(f"{name} has lazy layers, whose shapes are not known yet: give them sizes")
    try:
        layer, head = last_linear(body)
    except UsageError as e:
        raise UsageError(f"{name}: {e}") from None
    if num_classes not in (None, head.out_features):
        raise UsageError(
            f"{name}: its last linear layer, {layer}, has {head.out_features} outputs for {num_classes} classes; "
            "the layer that gives the logits must be the last one that is registered"
        )


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _noted(digest: str) -> str:
    return f"a Python file with sha256 {digest}"
