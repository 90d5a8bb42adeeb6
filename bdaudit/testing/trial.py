"""Run a plugin once, the way the flow runs it, and write down all it did."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bdaudit.attacks.base import Attack, Implanted
from bdaudit.contract import Plugin
from bdaudit.defenses.base import Defense
from bdaudit.flow.provenance import weights_digest
from bdaudit.inputs.classifier import Classifier
from bdaudit.probes.base import Probe
from bdaudit.report.schema import Measurement
from bdaudit.runtime import generator
from bdaudit.testing.materials import TARGET, Materials, Offered, materials
from bdaudit.testing.watch import global_seed, watched
from bdaudit.training.loop import Recipe


@dataclass(frozen=True)
class Trial:
    """What one run did.

    result: None where it raised `error`. taken: inputs it took. changed: inputs that it left different.
    moved: global random generators that it advanced. network, files: what it reached for.
    """

    given: Materials
    result: Any
    error: BaseException | None
    taken: frozenset[str]
    changed: tuple[str, ...]
    moved: tuple[str, ...]
    network: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def blocked(self) -> bool:
        """Whether it was stopped for reaching where it may not."""
        return self.result is None and bool(self.network or self.files)

    def same_as(self, other: Trial) -> bool:
        """Whether both came to a result, and to the same one bit for bit."""
        finished = self.result is not None and other.result is not None
        return finished and _bits(self.result) == _bits(other.result)


def offered(kind: str, given: Materials, rng: torch.Generator) -> dict[str, Any]:
    """List what a kind of plugin is given where everything is there, exactly as the flow does."""
    if kind == "attack":
        train = given.training
        return {"shape": train.shape, "train": train, "target": TARGET, "fresh": given.fresh, "rng": rng}
    if kind == "defense":
        return given.evidence.for_defense(rng) | {"fresh": given.fresh}
    return given.evidence.for_probe(given.purified, rng)


def attempt(plugin: Plugin, *, global_state: int = 0, without: str = "") -> Trial:
    """Run a plugin once on inputs of its own, with seed 0; without: leave one input out."""
    given = materials()
    before = given.digests()
    inputs = Offered({n: v for n, v in offered(plugin.kind, given, generator(0)).items() if n != without})
    result, error = None, None
    with global_seed(global_state) as moved, watched() as watch:
        try:
            result = _RUN[plugin.kind](plugin, inputs, given)
        except (Exception, SystemExit) as e:
            error = e
    after = given.digests()
    return Trial(
        given=given,
        result=result,
        error=error,
        taken=frozenset(inputs.taken),
        changed=tuple(name for name in before if before[name] != after[name]),
        moved=tuple(moved),
        network=tuple(dict.fromkeys(watch.network)),
        files=tuple(dict.fromkeys(watch.files)),
    )


def _attack(plugin: Attack, inputs: Mapping[str, Any], given: Materials) -> Implanted:
    plugin.make_trigger(**plugin.grant(inputs))
    recipe = Recipe(epochs=1, lr=0.1, batch_size=32)
    return plugin.implant(given.fresh.clone(), given.training, TARGET, recipe, generator(0))


def _defense(plugin: Defense, inputs: Mapping[str, Any], given: Materials) -> Classifier:
    return plugin.run(inputs)


def _probe(plugin: Probe, inputs: Mapping[str, Any], given: Materials) -> Measurement:
    return plugin.run(inputs)


_RUN: dict[str, Callable[..., Any]] = {"attack": _attack, "defense": _defense, "probe": _probe}


def _bits(result: Classifier | Implanted | Measurement) -> str:
    if isinstance(result, Classifier):
        return weights_digest(result)
    if isinstance(result, Measurement):
        return hashlib.sha256(result.model_dump_json().encode()).hexdigest()
    rows = result.poisoned
    masks = hashlib.sha256(torch.stack([rows.poisoned, rows.cover]).numpy().tobytes()).hexdigest()
    parts = (result.trigger, result.train_trigger, rows.pool)
    return " ".join([weights_digest(result.model), masks, *(p.digest() for p in parts)])
