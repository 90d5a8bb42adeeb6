"""What a purification costs grows with the tuning images, and not faster."""

from __future__ import annotations

import pytest
import torch
from support import make_tiny

from bdaudit.inputs.pool import Pool
from bdaudit.plugins import get
from bdaudit.runtime import generator


def cost(defense: str, digits: Pool, size: int) -> int:
    """Images through the network in one epoch on so many tuning images."""
    clean = Pool.concat([digits] * (1 + size // len(digits))).first(size)
    flagged = digits.first(64).labelled(0)
    seen = 0
    # Models are copied before they are purified: count wherever a network's first layer runs.
    usual = torch.nn.Conv2d.forward

    def counting(layer: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(images) if layer.in_channels == 1 else 0
        return usual(layer, images)

    chosen = get("defense", defense).parse({"epochs": 1})
    torch.nn.Conv2d.forward = counting  # type: ignore[method-assign,assignment]
    try:
        chosen.run(
            {
                "model": make_tiny("small_cnn:width=1"),
                "clean": clean,
                "malicious": flagged,
                "target": 0,
                "rng": generator(0),
            }
        )
    finally:
        torch.nn.Conv2d.forward = usual  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("defense", ["ft", "pl"])
def test_the_cost_of_a_purification_is_linear_in_the_tuning_images(defense: str, digits: Pool) -> None:
    """1, 2, 4 and 8 thousand images: twice the images are twice the passes."""
    passes = [cost(defense, digits, 1000 * n) for n in (1, 2, 4, 8)]
    assert passes[0] >= 1000
    assert all(n * passes[0] * 0.98 <= p <= n * passes[0] * 1.02 for n, p in zip((1, 2, 4, 8), passes, strict=True))
