"""Which code a result was computed by: a hash of a module and of all of ours that it imports, however far down."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import bdaudit

_ROOT = Path(bdaudit.__file__).parent
_IMPORT = re.compile(r"^\s*(?:from (bdaudit[\w.]*) import (\([^)]*\)|.*)|import (bdaudit[\w.]+))", re.MULTILINE)


@cache
def code_digest(*modules: str) -> str:
    """Hash the sources of these modules of bdaudit and of what they import from it (hex); nothing is imported for it.

    A change to a report's template or to another plugin leaves it as it is, one to the training loop does not.
    """
    total = hashlib.sha256()
    for module, path in sorted(_closure(modules).items()):
        total.update(module.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _closure(modules: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    ahead = list(modules)
    while ahead:
        module = ahead.pop()
        path = _file(module)
        if path is not None and module not in found:
            found[module] = path
            ahead += _imports(path)
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for source, imported, plain in _IMPORT.findall(path.read_text(encoding="utf-8", errors="replace")):
        names += [source or plain]
        names += [f"{source}.{name}" for name in re.findall(r"\w+", imported)]
    return tuple(names)


@cache
def _file(module: str) -> Path | None:
    """Find a module's file; None for a name that is a function or a class, and for bdaudit itself."""
    if module == "bdaudit":
        return None
    place = _ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (place.with_name(f"{place.name}.py"), place / "__init__.py") if p.is_file()), None)
