"""SIG, WaNet, Adaptive-Blend, Adaptive-Patch and LF: each does what its paper's equation says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.fft import dctn
from support import make_tiny
from torch.nn import functional as F

from bdaudit.attacks.adaptive_blend import AdaptiveBlend
from bdaudit.attacks.adaptive_patch import AdaptivePatch
from bdaudit.attacks.base import train_surrogate
from bdaudit.attacks.lf import LF, deepfool_steps, low_pass
from bdaudit.attacks.sig import SIG
from bdaudit.attacks.triggers import KINDS, AddTrigger, Trigger, load_trigger, save_trigger
from bdaudit.attacks.wanet import WaNet, WarpTrigger, control_grid, upsample
from bdaudit.errors import ImageError, UsageError
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator

GREY = torch.full((2, 3, 12, 24), 100, dtype=torch.uint8)


class TestSIG:
    def wave(self, frequency: float) -> torch.Tensor:
        return torch.tensor([math.sin(2 * math.pi * j * frequency / 24) for j in range(24)])

    def test_the_same_sinusoid_of_the_column_is_added_to_every_row_and_channel(self) -> None:
        """v(i, j) = D sin(2 pi j f / m), clipped to what a pixel can hold."""
        trigger = SIG(amplitude=40, frequency=5).make_trigger((3, 12, 24))
        expected = (40 * self.wave(5)).round().expand(2, 3, 12, 24)
        assert torch.equal(trigger(GREY) - 100.0, expected)
        assert torch.equal(trigger(GREY * 0).float(), expected.clamp(min=0))
        assert torch.equal(trigger(GREY * 0 + 255).float(), (expected + 255).clamp(max=255))

    def test_the_blended_reading_mixes_it_in(self) -> None:
        """x' = (1 - a) x + a p, p the sinusoid brought to [0, 255] (ABL, BSD)."""
        trigger = SIG.parse({"preset": "bsd"}).make_trigger((3, 12, 24))
        expected = 0.8 * 100 + 0.2 * 127.5 * (1 + self.wave(6))
        assert (trigger(GREY) - expected).abs().max() <= 0.61

    def test_only_rows_of_the_target_class_are_touched(self, digits: Pool) -> None:
        attack = SIG()
        poisoned = attack.poison(digits, attack.make_trigger(digits.shape), Goal(4, 10), make_tiny(), generator(0))
        changed = (poisoned.pool.images != digits.images).flatten(1).any(dim=1)
        assert int(changed.sum()) == round(0.5 * int((digits.labels == 4).sum()))
        assert digits.labels[changed].unique().tolist() == [4]
        assert torch.equal(poisoned.pool.labels, digits.labels)


class TestWaNet:
    def test_the_control_grid_has_mean_size_one(self) -> None:
        u = control_grid(4, generator(0))
        assert u.shape == (1, 2, 4, 4)
        assert u.abs().mean().item() == pytest.approx(1)

    @pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 28)])
    def test_the_flow_is_the_identity_and_s_times_the_upsampled_grid_over_h(self, height: int, width: int) -> None:
        attack = WaNet(strength=0.7)
        flow = attack.make_trigger((3, height, width), generator(3)).flow
        field = upsample(control_grid(4, generator(3)), height, width)
        # align_corners: the grid's own corners are the field's.
        assert torch.allclose(field[-1, -1], control_grid(4, generator(3))[0, :, -1, -1], atol=1e-5)
        right, down = (0.7 * field[5, 7] / torch.tensor([width, height])).tolist()
        expected = [-1 + 2 * 7 / (width - 1) + right, -1 + 2 * 5 / (height - 1) + down]
        assert flow[5, 7].tolist() == pytest.approx(expected, abs=1e-6)
        assert flow.abs().max() <= 1

    def test_the_trigger_is_grid_sample(self, digits: Pool) -> None:
        trigger = WaNet(strength=2).make_trigger(digits.shape, generator(0))
        images = digits.images[:50]
        expected = F.grid_sample(images.float(), trigger.flow.expand(50, 16, 16, 2), align_corners=True)
        assert (trigger(images) - expected).abs().max() < 1
        assert not torch.equal(trigger(images), images)

    def test_noise_rows_keep_their_labels_and_are_each_warped_in_their_own_way(self, digits: Pool) -> None:
        attack = WaNet(rate=0.1, cross_ratio=2)
        trigger = attack.make_trigger(digits.shape, generator(0))
        same = Pool.of(digits.images[:1].expand(400, -1, -1, -1).contiguous(), torch.arange(400) % 10)
        poisoned = attack.poison(same, trigger, Goal(0, 10), make_tiny(), generator(0))
        rows, noise = poisoned.poisoned, poisoned.cover
        assert (int(rows.sum()), int(noise.sum())) == (40, 80)
        assert torch.equal(poisoned.pool.labels[noise], same.labels[noise])
        assert (poisoned.pool.labels[rows] == 0).all()
        assert torch.equal(poisoned.pool.images[rows], trigger(same.images[rows]))
        assert len(poisoned.pool.images[noise].unique(dim=0)) == 80

    def test_without_a_cross_ratio_there_are_no_noise_rows(self, digits: Pool) -> None:
        attack = WaNet(cross_ratio=0)
        poisoned = attack.poison(
            digits, attack.make_trigger(digits.shape, generator(0)), Goal(0, 10), make_tiny(), generator(0)
        )
        assert not poisoned.cover.any()

    def test_noise_rows_must_fit_beside_the_poisoned_ones(self, digits: Pool) -> None:
        attack = WaNet(rate=0.5)
        trigger = attack.make_trigger(digits.shape, generator(0))
        with pytest.raises(
            UsageError, match=r"rate=0.5 selects 50 rows and 100 cover rows, there are only 100 training"
        ):
            attack.poison(digits.first(100), trigger, Goal(0, 10), make_tiny(), generator(0))


def cells_changed(before: torch.Tensor, after: torch.Tensor, cells: int) -> torch.Tensor:
    """Which of cells x cells blocks differ: bool (N, cells, cells)."""
    changed = (before != after).any(dim=1).float()[:, None]
    return F.adaptive_max_pool2d(changed, cells)[:, 0].bool()


class TestAdaptiveBlend:
    def test_each_training_image_gets_its_own_half_of_the_blocks_and_each_test_image_all(self) -> None:
        """x' = x + a M (p - x): M has half the 16 blocks in training, and is 1 at test time."""
        attack = AdaptiveBlend()
        images = torch.full((200, 1, 28, 28), 30, dtype=torch.uint8)
        trigger = attack.make_trigger((1, 28, 28), generator(0))
        planted, tested = attack.plant(images, trigger, generator(1)), trigger(images)
        kept = cells_changed(images, planted, 4)
        assert (kept.flatten(1).sum(dim=1) == 8).all()
        assert len(kept.flatten(1).unique(dim=0)) > 150
        assert 0.4 < kept.float().mean(dim=0).min() <= kept.float().mean(dim=0).max() < 0.6
        assert cells_changed(images, tested, 4).all()
        whole = kept.repeat_interleave(7, dim=1).repeat_interleave(7, dim=2)[:, None]
        assert torch.equal(planted, torch.where(whole, tested, images))

    def test_cover_rows_are_triggered_and_keep_their_labels(self, digits: Pool) -> None:
        attack = AdaptiveBlend(rate=0.05, cover_rate=0.1)
        trigger = attack.make_trigger(digits.shape, generator(0))
        poisoned = attack.poison(digits, trigger, Goal(3, 10), make_tiny(), generator(0))
        assert (int(poisoned.poisoned.sum()), int(poisoned.cover.sum())) == (90, 180)
        assert torch.equal(poisoned.pool.labels[poisoned.cover], digits.labels[poisoned.cover])
        assert (poisoned.pool.labels[poisoned.poisoned] == 3).all()
        changed = cells_changed(digits.images, poisoned.pool.images, 4).flatten(1).sum(dim=1)
        for rows in (poisoned.poisoned, poisoned.cover):
            assert (changed[rows] == 8).all()


class TestAdaptivePatch:
    def test_a_training_image_has_one_patch_and_a_test_image_two(self) -> None:
        attack = AdaptivePatch()
        images = torch.full((40, 1, 28, 28), 90, dtype=torch.uint8)
        trigger = attack.make_trigger((1, 28, 28))
        planted = cells_changed(images, attack.plant(images, trigger, generator(0)), 4)
        assert (planted.flatten(1).sum(dim=1) == 1).all()
        assert planted.sum(dim=0).tolist() == [[10, 0, 0, 10], [0, 0, 0, 0], [0, 0, 0, 0], [10, 0, 0, 10]]
        tested = cells_changed(images, trigger(images), 4)
        assert tested[0].nonzero().tolist() == [[0, 0], [3, 3]]

    def test_training_patches_are_faint_and_test_patches_opaque(self) -> None:
        """Opacities .5, .2, .5 and .3: white on black is 128, 51, 128 and 77 of 255."""
        attack, black = AdaptivePatch(), torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        trigger = attack.make_trigger((3, 32, 32))
        planted = attack.plant(black, trigger, generator(0))
        assert planted.flatten(1).amax(dim=1).tolist() == pytest.approx([128, 51, 128, 77], abs=1)
        assert trigger(black).unique().tolist() == [0, 255]
        white = trigger(255 - black)
        assert {0, 255} == set(white[:, :, :8, :8].unique().tolist()) == set(white[:, :, -8:, -8:].unique().tolist())

    def test_patches_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"a 17 x 17 patch .* does not fit into 16 x 16 images"):
            AdaptivePatch(size=17).make_trigger((1, 16, 16))


class TestLF:
    def test_the_filter_is_a_gaussian(self) -> None:
        """A wave of k periods in 32 pixels is damped by exp(-2 (pi sigma k / 32)^2)."""
        columns = torch.arange(256)
        for k in (1, 2, 4):
            wave = torch.sin(2 * torch.pi * k * columns / 32).expand(1, 256, 256)
            # In an image of 256 pixels, 2 of 32 are 16; away from the edges, beyond which it is zero.
            middle = low_pass(wave, 2 / 8)[:, 100:156, 100:156] / wave[:, 100:156, 100:156]
            assert middle.nanmedian().item() == pytest.approx(math.exp(-2 * (math.pi * 2 * k / 32) ** 2), rel=0.02)

    def test_a_step_of_deepfool_reaches_the_boundary_of_a_linear_model(self) -> None:
        class Linear(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = torch.randn(5, 12, generator=generator(0))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.flatten(1) @ self.w.T

        model, x = Linear(), torch.rand(20, 3, 2, 2, generator=generator(1))
        steps, gaps = deepfool_steps(model, x, 3, overshoot=0.0)  # type: ignore[arg-type]
        there = model(x).argmax(dim=1) == 3
        assert torch.equal(gaps == 0, there)
        assert (steps[there] == 0).all()
        before, after = model(x), model(x + steps)
        rival = before.argmax(dim=1)
        assert torch.allclose(after[:, 3], after[torch.arange(20), rival], atol=1e-4)

    def test_the_perturbation_is_smooth_universal_and_no_larger_than_stated(self, digits: Pool) -> None:
        """Nearly all of its variance lies below two periods a side, and all of it between 0 and a."""
        v = LF(amplitude=0.2, rounds=5, surrogate_epochs=1).make_trigger(
            digits.first(600), 0, make_tiny(), generator(0)
        )
        assert (int(v.pattern.min()), int(v.pattern.max())) == (0, 51)
        power = torch.from_numpy(dctn(v.pattern[0].numpy().astype(float), norm="ortho")) ** 2
        power[0, 0] = 0
        assert power[:4, :4].sum() > 0.95 * power.sum()
        assert power[8:, :].sum() + power[:8, 8:].sum() < 0.01 * power.sum()

    def test_the_perturbation_pushes_the_clean_model_towards_the_target(self, digits: Pool) -> None:
        """It closes the gap to the target on images that it was not found on; turned upside down or inverted, less."""
        train, test, _ = digits.shuffled(generator(0)).split(600, 300)
        v = LF(surrogate_epochs=5).make_trigger(train, 1, make_tiny(), generator(0)).pattern
        surrogate = train_surrogate(make_tiny(), train, 5, generator(0), "lf").requires_grad_(False)
        images = test.images[test.labels != 1]
        variants = (v, v.flip(1, 2), 51 - v, 0 * v)
        gaps = [deepfool_steps(surrogate, AddTrigger(u)(images) / 255, 1, 0)[1].mean().item() for u in variants]
        assert gaps[0] < 0.9 * min(gaps[1:])


MADE: dict[str, Trigger] = {
    "add": AddTrigger(torch.full((1, 4, 5), -7, dtype=torch.int16)),
    "warp": WarpTrigger(torch.zeros(4, 5, 2)),
}
HOSTILE = {
    "floats to add": ("add", {"pattern": torch.zeros(1, 4, 5)}, "expected int16"),
    "nothing to add": ("add", {"pattern": torch.zeros(1, 0, 5, dtype=torch.int16)}, "expected int16"),
    "too much to add": ("add", {"pattern": torch.full((1, 4, 5), 256, dtype=torch.int16)}, "between -255 and 255"),
    "no pattern": ("add", {"flow": torch.zeros(4, 5, 2)}, "pattern"),
    "a flow of three": ("warp", {"flow": torch.zeros(4, 5, 3)}, r"expected float32 \(H, W, 2\)"),
    "a flow in halves": ("warp", {"flow": torch.zeros(4, 5, 2).half()}, r"expected float32 \(H, W, 2\)"),
    "a flow to nowhere": ("warp", {"flow": torch.full((4, 5, 2), torch.nan)}, "not finite"),
    "an empty flow": ("warp", {"flow": torch.zeros(0, 5, 2)}, r"expected float32 \(H, W, 2\)"),
}
ALL_KINDS = {**KINDS, **WaNet.trigger_kinds}


@pytest.mark.parametrize("kind", MADE)
def test_triggers_come_back_from_a_file(kind: str, tmp_path: Path) -> None:
    save_trigger(MADE[kind], tmp_path / "t.safetensors")
    back = load_trigger(tmp_path / "t.safetensors", ALL_KINDS)
    assert back.digest() == MADE[kind].digest()
    images = torch.randint(0, 256, (9, 1, 4, 5), dtype=torch.uint8, generator=generator(0))
    assert torch.equal(back(images), MADE[kind](images))
    with pytest.raises(ImageError, match=r"made for images \(1, 4, 5\), got \(1, 5, 4\)"):
        back(images.transpose(2, 3))


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_trigger_file_is_refused(case: str, tmp_path: Path) -> None:
    kind, tensors, why = HOSTILE[case]
    made = MADE[kind]
    made = type(made).__new__(type(made))
    made.tensors = lambda: tensors  # type: ignore[method-assign]
    save_trigger(made, tmp_path / "t.safetensors")
    with pytest.raises(ImageError, match=why):
        load_trigger(tmp_path / "t.safetensors", ALL_KINDS)
