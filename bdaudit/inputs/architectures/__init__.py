"""The networks that bdaudit can build by name, or recognise from the names and shapes of their weights."""

from bdaudit.inputs.architectures.family import Family, Option
from bdaudit.inputs.architectures.matching import Match, fit, match
from bdaudit.inputs.architectures.registry import (
    build,
    check_size,
    complete,
    find,
    fresh,
    from_user,
    known,
    parse,
)
from bdaudit.inputs.architectures.skeleton import untouched_rng

__all__ = [
    "Family",
    "Match",
    "Option",
    "build",
    "check_size",
    "complete",
    "find",
    "fit",
    "fresh",
    "from_user",
    "known",
    "match",
    "parse",
    "untouched_rng",
]
