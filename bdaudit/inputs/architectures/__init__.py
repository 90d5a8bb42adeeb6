"""The networks that bdaudit can build by name, or recognise from the names and shapes of their weights."""

from bdaudit.inputs.architectures.family import Family, Option
from bdaudit.inputs.architectures.matching import Match, fit, match
from bdaudit.inputs.architectures.registry import (
    build,
    complete,
    find,
    fresh,
    known,
    parse,
    untouched_rng,
)

__all__ = [
    "Family",
    "Match",
    "Option",
    "build",
    "complete",
    "find",
    "fit",
    "fresh",
    "known",
    "match",
    "parse",
    "untouched_rng",
]
