"""What a call names, looked up: plugins with their options, other purified models, a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bdaudit import plugins
from bdaudit.defenses.base import Defense
from bdaudit.errors import InputError, UsageError, did_you_mean, first_mistake, one_line
from bdaudit.flow.suspect import PathLike
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.toml import read_toml
from bdaudit.probes.base import Probe
from bdaudit.report.schema import Policy

Others = Sequence[PathLike | Classifier | Defense] | Mapping[str, Defense]
"""Further purified models, or defenses that make some."""


def choose(
    defense: str | Defense | None, probes: Sequence[str | Probe], options: Mapping[str, Any] | None
) -> tuple[Defense | None, list[Probe]]:
    """Look plugins up and parse their options: `name` is the defense's, `probe.name` a probe's."""
    options = dict(options or {})
    prefixed = {k: v for k, v in options.items() if "." in k}
    plain = {k: v for k, v in options.items() if "." not in k}
    chosen: Defense | None = None
    if isinstance(defense, Defense):
        chosen = defense
    elif defense is not None:
        chosen = plugins.get("defense", defense).parse(plain)
    elif plain:
        raise UsageError(
            f"-o {next(iter(plain))}: there is no defense to set it on; probes' options are probe.name=value"
        )
    picked = []
    for probe in probes:
        if isinstance(probe, Probe):
            picked.append(probe)
            continue
        own = {k.partition(".")[2]: prefixed.pop(k) for k in list(prefixed) if k.partition(".")[0] == probe}
        picked.append(plugins.get("probe", probe).parse(own))
    if prefixed:
        raise UsageError(
            f"-o {one_line(next(iter(prefixed)), 60)}: no such probe in this audit ({', '.join(p.name for p in picked)})"
        )
    return chosen, picked


def told_apart(others: Others) -> tuple[list[PathLike | Classifier], dict[str, Defense]]:
    """Tell purified models from defenses that are to make some, these by what the report calls them.

    A name is a defense's unless there is a file of that name.
    """
    if isinstance(others, Mapping):
        return [], dict(others)
    models: list[PathLike | Classifier] = []
    defenses: dict[str, Defense] = {}
    for other in others:
        if isinstance(other, str) and not Path(other).exists():
            if other not in (names := plugins.names("defense")):
                close = did_you_mean(other, names)
                raise InputError(
                    f"--transfer-to {one_line(other, 160)}: no such file, and no defense of that name{close}"
                )
            other = plugins.get("defense", other).parse()
        if not isinstance(other, Defense):
            models.append(other)
            continue
        if other.name in defenses:
            raise UsageError(f"--transfer-to {other.name} is there twice")
        defenses[other.name] = other
    return models, defenses


def load_policy(policy: Policy | PathLike | None) -> Policy:
    """Read a policy file (TOML), or take the defaults."""
    if policy is None or isinstance(policy, Policy):
        return policy or Policy()
    try:
        return Policy.model_validate(read_toml(policy, f"--policy {one_line(policy)}"))
    except ValidationError as e:
        known = ", ".join(Policy.model_fields)
        raise InputError(f"--policy {one_line(policy)}: {first_mistake(e)} (known: {known})") from None
