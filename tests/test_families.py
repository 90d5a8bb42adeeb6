"""Every defense on a tiny member of every architecture family: it purifies, or refuses in one line before any work."""

from __future__ import annotations

import pytest
import torch
from families import COLOUR, FAMILIES, TRANSFORMERS, member

from bdaudit import plugins
from bdaudit.attacks.triggers import patch
from bdaudit.defenses.base import Defense
from bdaudit.errors import UsageError
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.metrics import predict_logits

MASKS = r"^{} masks the channels of BatchNorm layers, and \w+ has none"
REFUSES = {
    **dict.fromkeys(("anp", "clp", "nft", "rnp"), MASKS),
    "npd": r"^npd stands behind a convolution with a BatchNorm, and finds none",
}
"""What is said of transformers by defenses that have no place in them."""
FOR_FRESH = ("resnet18", "preactresnet18", "vit_b_16")
"""For defenses that are given an untrained network: what they do to it depends less on what it is."""
CASES = [
    pytest.param(found.cls, family, id=f"{found.cls.name}-{family}")
    for found in plugins.registry().of_kind("defense").values()
    for family in (FOR_FRESH if "fresh" in found.cls.wants() else FAMILIES)
]
SMALLER = {"batch_size": 8, "images": 4, "reverse_images": 16}
"""Where a defense has such an option, on top of its quick ones."""


@pytest.mark.parametrize(("cls", "family"), CASES)
def test_it_purifies_or_refuses(cls: type[Defense], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back has the weights' names, is in eval mode and answers with finite numbers."""
    images = torch.randint(0, 256, (48, *COLOUR.shape), dtype=torch.uint8, generator=generator(1))
    pool = Pool(images, torch.arange(48) % 10, tuple(f"image {i}" for i in range(48)))
    model = member(family)
    inputs = {
        "model": model,
        "fresh": member(family),
        "clean": pool.first(24),
        "train": pool,
        "malicious": pool.take(range(24, 32)).labelled(0),
        "target": 0,
        "trigger": patch(COLOUR.shape, torch.full((3, 3), 255, dtype=torch.uint8), 29, 29),
        "rng": generator(0),
    }
    defense = cls.parse({**cls.quick_options, **{k: v for k, v in SMALLER.items() if k in cls.model_fields}})
    if family in TRANSFORMERS and cls.name in REFUSES:
        monkeypatch.setattr(cls, "purify", lambda *args, **kwargs: pytest.fail("it went to work"))
        with pytest.raises(UsageError, match=REFUSES[cls.name].format(cls.name)):
            defense.run(inputs)
        return
    result = defense.run(inputs)
    assert not result.training
    assert predict_logits(result, images).isfinite().all()
    if cls.name != "npd":  # which puts a layer of its own into the network
        assert list(result.state_dict()) == list(model.state_dict())
