"""Long training that goes on after an interruption, and ends as it would have without one.

A caller opens a folder of checkpoints around a run. Inside, each stage of training that can be resumed writes the
whole of its state there after an epoch: weights, optimisers, generators, and what its hooks remember. A run that is
started again does all over again but for those epochs: a stage reads its file and goes on behind it. Files are
safetensors, which nothing in them can run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bdaudit.errors import InputError, OutputError, UsageError, one_line
from bdaudit.inputs.files import atomic_file, read_small, visible
from bdaudit.training.progress import Advance, say, still

if TYPE_CHECKING:
    from bdaudit.training.loop import Training

IDENTITY = "checkpoints.json"
MAX_BYTES = 1 << 20
EVERY = 60.0
"""Seconds between two checkpoints of one stage, at least: those of a large network take a second to write."""


@dataclass
class _Folder:
    path: Path
    every: float
    stages: int = 0

    def next_stage(self) -> Path:
        self.stages += 1
        return self.path / f"stage-{self.stages:03d}.safetensors"


_open: ContextVar[_Folder | None] = ContextVar("bdaudit_checkpoints", default=None)


@contextmanager
def checkpoints(folder: Path | None, identity: Mapping[str, Any], *, every: float | None = None) -> Iterator[None]:
    """Keep checkpoints in a folder while the block runs, and go on from those in it; None: keep none.

    identity: all that decides the result, as JSON. UsageError where the folder holds those of another run; removed
    when the block ends well. every: seconds between two checkpoints of one stage, at least.
    """
    if folder is None:
        yield
        return
    _claim(folder, json.loads(json.dumps(identity)))
    token = _open.set(_Folder(folder, EVERY if every is None else every))
    try:
        yield
    finally:
        _open.reset(token)
    for path in [*folder.glob("stage-*.safetensors"), folder / IDENTITY]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def resumed(
    what: str,
    total: int,
    rng: torch.Generator,
    trainings: Mapping[str, Training],
    keep: dict[str, Tensor],
    advance: Advance = still,
) -> Iterator[int]:
    """Count a stage's epochs from where an earlier run came to, with its state put back in place.

    trainings: by name; the bar counts the first one's steps. keep: tensors that are remembered from epoch to epoch.
    """
    folder = _open.get()
    if folder is None:
        yield from range(total)
        return
    path = folder.next_stage()
    done = _restore(path, what, rng, trainings, keep) if path.is_file() else 0
    if done:
        say(f"{what}: going on after epoch {done} of {total}")
        advance(next(iter(trainings.values())).step)
    saved = time.monotonic()
    for epoch in range(done, total):
        yield epoch
        if epoch + 1 == total or time.monotonic() - saved >= folder.every:
            _save(path, what, epoch + 1, rng, trainings, keep)
            saved = time.monotonic()


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder ours: new, empty, or holding checkpoints of the same run."""
    path = folder / IDENTITY
    try:
        if not folder.exists() or not visible(folder):
            with atomic_file(path) as partial:
                partial.write_text(json.dumps(identity), encoding="utf-8")
        known = json.loads(read_small(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise OutputError(f"{one_line(folder)}: is no folder of checkpoints ({one_line(e, 80)})") from None
    changed = [k for k in identity if not isinstance(known, dict) or known.get(k) != identity[k]]
    if changed:
        raise UsageError(
            f"{one_line(folder)}: holds checkpoints of another run ({', '.join(changed)} differ); "
            "give another folder, or delete this one to begin again"
        )


def _save(
    path: Path,
    what: str,
    epoch: int,
    rng: torch.Generator,
    trainings: Mapping[str, Training],
    keep: Mapping[str, Tensor],
) -> None:
    tensors = {f"rng/{name}": state for name, state in _generators(rng).items()}
    tensors |= {f"keep/{name}": value for name, value in keep.items()}
    for name, training in trainings.items():
        tensors |= {f"model/{name}/{key}": value for key, value in training.model.state_dict().items()}
        for index, values in training.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    # Memory of its own for each: views of one storage cannot be written.
    owned = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    steps = {name: training.step for name, training in trainings.items()}
    with atomic_file(path) as partial:
        save_file(owned, partial, {"state": json.dumps({"what": what, "epoch": epoch, "steps": steps})})


def _restore(
    path: Path, what: str, rng: torch.Generator, trainings: Mapping[str, Training], keep: dict[str, Tensor]
) -> int:
    """Put a stage's state back in place; returns how many epochs it had behind it."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if state["what"] != what:
            raise ValueError(f"it is of {one_line(state['what'], 40)}")
        for name, training in trainings.items():
            training.model.load_state_dict(_part(tensors, f"model/{name}/"))
            training.model.eval()
            _restore_optimizer(training.optimizer, _part(tensors, f"optimizer/{name}/"))
            training.step = int(state["steps"][name])
        keep.clear()
        keep.update(_part(tensors, "keep/"))
        _restore_generators(rng, _part(tensors, "rng/"))
        return int(state["epoch"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise InputError(
            f"{one_line(path)}: is no checkpoint of {what} ({one_line(e, 120)}); delete its folder to begin again"
        ) from None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _generators(rng: torch.Generator) -> dict[str, Tensor]:
    """The states of the generator that is passed on, and of torch's own, which dropout draws from."""
    states = {"passed": rng.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_generators(rng: torch.Generator, states: Mapping[str, Tensor]) -> None:
    rng.set_state(states["passed"])
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[f"cuda{i}"] for i in range(torch.cuda.device_count())])
