"""Find the compiled kernels, load them at first use, and say what runs.

No kernels (a source tree that was never built): the torch references run instead. Kernels that are there
but do not load, or that belong to another version of this source: BackendError, never a silent fallback.
"""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn, TypedDict

import torch

from bdaudit.errors import BackendError, one_line

NAME = "bdaudit.ops._csrc"
# The same number stands in csrc/bindings.cpp.
ABI = 2

Implementation = Literal["extension", "reference"]


class Backend(TypedDict):
    """What runs the operators, as `bdaudit doctor` shows it."""

    cpu: Implementation
    cuda: Implementation
    path: str | None
    note: str
    threads: int
    isa: str
    cpu_features: dict[str, bool]
    cuda_built: bool
    cuda_architectures: str


@functools.cache
def load() -> ModuleType | None:
    """Load the compiled kernels; None where there are none, BackendError where they are broken."""
    spec = importlib.util.find_spec(NAME)
    if spec is None:
        return None
    try:
        module = importlib.import_module(NAME)
    except Exception as error:  # An import may fail in any way; each means the same here.
        _broken(spec.origin, f"does not load ({one_line(error)})")
    if (abi := getattr(module, "abi", None)) != ABI:
        _broken(spec.origin, f"has interface {abi}, expected {ABI}")
    return module


def _broken(path: object, why: str) -> NoReturn:
    raise BackendError(
        f"the compiled extension {path} {why}; rebuild it by reinstalling bdaudit, "
        "or delete that file to run on plain torch"
    )


def call(kernel: str, *arguments: Any) -> None:
    """Run a kernel of the loaded extension; its failure is a BackendError."""
    try:
        getattr(load(), kernel)(*arguments)
    except RuntimeError as error:
        raise BackendError(f"{kernel} failed: {one_line(error)}") from error


def has_cuda() -> bool:
    """Tell whether the extension is there with its CUDA kernels."""
    module = load()
    return module is not None and bool(module.cuda_built)


def backend() -> Backend:
    """Say which implementation runs, and what it found.

    `cpu` and `cuda` name what runs on either device: the extension's kernels or the torch reference. `isa`
    is the instruction set that the CPU kernels chose, `note` explains an absent extension. Raises
    BackendError where the extension is present but broken.
    """
    module = load()
    others = sorted(path.name for path in Path(__file__).parent.glob("_csrc*.so"))
    if module is not None:
        note = ""
    elif others:
        note = f"built for another Python only: {', '.join(others)}"
    else:
        note = "the extension is not built; pip install bdaudit builds it"
    return {
        "cpu": "extension" if module else "reference",
        "cuda": "extension" if has_cuda() else "reference",
        "path": module.__file__ if module else None,
        "note": note,
        "threads": torch.get_num_threads(),
        "isa": module.isas[module.best_isa()] if module else "",
        "cpu_features": module.cpu_features() if module else {},
        "cuda_built": bool(module and module.cuda_built),
        "cuda_architectures": module.cuda_architectures if module else "",
    }
