"""Everything that a plugin may be given, made of real digits: enough to train on, little enough for seconds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from bdaudit.attacks.triggers import Trigger, patch
from bdaudit.flow.evidence import Evidence
from bdaudit.flow.provenance import weights_digest
from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor, known_backdoor
from bdaudit.runtime import generator

TARGET = 0


@dataclass(frozen=True)
class Materials:
    """Inputs for one run: what there is to know about a suspect, an untrained model, a purified one, clean rows."""

    evidence: Evidence
    fresh: Classifier
    purified: Classifier
    training: Pool

    def digests(self) -> dict[str, str]:
        """Hash every input, by the name it is asked for; models with their modes, which must not change either."""
        known = {**self.evidence.for_defense(generator(0)), **self.evidence.for_probe(self.purified, generator(0))}
        return {name: digest(value) for name, value in known.items() if digest(value)} | {
            "train": digest(self.evidence.train) + digest(self.training)
        }


class Offered(Mapping[str, Any]):
    """Inputs by name that remember which of them were taken."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.taken: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def materials() -> Materials:
    """Make a fresh set, equal to every other one."""
    return copy.deepcopy(_template())


def digest(value: object) -> str:
    """Hash a pool, a trigger, a model, several of them, or a backdoor; '' for what cannot be changed in place."""
    match value:
        case dict():
            return "".join(digest(part) for part in value.values())
        case Classifier():
            modes = [value.training, *(p.requires_grad for p in value.parameters())]
            return weights_digest(value) + str(modes)
        case Pool() | Trigger():
            return value.digest()
        case Backdoor():
            return value.reactivation.digest() + value.evaluation.digest()
    return ""


@cache
def _template() -> Materials:
    digits = load_dataset("digits")
    rows = digits.train.shuffled(generator(0))
    clean, training, benign, test, sources, _ = rows.split(96, 200, 96, 96, 24)
    goal = Goal(TARGET, len(digits.classes))
    trigger = patch(rows.shape, torch.full((3, 3), 255, dtype=torch.uint8), 13, 13)
    malicious = trigger.on(sources).labelled(TARGET)

    def model(seed: int) -> Classifier:
        spec = complete(parse("small_cnn:width=4"))
        return fresh(spec, digits.preprocessing, digits.classes, generator(seed)).eval()

    evidence = Evidence(
        suspect=model(0),
        goal=goal,
        clean=clean,
        malicious=malicious,
        train=Pool.concat([training, malicious]),
        trigger=trigger,
        benign=benign,
        test=test,
        backdoor=known_backdoor(trigger, goal, benign, test),
        reference=model(1),
        others={"another": model(4)},
    )
    return Materials(evidence, fresh=model(2), purified=model(3), training=training)
