"""A training set divided by whoever trained on it: rows taken for clean, rows flagged, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bdaudit.errors import PluginError


@dataclass(frozen=True)
class Division:
    """Which rows of a training set are taken for clean and which are flagged; all tensors (N, ...), on the CPU.

    clean, flagged: bool, disjoint; rows in neither are unsure. scores: by name, a number a row, large where it looks
    clean; the first ones decided. target: the class that flagged rows are labelled with, None for several. history: by
    epoch, the rows whose labels were learnt (bool). doubt: why this should not be relied on, '' if it may be.
    """

    clean: Tensor
    flagged: Tensor
    scores: Mapping[str, Tensor]
    target: int | None = None
    history: Mapping[int, Tensor] = field(default_factory=dict)
    doubt: str = ""

    def __post_init__(self) -> None:
        if (self.clean & self.flagged).any():
            raise PluginError(f"{int((self.clean & self.flagged).sum())} rows are taken for clean and flagged as well")
