"""Refool: its three kinds of reflection, each by its formula, and one of them for each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.attacks.refool import (
    GAMMA,
    PIECE,
    ReflectionTrigger,
    Refool,
    blur,
    draws,
    focal_blur,
    ghost,
    linear,
    out_of_focus,
)
from bdaudit.attacks.triggers import KINDS, load_trigger, save_trigger
from bdaudit.errors import ImageError, OptionError
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator

SHAPE = (3, 24, 20)
IMAGES = torch.randint(0, 256, (60, *SHAPE), dtype=torch.uint8, generator=generator(0))
A = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)


def made(**options: float) -> ReflectionTrigger:
    return Refool(pool=5, **options).make_trigger(SHAPE, generator(1))


def u(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def flat(value: float) -> Tensor:
    return torch.full((1, 1, 24, 20), value, dtype=torch.float64)


@pytest.mark.parametrize("mix", [ghost, out_of_focus])
def test_a_flat_reflection_on_a_flat_image_is_their_mixture(mix: Callable[..., Tensor]) -> None:
    """a t + (1 - a) r, whatever the shift and however wide the blur."""
    assert torch.allclose(mix(flat(0.5), flat(0.2), A, u(0.9, 0.3, 0.99, 0.0)), flat(0.7 * 0.5 + 0.3 * 0.2))


def test_a_ghost_is_a_point_twice() -> None:
    """g of it in its place and 1 - g 3 to 8 pixels of 112 further down and to the right."""
    point = flat(0.0)
    point[0, 0, 10, 10] = 1
    for side_draw, g in ((0.9, 1 - (0.15 + 0.35 * 0.2)), (0.1, 0.15 + 0.35 * 0.2)):
        # Draws of 0 and .99 are 3 and 8 pixels of 112: .64 of 24 rows, at least 1, and 1.43 of 20 columns.
        light = ghost(flat(0.0), point, A, u(side_draw, 0.2, 0.0, 0.99))[0, 0]
        assert light[10, 10].item() == pytest.approx(0.3 * g)
        assert light[11, 11].item() == pytest.approx(0.3 * (1 - g))
        assert int((light > 0).sum()) == 2


def test_each_image_is_blurred_by_its_own_gaussian() -> None:
    r = torch.rand(2, 3, 112, 112, dtype=torch.float64, generator=generator(2))
    for image, sigma, smooth in zip(r, (1.3, 4.0), blur(r, torch.tensor([1.3, 4.0]).double()), strict=True):
        radius = math.ceil(2 * sigma)
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2).double()
        kernel = taps[:, None] * taps / taps.sum() ** 2
        padded = F.pad(image[None], (radius,) * 4, mode="replicate")
        expected = F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)[0]
        assert torch.allclose(smooth, expected, atol=1e-5)


def test_focal_blur_takes_off_the_excess_and_fades_from_a_point() -> None:
    """Where r + t = 1.3, r loses .3 (1.08 + .1 u); then it is multiplied by a Gaussian and added with 1 - a / 2."""
    faded = (focal_blur(flat(0.8), flat(0.5), A, u(0.0, 0.5, 0.5, 0.25)) - 0.7 * 0.8) / 0.65
    left = 0.5 - 0.3 * 1.13
    y, x = (torch.arange(24) + 0.5) / 24, (torch.arange(20) + 0.5) / 20
    expected = left * torch.exp(-2 * ((y[:, None] - 0.5) ** 2 + (x - 0.25) ** 2))
    assert torch.allclose(faded[0, 0], expected.double())
    dim = focal_blur(flat(0.4), flat(0.5), A, u(0.0, 0.5, 0.5, 0.25))
    assert dim.max().item() == pytest.approx(0.7 * 0.4 + 0.65 * 0.5, rel=0.01)  # nothing to take off


def test_an_image_alone_decides_what_becomes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which reflection, which kind and how strong: not the images beside it, nor a second call."""
    trigger = made()
    together = trigger(IMAGES)
    assert torch.equal(together, torch.cat([trigger(image[None]) for image in IMAGES]))
    monkeypatch.setattr("bdaudit.attacks.refool.PIECE", PIECE // 400)
    assert torch.equal(together, trigger(IMAGES))
    assert trigger(IMAGES[:0]).shape == (0, *SHAPE)


def test_all_kinds_and_all_reflections_occur_in_their_shares() -> None:
    trigger = made(ghosts=0.5)
    images = torch.arange(3000).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous().view(torch.uint8)
    values = draws(images)
    assert ((values >= 0) & (values < 1)).all()
    assert torch.allclose(values.mean(dim=0), torch.tensor(0.5).double(), atol=0.03)
    assert torch.allclose(trigger.kinds(values).bincount() / 3000, torch.tensor([0.5, 0.25, 0.25]), atol=0.03)
    assert len({tuple(row) for row in values.tolist()}) == 3000


def test_the_light_is_mixed_in_linear_light() -> None:
    """Of an image that stays itself by a = 1, every pixel is kept; at a = .5, white by a black pane is .5^(1 / 2.2)."""
    assert torch.equal(made(least=1, most=1, ghosts=1)(IMAGES), IMAGES)
    black = ReflectionTrigger(
        torch.zeros(1, *SHAPE, dtype=torch.uint8),
        *(made(least=0.5, most=0.5).tensors()[k] for k in ("ghosts", "weights")),
    )
    white = black(torch.full((1, *SHAPE), 255, dtype=torch.uint8))
    assert white.unique().tolist() == [round(255 * 0.5 ** (1 / GAMMA))]
    assert linear(white).mean().item() == pytest.approx(0.5, abs=0.01)


def test_reflections_are_different_pieces_of_photographs_or_the_users_own(tmp_path: Path) -> None:
    assert len(made().reflections.flatten(1).unique(dim=0)) == 5
    assert made().reflections.float().flatten(1).std(dim=1).min() > 10
    write_folder(Pool.of(IMAGES[:4], torch.tensor([0, 0, 1, 1])), tmp_path / "own")
    own = Refool(reflections=str(tmp_path / "own"), pool=3).make_trigger(SHAPE, generator(0)).reflections
    assert len(own) == 3
    assert all((IMAGES[:4] == one).flatten(1).all(dim=1).any() for one in own)
    with pytest.raises(ImageError, match="no such folder or file"):
        Refool(reflections=str(tmp_path / "none")).make_trigger(SHAPE, generator(0))


def test_the_least_weight_is_not_above_the_largest() -> None:
    with pytest.raises(OptionError, match=r"refool: .*least \(0.9\) must not exceed most \(0.5\)"):
        Refool.parse({"least": 0.9, "most": 0.5})


def test_the_trigger_comes_back_from_a_file(tmp_path: Path) -> None:
    save_trigger(made(), tmp_path / "t.safetensors")
    back = load_trigger(tmp_path / "t.safetensors", {**KINDS, **Refool.trigger_kinds})
    assert torch.equal(back(IMAGES), made()(IMAGES))
    with pytest.raises(ImageError, match=r"made for images \(3, 24, 20\), got \(3, 20, 24\)"):
        back(IMAGES.transpose(2, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"reflections": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)},
        {"reflections": torch.zeros(2, 3, 4, 4)},
        {"reflections": torch.zeros(3, 4, 4, dtype=torch.uint8)},
        {"ghosts": torch.tensor(math.nan).double()},
        {"ghosts": torch.tensor(0.5)},
        {"weights": torch.tensor([0.5, 1.5]).double()},
        {"weights": torch.tensor(0.5).double()},
    ],
    ids=lambda wrong: f"{next(iter(wrong))} {tuple(next(iter(wrong.values())).shape)}",
)
def test_a_hostile_trigger_file_is_refused(wrong: dict[str, Tensor]) -> None:
    with pytest.raises(ImageError, match=r"its (reflections|ghosts|weights) are .*, expected"):
        ReflectionTrigger.from_tensors({**made().tensors(), **wrong})
