"""Purifications and measurements that were made before, found by everything that they were made from.

An audit with other options for one probe needs neither its purification nor its other probes again. A key is made of what
was actually handed over (weights, images, trigger, the generator's state), the options, the code and torch's version.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bdaudit import plugins
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import Plugin
from bdaudit.defenses.base import Defense, Purified
from bdaudit.flow.code import code_digest
from bdaudit.flow.provenance import describe_model
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.files import atomic_file
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor, Probe
from bdaudit.report.schema import Measurement

Available = Mapping[str, Any]


class Memo:
    """A folder of earlier results; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: list[str] = []
        """Names of the plugins whose results were found here."""

    def purified(self, defense: Defense, available: Available, make: Callable[[], Purified]) -> Purified:
        """Take the purification from the folder, else make it and keep it."""
        given = available.get("model", available.get("fresh"))
        key = _key(defense, available)
        if key is None or not isinstance(given, Classifier):
            return make()
        path = self.folder / f"{key}.safetensors"
        if path.is_file():
            self.taken.append(defense.name)
            return _read(path, given)
        made = make()
        if _alike(made.model, given):  # else the weights alone would not bring it back
            with atomic_file(path) as partial:
                weights = {
                    n: t.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for n, t in made.model.body.state_dict().items()
                }
                save_file(weights, partial, {"found": _dump(made.found)})
        return made

    def measured(self, probe: Probe, available: Available, make: Callable[[], Measurement]) -> Measurement:
        """Take the measurement from the folder, else make it and keep it."""
        key = _key(probe, available)
        if key is None:
            return make()
        path = self.folder / f"{key}.json"
        if path.is_file():
            self.taken.append(probe.name)
            return _load(path.read_text(encoding="utf-8"))
        made = make()
        with atomic_file(path) as partial:
            partial.write_text(_dump(made), encoding="utf-8")
        return made


def plugin_identity(plugin: Plugin) -> dict[str, Any]:
    """Name a plugin with its options after defaults, and the code that it is."""
    origin = plugins.registry().found[plugin.kind, plugin.name].origin
    own = origin.distribution == plugins.BUILT_IN
    code = code_digest(origin.module) if own else f"{origin} {origin.sha256}"
    return {"kind": plugin.kind, "name": plugin.name, "options": plugin.model_dump(mode="json"), "code": code}


def digest(content: object) -> str:
    """Hash what JSON can hold (hex)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _key(plugin: Plugin, available: Available) -> str | None:
    """Hash all that decides a result; None where something is of a kind that cannot be told from its like."""
    try:
        inputs = {name: _content(available.get(name)) for name in plugin.wants()}
        return digest([plugin_identity(plugin), inputs, version("torch")])
    except (KeyError, TypeError):  # a plugin that is not installed, an input of an unknown type
        return None


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


def _alike(made: Classifier, given: Classifier) -> bool:
    """Whether one differs from the other in nothing but its weights."""
    shapes = [{name: (t.shape, t.dtype) for name, t in m.body.state_dict().items()} for m in (made, given)]
    known = made.arch is not None and made.arch == given.arch
    return known and shapes[0] == shapes[1] and made.preprocessing == given.preprocessing


def _read(path: Path, like: Classifier) -> Purified:
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        found = _load(file.metadata()["found"])
    model = like.clone()
    model.body.load_state_dict(weights)
    return Purified(model.eval().requires_grad_(True), found)


def _dump(found: Measurement) -> str:
    files = {name: base64.b64encode(data).decode() for name, data in found.artifacts.items()}
    return json.dumps({"measurement": found.model_dump(mode="json"), "artifacts": files})


def _load(text: str) -> Measurement:
    kept = json.loads(text)
    files = {name: base64.b64decode(data) for name, data in kept["artifacts"].items()}
    return Measurement.model_validate(kept["measurement"] | {"artifacts": files})
