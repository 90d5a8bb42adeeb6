"""BppAttack: the levels, the dithering, the negative rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import make_tiny

from bdaudit.attacks.bpp import Bpp, QuantizeTrigger, dither
from bdaudit.attacks.triggers import KINDS, load_trigger, save_trigger
from bdaudit.errors import ImageError
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator

IMAGES = torch.randint(0, 256, (7, 3, 9, 14), dtype=torch.uint8, generator=generator(0))
RAMP = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("bits", range(1, 8))
def test_an_image_keeps_two_to_the_bits_levels_each_the_nearest(bits: int) -> None:
    """x' = round(x (L - 1) / 255) 255 / (L - 1)."""
    steps = 2**bits - 1
    plain = QuantizeTrigger(bits, dithering=False)(RAMP)
    assert len(plain.unique()) == 2**bits
    assert (plain - RAMP.float()).abs().max() <= 255 / steps / 2 + 0.5
    assert set(QuantizeTrigger(bits, dithering=True)(IMAGES).unique().tolist()) <= set(plain.unique().tolist())
    assert len(QuantizeTrigger(bits, dithering=True)(IMAGES).unique()) == 2**bits


def floyd_steinberg(plane: torch.Tensor, steps: int) -> torch.Tensor:
    """Dither one plane (H, W) pixel by pixel, as the textbook does."""
    height, width = plane.shape
    values = torch.zeros(height + 1, width + 2, dtype=torch.float64)
    values[:-1, 1:-1] = plane.double()
    for y in range(height):
        for x in range(1, width + 1):
            old = values[y, x].item()
            new = min(max(int(old * steps / 255 + 0.5), 0), steps) * 255 / steps
            values[y, x] = new
            for dy, dx, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                values[y + dy, x + dx] += (old - new) * share / 16
    return values[:-1, 1:-1].round()


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_errors_are_spread_as_floyd_and_steinberg_do(steps: int) -> None:
    """7/16 to the right, 3/16, 5/16 and 1/16 below, over the whole picture one pixel after another."""
    for image, dithered in zip(IMAGES, dither(IMAGES, steps), strict=True):
        expected = torch.stack([floyd_steinberg(plane, steps) for plane in image])
        # Errors are whole parts of 4,096, so that a value in the middle of two levels may go to the other one.
        assert (dithered != expected).float().mean() < 0.01


def test_dithering_keeps_the_mean_level_where_rounding_does_not() -> None:
    """Of a flat image between two levels: errors are handed on, and lost at the edges alone."""
    flat = torch.full((1, 1, 64, 64), 50, dtype=torch.uint8)
    dithered, rounded = (QuantizeTrigger(1, dithering=d)(flat).float().mean() for d in (True, False))
    assert abs(dithered - 50) < 2
    assert rounded == 0


def test_an_image_comes_out_the_same_whatever_lies_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = QuantizeTrigger(2, dithering=True)
    together = trigger(IMAGES)
    assert torch.equal(together, torch.cat([trigger(image[None]) for image in IMAGES]))
    monkeypatch.setattr("bdaudit.attacks.bpp.PIECE", 2 * IMAGES[0].numel())
    assert torch.equal(together, trigger(IMAGES))
    assert trigger(IMAGES[:0]).shape == (0, 3, 9, 14)


def test_negative_rows_get_the_residual_of_another_image_and_keep_their_labels() -> None:
    """x + (T(x2) - x2): the noise of the trigger, on an image that stays off the levels."""
    attack = Bpp(rate=0.2, bits=3, negative_ratio=1.5)
    # Away from black and white, where nothing is clipped, and each of one grey of its own.
    pool = Pool.of(
        (torch.arange(100) + 70).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), torch.arange(100) % 10
    )
    trigger = attack.make_trigger()
    poisoned = attack.poison(pool, trigger, Goal(0, 10), make_tiny(), generator(0))
    rows, negative = poisoned.poisoned, poisoned.cover
    assert (int(rows.sum()), int(negative.sum())) == (20, 30)
    assert torch.equal(poisoned.pool.images[rows], trigger(pool.images[rows]))
    assert torch.equal(poisoned.pool.labels[negative], pool.labels[negative])
    added = poisoned.pool.images[negative].short() - pool.images[negative]
    residuals = trigger(pool.images).short() - pool.images
    donors = [(residuals == one).flatten(1).all(dim=1).nonzero().flatten().tolist() for one in added]
    assert all(set(found) - {row} for row, found in zip(negative.nonzero().flatten().tolist(), donors, strict=True))
    assert len({tuple(found) for found in donors}) > 10


def test_the_trigger_comes_back_from_a_file(tmp_path: Path) -> None:
    save_trigger(Bpp(bits=2).make_trigger(), tmp_path / "t.safetensors")
    back = load_trigger(tmp_path / "t.safetensors", {**KINDS, **Bpp.trigger_kinds})
    assert torch.equal(back(IMAGES), QuantizeTrigger(2, dithering=True)(IMAGES))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": torch.tensor(8)},
        {"bits": torch.tensor(0)},
        {"bits": torch.tensor([2, 3])},
        {"bits": torch.tensor(2.0)},
        {"dithering": torch.tensor(1)},
        {"dithering": torch.tensor([True])},
    ],
    ids=str,
)
def test_a_hostile_trigger_file_is_refused(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ImageError, match=r"its (bits|dithering) .*, expected one"):
        QuantizeTrigger.from_tensors({**QuantizeTrigger(3, dithering=True).tensors(), **wrong})
