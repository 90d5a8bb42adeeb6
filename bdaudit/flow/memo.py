"""Purifications and measurements that were made before, found by everything that they were made from.

An audit with other options for one probe needs neither its purification nor its other probes again. A key is made of
what was actually handed over (weights, images, trigger, the generator's state), the options, the code and torch's
version.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bdaudit.contract import Plugin
from bdaudit.defenses.base import Defense, Purified
from bdaudit.errors import UsageError
from bdaudit.flow.identity import digest, identity
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.files import atomic_file
from bdaudit.probes.base import Probe
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


def _key(plugin: Plugin, available: Available) -> str | None:
    """Hash all that decides a result; None where something cannot be told from its like."""
    try:
        return digest(identity(plugin, available))
    except UsageError:
        return None


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
