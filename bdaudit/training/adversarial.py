"""What defenses that unlearn adversarial images share."""

from __future__ import annotations

import torch
from torch import Tensor


def away_from(logits: Tensor, classes: Tensor) -> Tensor:
    """Return -log(1 - p_k) of each image (N,), k its entry of `classes` (N,), without cancelling where p_k is near one."""
    others = logits.scatter(1, classes[:, None], float("-inf"))
    return torch.logsumexp(logits, 1) - torch.logsumexp(others, 1)
