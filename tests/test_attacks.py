"""Attacks: exact bookkeeping, pure triggers, the paper's equations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_tiny

from bdaudit import plugins
from bdaudit.attacks.badnets import BadNets
from bdaudit.attacks.base import Attack, CleanLabel, Poisoned
from bdaudit.attacks.blended import Blended
from bdaudit.attacks.triggers import KINDS, Trigger, load_trigger, noise, patch, stripes
from bdaudit.cli.main import _run
from bdaudit.errors import ImageError, MissingInput, OptionError, UsageError
from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.folders import write_png
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.testing.soundness import bookkeeping
from bdaudit.training.loop import Recipe
from bdaudit.training.sam import Sam

ATTACKS = [found.cls for found in plugins.registry().of_kind("attack").values()]


def trigger_of(attack: Attack, shape: tuple[int, int, int] = (1, 16, 16), seed: int = 0) -> Any:
    return attack.make_trigger(**attack.grant(offered(shape, seed)))


def offered(shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    """What any attack may ask for, for images of any shape."""
    c, h, w = shape
    preprocessing = Preprocessing(channels=c, height=h, width=w, mean=(0.5,) * c, std=(0.5,) * c)
    network = fresh(complete(parse("small_cnn:width=4")), preprocessing, tuple("0123456789"), generator(seed))
    images = torch.randint(0, 256, (60, *shape), dtype=torch.uint8, generator=generator(seed))
    train = Pool.of(images, torch.arange(60) % 10)
    return {"shape": shape, "train": train, "target": 2, "fresh": network, "rng": generator(seed)}


def quick(cls: type[Attack], **options: Any) -> Attack:
    return cls.parse({**cls.quick_options, **options})


@pytest.mark.parametrize("cls", ATTACKS, ids=lambda c: c.name)
class TestEveryAttack:
    """What holds for all of them beyond the contract (tests/test_conformance.py)."""

    @pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (3, 15, 17)])
    def test_triggers_fit_images_of_any_shape(self, cls: type[Attack], shape: tuple[int, int, int]) -> None:
        images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8, generator=generator(1))
        assert not torch.equal(trigger_of(quick(cls), shape)(images), images)

    def test_exactly_the_stated_share_of_rows_is_poisoned(self, cls: type[Attack], digits: Pool) -> None:
        attack = quick(cls, rate=0.07)
        poisoned = attack.poison(digits, trigger_of(attack), goal := Goal(2, 10), make_tiny(), generator(3))
        rows, own = poisoned.poisoned, digits.labels == 2
        assert int(rows.sum()) == round(0.07 * (int(own.sum()) if cls.clean_label else len(digits)))
        assert int(poisoned.cover.sum()) == attack.cover_count(int(rows.sum()), len(digits))
        assert bookkeeping(attack, poisoned, digits, goal) == ""
        changed = (poisoned.pool.images != digits.images).flatten(1).any(dim=1)
        assert changed.sum() > 0.9 * (rows | poisoned.cover).sum()
        # Dirty-label poison is drawn from all classes, the target's own included (cards 0.2).
        assert (rows & own).any()

    def test_all2all_moves_every_label_by_one(self, cls: type[Attack], digits: Pool) -> None:
        if cls.clean_label or cls.name == "sep-adaptive":  # whose defense takes one target
            with pytest.raises(OptionError, match="label: input should be 'all2one'"):
                quick(cls, label="all2all")
            return
        attack = quick(cls, label="all2all", rate=0.3)
        goal = attack.goal(0, 10)
        poisoned = attack.poison(digits, trigger_of(attack), goal, make_tiny(), generator(0))
        rows = poisoned.poisoned
        assert torch.equal(poisoned.pool.labels[rows], (digits.labels[rows] + 1) % 10)
        assert torch.equal(poisoned.pool.labels[~rows], digits.labels[~rows])

    def test_a_rate_that_selects_nothing_is_said(self, cls: type[Attack], digits: Pool) -> None:
        attack = quick(cls, rate=0.01)
        with pytest.raises(UsageError, match=rf"^{cls.name}: -o rate=0.01 selects no row out of \d+ training images"):
            attack.poison(digits.first(20), trigger_of(attack), Goal(0, 10), make_tiny(), generator(0))

    def test_a_flat_victim_is_trained_with_sam(
        self, cls: type[Attack], digits: Pool, tiny: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """D3 4.4: the recipe's optimiser is adaptive SAM of that radius, and the weights are other ones."""
        if not cls.trains_plainly():
            with pytest.raises(OptionError, match="flat_rho"):
                quick(cls, flat_rho=1)
            return
        pool = digits.first(64)
        marks = torch.zeros(64, dtype=torch.bool)
        poisoned = Poisoned(pool, marks, marks, pool.labels)
        steps: list[Sam] = []
        perturbation = Sam.perturbation
        monkeypatch.setattr(Sam, "perturbation", lambda sam, *a: (steps.append(sam), perturbation(sam, *a))[1])
        plain, flat = (
            quick(cls, flat_rho=rho).train(tiny.clone(), poisoned, Recipe(epochs=1, lr=0.1), generator(0))
            for rho in (0, 2)
        )
        assert steps == [Sam(2.0, adaptive=True)]
        assert not torch.equal(plain.head.weight, flat.head.weight)


def test_options_given_override_a_preset_and_the_effective_ones_are_recorded() -> None:
    changed = {"preset": "bsd", "style": "square", "size": 2, "corner": "upper-left"}
    assert BadNets.parse({"preset": "bsd"}).model_dump() == BadNets().model_dump() | changed
    given = BadNets.parse({"preset": "bsd", "size": "4"})
    assert (given.size, given.corner) == (4, "upper-left")
    assert BadNets.parse(given.model_dump()) == given
    with pytest.raises(
        OptionError, match=r"badnets: -o preset: no such preset; did you mean fst\? \(presets: fst, bsd"
    ):
        BadNets.parse({"preset": "fts"})


class TestCleanLabel:
    """Rows of the target class alone, and their labels stay (cards 0.2, 8.11)."""

    class Stamping(CleanLabel):
        """For a test."""

        name = "stamping"

        def make_trigger(self, shape: tuple[int, int, int]) -> Trigger:
            return patch(shape, torch.full((2, 2), 99, dtype=torch.uint8), 0, 0)

    @pytest.mark.parametrize(("rate_of", "rate"), [("target", 0.5), ("all", 0.05)])
    def test_the_rate_is_of_the_class_or_of_all(self, digits: Pool, rate_of: str, rate: float) -> None:
        attack = self.Stamping.parse({"rate": rate, "rate_of": rate_of})
        poisoned = attack.poison(digits, trigger_of(attack), Goal(7, 10), make_tiny(), generator(0))
        of = int((digits.labels == 7).sum()) if rate_of == "target" else len(digits)
        assert int(poisoned.poisoned.sum()) == round(rate * of)
        assert poisoned.true_labels[poisoned.poisoned].unique().tolist() == [7]
        assert torch.equal(poisoned.pool.labels, digits.labels)

    def test_more_rows_than_the_class_has_are_refused(self, digits: Pool) -> None:
        attack = self.Stamping.parse({"rate": 0.5, "rate_of": "all"})
        with pytest.raises(UsageError, match=r"selects 898 rows, there are only 178 training images of the target"):
            attack.poison(digits, trigger_of(attack), Goal(0, 10), make_tiny(), generator(0))


def test_the_list_of_attacks_says_what_they_touch_and_who_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plugins", "list", "--kind", "attack"], debug=True) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", header)[:4] == ["name", "family", "trigger", "trained by"]
    [badnets] = [row for row in rows if row.startswith("badnets")]
    assert re.split(r"\s{2,}", badnets)[1:4] == ["dirty-label", "static", "victim"]


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
