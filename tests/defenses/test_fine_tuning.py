"""Defenses that fine-tune on clean images: each method's own equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import make_tiny
from torch.nn import functional as F

from bdaudit.defenses.base import Tuning, reinitialise
from bdaudit.defenses.d3 import D3
from bdaudit.defenses.fe_tuning import FETuning
from bdaudit.defenses.ft import FT
from bdaudit.defenses.ft_init import FTInit
from bdaudit.defenses.ft_sam import FTSAM
from bdaudit.defenses.lp import LP
from bdaudit.defenses.super_ft import SuperFT
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training import loop
from bdaudit.training.metrics import accuracy, attack_rates
from bdaudit.training.sam import Sam

ONE_STEP = {"epochs": 1, "batch_size": 64, "min_steps": 1}


def one_step(cls: type[Tuning], clean: Pool, seed: int = 0, **options: Any) -> Classifier:
    """Purify the tiny model in one step over 64 images."""
    return cls(**ONE_STEP | options).run({"model": make_tiny(), "clean": clean.first(64), "rng": generator(seed)})


def extractor(model: Classifier) -> dict[str, torch.Tensor]:
    """Every parameter below the head."""
    return {n: p for n, p in model.body.named_parameters() if not n.startswith(model.head_name)}


def gradients(model: Classifier, clean: Pool, label_smoothing: float = 0.0) -> tuple[torch.Tensor, ...]:
    x, y = clean.images[:64], clean.labels[:64]
    return torch.autograd.grad(F.cross_entropy(model(x), y, label_smoothing=label_smoothing), list(model.parameters()))


class TestLP:
    """FST section 3: linear probing."""

    def test_only_the_head_moves(self, digits: Pool) -> None:
        start, result = make_tiny(), one_step(LP, digits)
        assert all(torch.equal(p, extractor(start)[n]) for n, p in extractor(result).items())
        assert not torch.equal(result.head.weight, start.head.weight)
        assert all(p.requires_grad for p in result.parameters())  # whoever retunes it is not held back

    def test_the_backdoor_stays(self, suspect: Classifier, run: Run) -> None:
        """FST Table 7: the extractor still tells triggered images apart."""
        result = LP().run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
        assert attack_rates(result, run.trigger.on(run.pool("test")), run.goal)[0].value >= 0.8
        assert accuracy(result, run.pool("test")).value >= accuracy(suspect, run.pool("test")).value - 0.05


class TestFETuning:
    """FST section 3.2: the features move under a head that is random and fixed."""

    def test_the_head_is_redrawn_and_stays(self, digits: Pool) -> None:
        start, result = make_tiny(), one_step(FETuning, digits, seed=4)
        reinitialise(start.head, generator(4))
        assert torch.equal(result.head.weight, start.head.weight)
        assert torch.equal(result.head.bias, start.head.bias)
        assert all(not torch.equal(p, extractor(start)[n]) for n, p in extractor(result).items())

    def test_the_features_learn_to_fit_it(self, suspect: Classifier, run: Run) -> None:
        result = FETuning(epochs=40).run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
        assert accuracy(result, run.pool("test")).value >= 0.8


class TestFTInit:
    """FST section 3.2: everything moves, from a redrawn head."""

    def test_one_step_is_descent_from_the_redrawn_head(self, digits: Pool) -> None:
        by_hand, result = make_tiny(), one_step(FTInit, digits, seed=4, lr=0.05)
        reinitialise(by_hand.head, generator(4))
        by_hand.train()
        for p, after, g in zip(by_hand.parameters(), result.parameters(), gradients(by_hand, digits), strict=True):
            assert torch.allclose(after, p - 0.05 * g, atol=2e-6)


class TestFTSAM:
    """Zhu et al. 2023 over SAM and ASAM."""

    @pytest.mark.parametrize(("options", "sam"), [({}, Sam(2.0, adaptive=True)), ({"adaptive": False}, Sam(0.05))])
    def test_one_step_is_the_gradient_of_the_smoothed_loss_at_the_worst_point(
        self, digits: Pool, options: dict[str, Any], sam: Sam
    ) -> None:
        """w1 = w - lr (dL/dw (w + e) + 5e-4 w), L with labels smoothed by .1; without adaptive it has its own rho."""
        result, there = one_step(FTSAM, digits, lr=0.05, **options), make_tiny().train()
        start = [p.detach().clone() for p in there.parameters()]
        perturbation = sam.perturbation(start, gradients(there, digits, label_smoothing=0.1))
        with torch.no_grad():
            for p, e in zip(there.parameters(), perturbation, strict=True):
                p.add_(e)
        at_the_worst = gradients(there, digits, label_smoothing=0.1)
        for after, w, g in zip(result.parameters(), start, at_the_worst, strict=True):
            assert torch.allclose(after, w - 0.05 * (g + 5e-4 * w), atol=2e-6)

    def test_the_loss_is_flatter_and_the_backdoor_weaker_than_after_ft(self, suspect: Classifier, run: Run) -> None:
        """The loss rises less towards the worst point of an adaptive neighbourhood."""
        clean, triggered = run.pool("clean"), run.trigger.on(run.pool("test"))

        def rise(model: Classifier) -> float:
            weights = list(model.parameters())
            loss = F.cross_entropy(model(clean.images), clean.labels)
            perturbation = Sam(1.0, adaptive=True).perturbation(weights, torch.autograd.grad(loss, weights))
            with torch.no_grad():
                for w, e in zip(weights, perturbation, strict=True):
                    w.add_(e)
                return (F.cross_entropy(model(clean.images), clean.labels) - loss).item()

        ft, sam = (cls().run({"model": suspect, "clean": clean, "rng": generator(0)}) for cls in (FT, FTSAM))
        assert accuracy(sam, run.pool("test")).value >= accuracy(suspect, run.pool("test")).value - 0.05
        asr_after_sam, asr_after_ft = (attack_rates(m, triggered, run.goal)[0].value for m in (sam, ft))
        assert asr_after_sam < asr_after_ft - 0.3
        assert rise(sam) < 0.3 * rise(ft)


class TestSuperFT:
    """Sha et al. 2022: two triangles."""

    def test_the_rate_rises_and_falls_in_a_straight_line_twice(self) -> None:
        rate = SuperFT(lr=0.1, lr_recover=0.01, lr_base=0.001).rate
        shares = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
        assert [rate(s) for s in shares] == pytest.approx(
            [0.001, 0.0505, 0.1, 0.0505, 0.001, 0.0055, 0.01, 0.0055, 0.001]
        )

    def test_it_forgets_the_backdoor_and_recovers_the_accuracy(self, suspect: Classifier, run: Run) -> None:
        result = SuperFT().run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
        test = run.pool("test")
        assert attack_rates(result, run.trigger.on(test), run.goal)[0].value <= 0.2
        assert accuracy(result, test).value >= accuracy(suspect, test).value - 0.05

    def test_the_optimiser_steps_at_these_rates(self, digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        rates = []

        class Seen(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                rates.append(self.param_groups[0]["lr"])
                return super().step(closure)

        monkeypatch.setattr(loop.torch.optim, "SGD", Seen)
        defense = SuperFT(epochs=2, batch_size=16)
        defense.run({"model": make_tiny(), "clean": digits.first(64), "rng": generator(0)})
        assert rates == pytest.approx([defense.rate(step / 8) for step in range(8)])


class TestD3:
    """Wei et al. 2025, Eq. 4."""

    @staticmethod
    def start(seed: int) -> Classifier:
        """The tiny model with a head of random direction at its own norm."""
        model = make_tiny().train()
        w = torch.empty(model.head.weight.shape).uniform_(-0.5, 0.5, generator=generator(seed))
        model.head.weight.data.copy_(w * model.head.weight.norm() / w.norm())
        return model

    @pytest.mark.parametrize(
        ("options", "clean_weight", "distance_weight"),
        [
            ({}, 10.0, 1.0),
            ({"penalty": 3.0}, 3.0, 1.0),
            ({"epsilon": 50.0}, 0.0, 1.0),  # a loss below epsilon costs nothing
            ({"preset": "released"}, 0.5, 1.0),
            ({"preset": "released", "penalty": 3.0}, 0.75, 0.25),
        ],
    )
    def test_one_step_is_the_papers_gradient_projected(
        self, digits: Pool, options: dict[str, Any], clean_weight: float, distance_weight: float
    ) -> None:
        """w1 = project(w0 - lr (lambda dCE/dw - (w0 - w_ori) / ||w0 - w_ori||)), w0 random at the norm of w_ori."""
        result, by_hand = one_step(D3, digits, seed=6, lr=0.05, **options), self.start(seed=6)
        original, w0 = make_tiny().head.weight.detach(), by_hand.head.weight.detach()
        g = dict(zip(dict(by_hand.named_parameters()), gradients(by_hand, digits), strict=True))
        gradient = clean_weight * g[f"body.{by_hand.head_name}.weight"]
        w = w0 - 0.05 * (gradient - distance_weight * (w0 - original) / (w0 - original).norm())
        assert torch.allclose(result.head.weight, w * original.norm() / w.norm(), atol=2e-5)
        bias = by_hand.head.bias - 0.05 * clean_weight * g[f"body.{by_hand.head_name}.bias"]
        assert torch.allclose(result.head.bias, bias, atol=2e-5)

    def test_the_released_maximum_is_taken_image_by_image(self, digits: Pool) -> None:
        """With epsilon between the mean loss and the largest one, only image by image is there anything to lower."""
        start = self.start(seed=0)
        losses = F.cross_entropy(start(digits.images[:64]), digits.labels[:64], reduction="none")
        epsilon = (losses.mean() + losses.max()).item() / 2
        paper, released = (one_step(D3, digits, epsilon=epsilon, preset=preset) for preset in ("paper", "released"))
        assert all(torch.equal(p, extractor(start)[n]) for n, p in extractor(paper).items())
        assert any(not torch.equal(p, extractor(start)[n]) for n, p in extractor(released).items())

    def test_it_goes_further_than_ft_init_and_leaves_the_backdoor_behind(self, suspect: Classifier, run: Run) -> None:
        inputs = {"model": suspect, "clean": run.pool("clean")}
        results = {cls: cls(epochs=30).run({**inputs, "rng": generator(0)}) for cls in (D3, FTInit)}
        original = suspect.head.weight

        def distance(model: Classifier) -> float:
            return (
                (F.normalize(model.head.weight.flatten(), dim=0) - F.normalize(original.flatten(), dim=0)).norm().item()
            )

        assert results[D3].head.weight.norm().item() == pytest.approx(original.norm().item(), rel=1e-5)
        assert distance(results[D3]) > distance(results[FTInit]) + 0.1
        assert accuracy(results[D3], run.pool("test")).value >= accuracy(suspect, run.pool("test")).value - 0.1
        assert attack_rates(results[D3], run.trigger.on(run.pool("test")), run.goal)[0].value <= 0.1

    def test_a_looser_bound_on_the_loss_lets_it_go_further(self, suspect: Classifier, run: Run) -> None:
        """D3 Table 6: distance grows with epsilon."""
        inputs = {"model": suspect, "clean": run.pool("clean")}
        tight, loose = (D3(epochs=10, epsilon=e).run({**inputs, "rng": generator(0)}) for e in (0.0, 1.0))
        assert (loose.head.weight - suspect.head.weight).norm() > (tight.head.weight - suspect.head.weight).norm()
