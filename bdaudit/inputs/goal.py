"""What the backdoor is meant to do to labels, and which images may count in its success rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.errors import UsageError


@dataclass(frozen=True)
class Goal:
    """Map true labels to the labels that the attacker wants.

    target: the one target class (all-to-one), or None for all-to-all, y -> (y + 1) mod K
    (BadNets, Gu et al. 2017, section 4).
    """

    target: int | None
    num_classes: int

    def __post_init__(self) -> None:
        if self.target is not None and not 0 <= self.target < self.num_classes:
            raise UsageError(f"target {self.target} is out of range: the model has classes 0..{self.num_classes - 1}")

    def wanted(self, labels: Tensor) -> Tensor:
        """Return the attacker's label for each true label (int64, same shape)."""
        if self.target is None:
            return (labels + 1) % self.num_classes
        return torch.full_like(labels, self.target)

    def counted(self, labels: Tensor) -> Tensor:
        """Mark the images that may count in ASR: never those that belong to the target class anyway."""
        return labels != self.wanted(labels)

    def __str__(self) -> str:
        return "all-to-all" if self.target is None else f"all-to-one, target {self.target}"
