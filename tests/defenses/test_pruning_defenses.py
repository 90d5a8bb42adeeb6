"""Defenses that mask or prune channels: FP, ANP, CLP, RNP and NFT."""

from __future__ import annotations

import math

import pytest
import torch
from families import member
from support import make_tiny
from torch import nn
from torch.nn import functional as F

from bdaudit import api
from bdaudit.defenses import anp, fp, rnp
from bdaudit.defenses.anp import ANP, adversarial
from bdaudit.defenses.base import Defense
from bdaudit.defenses.clp import CLP, lipschitz_bounds
from bdaudit.defenses.fp import FP, most_pruned
from bdaudit.defenses.nft import NFT, mixed_up, to_two_fifths
from bdaudit.defenses.rnp import RNP
from bdaudit.errors import UsageError
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.loop import cross_entropy
from bdaudit.training.masks import Masked, batchnorms
from bdaudit.training.metrics import accuracy, attack_rates


def test_the_refusal_comes_before_any_image_is_read() -> None:
    with pytest.raises(UsageError, match=r"anp masks .* has none; choose another defense"):
        api.purify(member("vit_b_16"), clean="/no/such/folder", defense=ANP())
    with pytest.raises(UsageError, match=r"anp masks .* has none; choose another defense"):
        api.audit(member("vit_b_16"), clean="/no/such/folder", defense=ANP())


class TestFP:
    """Liu et al. 2018 (cards 2.11)."""

    def test_features_go_in_order_until_accuracy_falls_too_far(self) -> None:
        """Three features, one class each: the first to go is needed by one image of ten, the second by four."""
        head = nn.Linear(3, 4)
        with torch.no_grad():
            head.weight.copy_(torch.cat([torch.eye(3), torch.zeros(1, 3)]))
            head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5]))
        labels = torch.tensor([2] + [0] * 4 + [1] * 5)
        features = F.one_hot(labels, 3).float()
        order = torch.tensor([2, 0, 1])
        assert [most_pruned(head, features, labels, order, drop) for drop in (0.05, 0.15, 0.55, 1.0)] == [0, 1, 2, 3]
        assert torch.equal(features, F.one_hot(labels, 3).float())

    def test_the_least_active_features_are_removed_and_stay_removed(self, suspect: Classifier, run: Run) -> None:
        clean = run.pool("clean")
        result = FP(epochs=2).run({"model": suspect, "clean": clean, "rng": generator(0)})
        removed = (result.head.weight == 0).all(0)
        _, tuning = FP().parts(clean, generator(0))
        with torch.no_grad():
            activity = suspect.features(tuning.images).abs().mean(0)
        assert 0 < int(removed.sum()) < len(removed)
        assert activity[removed].max() <= activity[~removed].min()
        assert not torch.equal(result.body.conv1.weight, suspect.body.conv1.weight)

    def test_it_weakens_the_backdoor(self, suspect: Classifier, run: Run) -> None:
        assert_weaker(FP(), suspect, run, most=0.5)


class TestANP:
    """Wu and Wang 2021, Eq. 4."""

    def test_a_batchnorm_that_never_runs_is_no_obstacle(self, digits: Pool) -> None:
        """As of heads that only training uses."""
        model = make_tiny()
        model.body.auxiliary = nn.BatchNorm2d(4)
        result = ANP(epochs=1, batch_size=32).run({"model": model, "clean": digits.first(64), "rng": generator(0)})
        assert torch.equal(result.body.auxiliary.weight, torch.ones(4))

    @pytest.mark.parametrize("steps", [1, 2])
    def test_noise_is_eps_times_the_sign_of_the_gradient_from_a_random_start(
        self, steps: int, suspect: Classifier, digits: Pool
    ) -> None:
        """By hand, with the noisy weights written into the model: dCE/dd = w dCE/d(w (1 + d))."""
        x, y = digits.images[:32], digits.labels[:32]
        masked = Masked(suspect)
        loss = adversarial(masked, 0.4, steps, 0.2, generator(5))(masked.model, x, y)

        noise = masked.uniform_noise(0.4, generator(5))
        assert all(n.abs().max() <= 0.4 for n in noise)
        originals = [p.detach() for layer in batchnorms(suspect).values() for p in (layer.weight, layer.bias)]
        for i in range(steps + 1):
            noisy = suspect.clone()
            changed = [p for layer in batchnorms(noisy).values() for p in (layer.weight, layer.bias)]
            with torch.no_grad():
                for p, n in zip(changed, noise, strict=True):
                    p.mul_(1 + n)
            worst = cross_entropy(noisy, x, y)
            gradients = torch.autograd.grad(worst, changed)
            if i < steps:
                step = 0.4 / steps
                noise = [n + step * (g * w).sign() for n, g, w in zip(noise, gradients, originals, strict=True)]
        by_hand = 0.2 * cross_entropy(suspect, x, y) + 0.8 * worst
        assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)

    def test_masks_follow_the_gradient_of_both_losses(self, suspect: Classifier, digits: Pool) -> None:
        """The noise is a constant in it: dL/dm = alpha w dCE/dw + (1 - alpha) w dCE/dw', both at m = 1."""
        x, y = digits.images[:32], digits.labels[:32]
        masked = Masked(suspect)
        found = list(masked.masks.values())
        loss = adversarial(masked, 0.4, 1, 0.2, generator(5))(masked.model, x, y)
        gradients = torch.autograd.grad(loss, found)
        plain = torch.autograd.grad(cross_entropy(masked.model, x, y), found)
        weights = [layer.weight for layer in batchnorms(suspect).values()]
        by_hand = torch.autograd.grad(cross_entropy(suspect, x, y), weights)
        for g, p, h, w in zip(gradients, plain, by_hand, weights, strict=True):
            assert torch.allclose(p, h * w, atol=1e-5)
            assert not torch.allclose(g, 0.2 * p, atol=1e-4)


class TestRNP:
    """Li et al. 2023, Eqs. 1 and 2."""

    def test_unlearning_ends_with_the_first_batch_that_is_not_known(self, suspect: Classifier, run: Run) -> None:
        """That batch takes no step: where none need be known, all weights stay as they were."""
        clean = run.pool("clean")
        at_once = RNP(unlearned=1.0).unlearn(suspect.clone(), clean, generator(0))
        assert all(torch.equal(p, q) for p, q in zip(at_once.parameters(), suspect.parameters(), strict=True))
        unlearned = RNP(unlearned=0.3).unlearn(suspect.clone(), clean, generator(0)).train()
        known = unlearned(clean.images).argmax(1) == clean.labels
        assert known.float().mean() <= 0.4
        assert accuracy(suspect, clean).value >= 0.95

    def test_recovery_is_learnt_by_masks_alone_and_prunes_the_original(
        self, suspect: Classifier, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[Classifier, dict[str, torch.Tensor]]] = []
        monkeypatch.setattr(rnp, "prune", lambda model, found, *args: seen.append((model, found)) or model)
        inputs = {"model": suspect, "clean": run.pool("clean"), "rng": generator(0)}
        result = RNP().run(inputs)
        assert all(torch.equal(v, result.state_dict()[k]) for k, v in suspect.state_dict().items())
        [(_, found)] = seen
        assert all(m.min() >= 0 and m.max() <= 1 for m in found.values())
        assert min(m.min() for m in found.values()) < 0.9


class TestCLP:
    """Zheng et al. 2022, Algorithm 1."""

    def test_the_bound_is_the_largest_singular_value_of_the_folded_kernel(self, suspect: Classifier) -> None:
        """BatchNorm folded into the convolution's weights, one output channel at a time."""
        conv, layer = suspect.body.conv2, suspect.body.bn2
        bounds = lipschitz_bounds(conv, layer)
        for c in range(len(bounds)):
            scale = layer.weight[c] / (layer.running_var[c] + layer.eps).sqrt()
            kernel = (conv.weight[c] * scale).detach().reshape(conv.in_channels, 9)
            assert bounds[c].item() == pytest.approx(torch.linalg.svdvals(kernel)[0].item(), rel=1e-4)

    def test_a_channel_far_above_its_layer_goes_and_no_other(self) -> None:
        model = make_tiny("small_cnn:width=16")
        nn.init.constant_(model.body.bn2.bias, 0.5)
        with torch.no_grad():
            model.body.conv2.weight[5] *= 20
        result = CLP().run({"model": model})
        gone = {name: (layer.weight == 0).nonzero().flatten().tolist() for name, layer in batchnorms(result).items()}
        assert gone == {"body.bn1": [], "body.bn2": [5], "body.bn3": []}
        assert (result.body.bn2.bias == 0).nonzero().flatten().tolist() == [5]

    def test_it_asks_for_nothing_but_the_model(self) -> None:
        assert CLP.wants() == ("model",)

    def test_batchnorm_that_follows_no_convolution_is_an_obstacle(self) -> None:
        body = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(256, 10))
        with pytest.raises(
            UsageError, match="clp needs BatchNorm layers that follow convolutions and keep a variance, and finds none"
        ):
            CLP().run({"model": Classifier(body, make_tiny().preprocessing)})


class TestNFT:
    """Karim et al. 2024."""

    def test_the_loss_is_mixup_and_what_holds_the_masks(self, suspect: Classifier, digits: Pool) -> None:
        x, y = digits.images[:32], digits.labels[:32]
        masked = Masked(suspect)
        with torch.no_grad():
            for mask in masked.masks.values():
                mask[0] = 0.25
        loss = mixed_up(masked, 0.01, generator(3))(masked.model, x, y)
        rng = generator(3)
        share, other = torch.rand((), generator=rng), torch.randperm(32, generator=rng)
        silenced = suspect.clone()
        with torch.no_grad():
            for layer in batchnorms(silenced).values():
                layer.weight[0] *= 0.25
        log = F.log_softmax(silenced((share * x + (1 - share) * x[other]) / 255), 1)
        wanted = share * F.one_hot(y, 10) + (1 - share) * F.one_hot(y[other], 10)
        by_hand = -(wanted * log).sum(1).mean() + 0.01 * 3 * 0.75
        assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)

    def test_each_layers_masks_stay_above_their_own_floor(self, suspect: Classifier, run: Run) -> None:
        """alpha exp(-beta l) in layer l, and 1 at most; with steps this large some reach each end."""
        result = NFT(lr=50.0, epochs=2).run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
        pairs = zip(batchnorms(result).values(), batchnorms(suspect).values(), strict=True)
        for depth, (after, before) in enumerate(pairs, start=1):
            mask = (after.weight / before.weight).detach()
            assert mask.min().item() == pytest.approx(0.8 * math.exp(-0.5 * depth), rel=1e-3)
            assert mask.max().item() == pytest.approx(1, rel=1e-3)

    def test_weights_stay_and_statistics_follow_the_clean_images(self, suspect: Classifier, run: Run) -> None:
        result = NFT(epochs=1).run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
        for name in ("conv1.weight", "bn1.bias", "linear.weight"):
            assert torch.equal(result.body.get_parameter(name), suspect.body.get_parameter(name))
        assert not torch.equal(result.body.bn1.running_mean, suspect.body.bn1.running_mean)

    def test_the_learning_rate_falls_from_five_to_two_hundredths(self) -> None:
        assert [NFT().lr * to_two_fifths(done) for done in (0, 0.5, 1)] == pytest.approx([0.05, 0.035, 0.02])


@pytest.mark.parametrize("cls", [FP, ANP, RNP])
def test_thresholds_are_judged_on_rows_that_nothing_was_tuned_on(
    cls: type[Defense], digits: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: set[str] = set()
    judged: set[str] = set()
    module = {FP: fp, ANP: anp, RNP: rnp}[cls]
    tune = module.tune
    monkeypatch.setattr(
        module, "tune", lambda model, pool, *args, **kw: tuned.update(pool.origin) or tune(model, pool, *args, **kw)
    )
    if cls is FP:
        features = fp.predict_features
        rows = {image.numpy().tobytes(): o for image, o in zip(digits.images, digits.origin, strict=True)}
        calls: list[set[str]] = []
        monkeypatch.setattr(
            fp,
            "predict_features",
            lambda model, images: calls.append({rows[i.numpy().tobytes()] for i in images}) or features(model, images),
        )
    else:
        monkeypatch.setattr(module, "prune", lambda model, _, held, *args: judged.update(held.origin) or model)
    cls.parse(cls.quick_options).run({"model": make_tiny(), "clean": digits.first(100), "rng": generator(0)})
    if cls is FP:
        ranked, judged = calls
        assert ranked == tuned
    assert len(tuned) == 80
    assert len(judged) == 20
    assert not tuned & judged


def assert_weaker(defense: Defense, suspect: Classifier, run: Run, *, most: float) -> None:
    """ASR falls to `most` at no more than five points of accuracy."""
    test = run.pool("test")
    triggered = run.trigger.on(test)
    result = defense.run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
    assert attack_rates(suspect, triggered, run.goal)[0].value >= 0.95
    assert attack_rates(result, triggered, run.goal)[0].value <= most
    assert accuracy(result, test).value >= accuracy(suspect, test).value - 0.05
