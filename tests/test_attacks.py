"""Attacks: exact bookkeeping, pure triggers, the paper's equations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdaudit import plugins
from bdaudit.attacks.badnets import BadNets
from bdaudit.attacks.base import Attack
from bdaudit.attacks.blended import Blended
from bdaudit.attacks.triggers import KINDS, BlendTrigger, load_trigger, noise, patch, stripes
from bdaudit.errors import ImageError, MissingInput, UsageError
from bdaudit.inputs.folders import write_png
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator

ATTACKS = [found.cls for found in plugins.registry().of_kind("attack").values()]


def trigger_of(attack: Attack, shape: tuple[int, int, int] = (1, 16, 16), seed: int = 0) -> BlendTrigger:
    trigger = attack.make_trigger(**attack.grant({"shape": shape, "rng": generator(seed)}))
    assert isinstance(trigger, BlendTrigger)
    return trigger


@pytest.mark.parametrize("cls", ATTACKS, ids=lambda c: c.name)
class TestEveryAttack:
    """What holds for all of them beyond the contract (tests/test_conformance.py)."""

    @pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 15, 17)])
    def test_triggers_fit_images_of_any_shape(self, cls: type[Attack], shape: tuple[int, int, int]) -> None:
        images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8, generator=generator(1))
        assert not torch.equal(trigger_of(cls.parse(), shape)(images), images)

    def test_exactly_the_stated_share_of_rows_is_poisoned(self, cls: type[Attack], digits: Pool) -> None:
        attack = cls.parse({"rate": 0.07})
        trigger = trigger_of(attack)
        poisoned = attack.poison(digits, trigger, Goal(2, 10), generator(3))
        rows = poisoned.poisoned
        assert int(rows.sum()) == round(0.07 * len(digits))
        assert torch.equal(poisoned.pool.images[rows], trigger(digits.images[rows]))
        # Dirty-label poison is drawn from all classes, the target's own included (cards 0.2).
        assert (digits.labels[rows] == 2).any()

    def test_all2all_moves_every_label_by_one(self, cls: type[Attack], digits: Pool) -> None:
        attack = cls.parse({"label": "all2all", "rate": 0.5})
        goal = attack.goal(0, 10)
        poisoned = attack.poison(digits, trigger_of(attack), goal, generator(0))
        rows = poisoned.poisoned
        assert torch.equal(poisoned.pool.labels[rows], (digits.labels[rows] + 1) % 10)

    def test_a_rate_that_selects_nothing_is_said(self, cls: type[Attack], digits: Pool) -> None:
        attack = cls.parse({"rate": 0.01})
        with pytest.raises(UsageError, match="selects no row out of 20"):
            attack.poison(digits.first(20), trigger_of(attack), Goal(0, 10), generator(0))


@given(
    st.integers(1, 6), st.integers(0, 3), st.sampled_from(["lower-right", "lower-left", "upper-right", "upper-left"])
)
@settings(max_examples=40)
def test_badnets_overwrites_one_corner_and_nothing_else(size: int, margin: int, corner: str) -> None:
    """x' = x (1 - m) + p m with m in {0, 1}."""
    images = torch.full((2, 3, 12, 10), 77, dtype=torch.uint8)
    out = trigger_of(BadNets(size=size, margin=margin, corner=corner, style="square"), (3, 12, 10))(images)
    rows = slice(margin, margin + size) if corner.startswith("upper") else slice(12 - margin - size, 12 - margin)
    columns = slice(margin, margin + size) if corner.endswith("left") else slice(10 - margin - size, 10 - margin)
    expected = images.clone()
    expected[:, :, rows, columns] = 255
    assert torch.equal(out, expected)


def test_the_checkerboard_alternates_and_its_dark_cells_overwrite_too() -> None:
    out = trigger_of(BadNets())(torch.full((1, 1, 16, 16), 100, dtype=torch.uint8))
    assert out[0, 0, -3:, -3:].tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]


@pytest.mark.parametrize("size", [17, 20])
def test_a_patch_larger_than_the_image_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="does not fit into 16 x 16 images"):
        trigger_of(BadNets(size=size))
    with pytest.raises(UsageError, match="does not fit"):
        patch((1, 8, 8), torch.zeros(9, 2, dtype=torch.uint8), 0, 0)


@given(st.floats(0.05, 1.0))
@settings(max_examples=20)
def test_blended_mixes_the_pattern_in_by_its_ratio(ratio: float) -> None:
    """x' = (1 - a) x + a p, to within rounding."""
    trigger = trigger_of(Blended(test_ratio=ratio, pattern="uniform"), (3, 9, 9))
    images = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8, generator=generator(1))
    expected = images.double() * (1 - ratio) + trigger.pattern.double() * ratio
    assert (trigger(images).double() - expected).abs().max() <= 0.51


def test_blended_trains_fainter_than_it_tests() -> None:
    """SS B.2: the same pattern, .1 in training and .2 at test time."""
    attack = Blended()
    trigger = trigger_of(attack)
    planted = attack.make_train_trigger((1, 16, 16), trigger)
    assert torch.equal(planted.pattern, trigger.pattern)
    assert planted.weight.unique().item() == pytest.approx(0.1)
    assert trigger.weight.unique().item() == pytest.approx(0.2)


def test_blended_takes_any_image(tmp_path: Path) -> None:
    write_png(torch.full((3, 50, 40), 200, dtype=torch.uint8), tmp_path / "cat.png")
    trigger = trigger_of(Blended(pattern="image", image=str(tmp_path / "cat.png"), test_ratio=1.0))
    assert trigger(torch.zeros(1, 1, 16, 16, dtype=torch.uint8)).unique().item() in (199, 200)
    with pytest.raises(ImageError):
        trigger_of(Blended(pattern="image", image=str(tmp_path / "dog.png")))


def test_noise_patterns_have_the_stated_distribution() -> None:
    uniform = noise((3, 64, 64), 0.2, generator(0)).pattern.float()
    gaussian = noise((3, 64, 64), 0.2, generator(0), gaussian=True).pattern.float()
    assert uniform.mean() == pytest.approx(127.5, abs=2)
    assert uniform.std() == pytest.approx(255 / 12**0.5, abs=2)
    assert gaussian.mean() == pytest.approx(127.5, abs=2)
    assert gaussian.std() == pytest.approx(62, abs=3)  # 63.75 before clipping


def test_stripes_are_a_sinusoid_of_the_row() -> None:
    pattern = stripes((1, 32, 20), 0.2, 4).pattern[0].float()
    assert (pattern == pattern[:, :1]).all()
    spectrum = torch.fft.rfft(pattern[:, 0] - pattern[:, 0].mean()).abs()
    assert spectrum.argmax() == 4


def test_a_trigger_for_other_images_is_refused() -> None:
    with pytest.raises(ImageError, match=r"made for images \(1, 16, 16\)"):
        trigger_of(BadNets())(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_a_foreign_file_is_no_trigger(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}')
    with pytest.raises(ImageError, match="not a trigger file"):
        load_trigger(tmp_path / "t.safetensors", KINDS)
    with pytest.raises(ImageError, match="no such trigger file"):
        load_trigger(tmp_path / "u.safetensors", KINDS)


def test_an_attack_that_names_an_input_gets_it_or_says_so() -> None:
    with pytest.raises(MissingInput, match="badnets needs shape"):
        BadNets().grant({})
