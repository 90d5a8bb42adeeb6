"""What decides a result: a plugin with its options and its code, and everything that it is handed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bdaudit import plugins
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import Plugin
from bdaudit.errors import UsageError
from bdaudit.flow.code import code_digest
from bdaudit.flow.provenance import describe_model
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.files import sha256
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor
from bdaudit.runtime import Runtime
from bdaudit.training.resume import checkpoints


def digest(content: object) -> str:
    """Hash what JSON can hold (hex)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def plugin_identity(plugin: Plugin) -> dict[str, Any]:
    """Name a plugin with its options after defaults, and the code that it is."""
    origin = plugins.registry().found[plugin.kind, plugin.name].origin
    own = origin.distribution == plugins.BUILT_IN
    code = code_digest(origin.module) if own else f"{origin} {origin.sha256}"
    read = {name: content_digest(path) for name, path in plugin.reads().items()}
    named = {"kind": plugin.kind, "name": plugin.name, "options": plugin.model_dump(mode="json"), "code": code}
    return named | ({"files": read} if read else {})


def content_digest(path: Path, pattern: str = "**/*") -> str:
    """Hash a file, or the names and contents of a folder's files (hex); '' where nothing is: its reader says so."""
    if path.is_file():
        return sha256(path)
    files = sorted(p for p in path.glob(pattern) if p.is_file())
    return digest([[p.relative_to(path).as_posix(), sha256(p)] for p in files]) if files else ""


def identity(plugin: Plugin, available: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a plugin makes of its inputs, as JSON: a key for each of them, and those of the plugin.

    Raises UsageError where one thing cannot be told from another: a plugin that is not installed, an unknown input.
    """
    try:
        inputs = {name: _content(available.get(name)) for name in plugin.wants()}
        return {**plugin_identity(plugin), "torch": version("torch"), **inputs}
    except KeyError:
        raise UsageError(f"{plugin.name} is not installed, so that a change of its code would go unseen") from None
    except TypeError as e:
        raise UsageError(f"{plugin.name} is given what cannot be told from its like ({e})") from None


def resumable(
    folder: Path | None, what: str, plugin: Plugin, inputs: Mapping[str, Any], seed: int, device: torch.device
) -> AbstractContextManager[None]:
    """Keep checkpoints of a plugin's run in a folder, and go on from those of the same run alone; None: keep none."""
    known: dict[str, Any] = {}
    if folder is not None:
        bits = {"device": Runtime.of(device).describe(), "threads": torch.get_num_threads()}
        known = {"run": what, "seed": seed, **identity(plugin, inputs), **bits}
    return checkpoints(folder, known)


def _content(value: object) -> object:
    match value:
        case Classifier():
            return [describe_model(value), str(value.preprocessing), list(value.classes), value.device.type]
        case Pool():
            return value.digest()
        case Trigger():
            return [value.kind, value.digest()]
        case Goal():
            return str(value)
        case torch.Generator():
            return hashlib.sha256(value.get_state().numpy().tobytes()).hexdigest()
        case Backdoor():
            images = [value.reactivation.digest(), value.evaluation.digest()]
            return [str(value.goal), value.source, value.attack, *images, _content(dict(value.nulls))]
        case dict():
            return {name: _content(inner) for name, inner in value.items()}
        case None | bool() | int() | str():
            return value
    raise TypeError(type(value).__name__)
