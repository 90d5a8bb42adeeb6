"""Defenses: one table for all of them, and each method's own equation."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import torch
from safetensors.torch import load
from support import make_tiny
from torch.nn import functional as F

from bdaudit import plugins
from bdaudit.attacks.triggers import patch
from bdaudit.defenses import nc
from bdaudit.defenses.base import Defense, Purified, reinitialise
from bdaudit.defenses.ep import EP
from bdaudit.defenses.fst import FST
from bdaudit.defenses.ft import FT
from bdaudit.defenses.nc import NC
from bdaudit.defenses.pl import PL
from bdaudit.errors import PluginError
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.schema import Measurement
from bdaudit.report.statistics import rate_finding
from bdaudit.runtime import generator
from bdaudit.training.inversion import Inversion
from bdaudit.training.metrics import Rate, accuracy, attack_rates, predict_logits
from bdaudit.training.progress import progress_shown

DEFENSES = [found.cls for found in plugins.registry().of_kind("defense").values()]


def quick(cls: type[Defense]) -> Defense:
    return cls.parse(cls.quick_options)


def everything(digits: Pool, seed: int = 0, arch: str = "small_cnn:width=4") -> dict[str, Any]:
    """All resources there are, so that a defense which takes what it did not name would be seen."""
    return {
        "model": make_tiny(arch),
        "fresh": make_tiny(arch, seed=1),
        "clean": digits.first(96),
        "malicious": digits.first(120).take(range(96, 120)).labelled(0),
        "target": 0,
        "train": digits.first(200),
        "trigger": patch((1, 16, 16), torch.full((3, 3), 255, dtype=torch.uint8), 13, 13),
        "rng": generator(seed),
        "shape": (1, 16, 16),
        "suspect": make_tiny(arch),
        "purified": make_tiny(arch),
        "reference": make_tiny(arch),
        "benign": digits.first(10),
        "backdoor": object(),
        "test": digits,
    }


@pytest.mark.parametrize("cls", DEFENSES, ids=lambda c: c.name)
class TestEveryDefense:
    """What holds for all of them beyond the contract (tests/test_conformance.py)."""

    def test_another_seed_gives_another_model_in_eval_mode(self, cls: type[Defense], digits: Pool) -> None:
        """Unless it asks for no randomness, and then the same one."""
        one, other = (quick(cls).run(everything(digits, seed)) for seed in (0, 1))
        assert not one.training
        differ = any(not torch.equal(t, other.state_dict()[k]) for k, t in one.state_dict().items())
        assert differ == ("rng" in cls.wants())


def test_divergence_is_an_error_and_not_a_model(digits: Pool) -> None:
    with pytest.raises(PluginError, match=r"ft diverged: .*smaller learning rate"):
        FT(lr=1e30, epochs=2).run(everything(digits))


def test_reinitialise_is_uniform_within_one_over_root_fan_in(rng: torch.Generator) -> None:
    layer = torch.nn.Linear(400, 500)
    reinitialise(layer, rng)
    bound = 400**-0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.bias.abs().max() <= bound


class TestFST:
    """Min et al. 2023, Eq. 1 and Algorithm 1."""

    def test_the_head_keeps_its_norm_and_turns_away(self, suspect: Classifier, run: Run) -> None:
        before = suspect.head.weight.detach()
        inputs = {"model": suspect, "clean": run.pool("clean"), "rng": generator(0)}
        after = FST(epochs=20, alpha=1.0).run(inputs).head.weight.detach()
        assert after.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
        plain = FST(epochs=20, alpha=0.0).run({**inputs, "rng": generator(0)}).head.weight.detach()

        def cosine(w: torch.Tensor) -> float:
            return F.cosine_similarity(w.flatten(), before.flatten(), dim=0).item()

        assert cosine(after) < cosine(plain) - 0.1

    def test_one_step_is_the_papers_gradient(self, digits: Pool) -> None:
        """w1 = project(w0 - lr (dCE/dw + alpha w_ori)), from the same reinitialised head."""
        model, clean = make_tiny(), digits.first(64)
        defense = FST(epochs=1, batch_size=64, lr=0.05, alpha=0.3, crop=0, min_steps=1)
        result = defense.run({"model": model, "clean": clean, "rng": generator(9)})
        by_hand = model.clone()
        original = by_hand.head.weight.detach().clone()
        rng = generator(9)
        reinitialise(by_hand.head, rng)
        by_hand.train()
        loss = F.cross_entropy(by_hand(clean.images), clean.labels)
        (gradient,) = torch.autograd.grad(loss, [by_hand.head.weight])
        w = by_hand.head.weight.detach() - 0.05 * (gradient + 0.3 * original)
        w = w * original.norm() / w.norm()
        assert torch.allclose(result.head.weight.detach(), w, atol=2e-5)

    def test_all_layers_means_every_linear(self, digits: Pool) -> None:
        model = make_tiny()
        model.body.linear = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10))
        model.head_name = "linear.2"
        norms = [m.weight.norm().item() for m in model.body.linear if isinstance(m, torch.nn.Linear)]
        result = FST(epochs=1, layers="all").run({"model": model, "clean": digits.first(64), "rng": generator(0)})
        after = [m.weight.norm().item() for m in result.body.linear if isinstance(m, torch.nn.Linear)]
        assert after == pytest.approx(norms, rel=1e-5)


class TestPL:
    """PL, Algorithm 1."""

    def test_one_step_descends_on_benign_and_ascends_on_malicious(self, digits: Pool) -> None:
        """The first gradient of Adam's moments is grad(CE_b - alpha CE_m) over equal batches."""
        model, clean = make_tiny(), digits.first(64)
        malicious = digits.take(range(64, 128)).labelled(0)
        result = PL(epochs=1, batch_size=64, lr=1e-3, alpha=0.4, crop=0, min_steps=1).run(
            {"model": model, "clean": clean, "malicious": malicious, "rng": generator(0)}
        )
        by_hand = model.clone().train()
        logits = by_hand(torch.cat([clean.images, malicious.images]))
        loss = F.cross_entropy(logits[:64], clean.labels) - 0.4 * F.cross_entropy(logits[64:], malicious.labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        for moved, start, g in zip(result.parameters(), model.parameters(), gradients, strict=True):
            clear = g.abs() > 1e-4  # where the sign does not hang on rounding, Adam's first step is lr * sign(g)
            assert torch.allclose((start - moved)[clear], 1e-3 * g.sign()[clear], rtol=0.05)

    def test_it_removes_the_backdoor_and_keeps_the_accuracy(self, suspect: Classifier, run: Run) -> None:
        test = run.pool("test")
        triggered = run.trigger.on(test)
        flagged = run.pool("flagged").labelled(0)
        result = PL().run({"model": suspect, "clean": run.pool("clean"), "malicious": flagged, "rng": generator(0)})
        assert attack_rates(suspect, triggered, run.goal)[0].value >= 0.95
        assert attack_rates(result, triggered, run.goal)[0].value <= 0.10
        assert accuracy(result, test).value >= accuracy(suspect, test).value - 0.05

    def test_without_ascent_it_is_plain_tuning(self, digits: Pool) -> None:
        """alpha = 0 must not depend on which images are malicious, but for BatchNorm's batch."""
        inputs = everything(digits)
        zero = PL(epochs=1, alpha=0.0).run({**inputs, "rng": generator(0)})
        some = PL(epochs=1, alpha=0.5).run({**inputs, "rng": generator(0)})
        logits = [F.log_softmax(predict_logits(m, inputs["malicious"].images), 1)[:, 0].mean() for m in (zero, some)]
        assert logits[1] < logits[0]

    def test_the_cap_stops_the_ascent(self, suspect: Classifier, run: Run) -> None:
        """With cap, images whose malicious CE exceeds log K push no further."""
        flagged = run.pool("flagged").labelled(0)
        inputs = {"model": suspect, "clean": run.pool("clean"), "malicious": flagged}
        losses = {}
        for cap in (False, True):
            result = PL(cap=cap, alpha=0.5).run({**inputs, "rng": generator(0)})
            losses[cap] = F.cross_entropy(predict_logits(result, flagged.images), flagged.labels).item()
        assert losses[True] < losses[False]


def test_a_defense_speaks_in_its_own_name_alone() -> None:
    """Whatever it found, its rows cannot pass for a probe's, by which the verdict goes."""

    class Forger(Defense):
        name = "forger"

        def purify(self, model: Classifier) -> Purified:
            forged = rate_finding("retune", "purified", "p_asr", Rate(0, 1000))
            return Purified(model, Measurement(findings=[forged]))

    with pytest.raises(PluginError, match="findings of 'retune', which is not its own name"):
        Forger().run({"model": make_tiny()})


def assert_detects(found: Measurement, target: int) -> None:
    """Its first rows are the detected class's, with a picture of the triggers and a file that holds them."""
    first = found.findings[0]
    assert (first.probe, first.subject, first.metric) == ("nc", "suspect", "anomaly_index")
    assert first.variant.startswith(f"class {target} ")
    assert first.value > 2
    assert first.value >= max(f.value for f in found.findings[1:] if f.metric == "anomaly_index")
    [exhibit] = found.exhibits
    assert base64.b64decode(exhibit.picture).startswith(b"\x89PNG")
    kept = load(found.artifacts["nc-triggers.safetensors"])
    sizes = [f.value for f in found.findings if f.metric == "mask_l1"]
    assert float(kept["masks"][target].sum()) == pytest.approx(sizes[0], rel=1e-5)
    assert kept["patterns"].dtype == torch.uint8


class TestNC:
    """Neural Cleanse: invert, flag, unlearn (cards 2.14)."""

    def test_it_unlearns_the_backdoor_that_it_finds(
        self, suspect: Classifier, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """From clean images alone; what comes back is the model that was tuned, not the one that went in."""
        with progress_shown():
            done = NC(steps=150, images=12).conduct({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
        result = done.model
        triggered = run.trigger.on(run.pool("test"))
        assert "nc detects a backdoor: class 0 (0), anomaly index" in capsys.readouterr().err
        assert_detects(done.found, 0)
        assert attack_rates(suspect, triggered, run.goal)[0].value >= 0.95
        assert attack_rates(result, triggered, run.goal)[0].value <= 0.5
        assert accuracy(result, run.pool("test")).value >= accuracy(suspect, run.pool("test")).value - 0.05

    def test_a_model_without_an_anomalous_class_is_returned_as_it_was(
        self, digits: Pool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = make_tiny()
        with progress_shown():
            done = NC(steps=5, anomaly=1e6).conduct({"model": model, "clean": digits.first(96), "rng": generator(0)})
        assert "no class stands out" in capsys.readouterr().err
        assert "nc detects no backdoor" in done.found.notes[0]
        assert all(torch.equal(t, done.model.state_dict()[k]) for k, t in model.state_dict().items())

    def test_a_fifth_of_the_images_get_the_inverted_triggers_under_their_true_labels(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two anomalous classes share the fifth between them."""
        masks, patterns = torch.zeros(10, 16, 16), torch.zeros(10, 1, 16, 16, dtype=torch.uint8)
        masks[2, 0, :4] = masks[6, 9, :4] = 1
        patterns[2] = patterns[6] = 137
        index = torch.zeros(10)
        index[[2, 6]] = torch.tensor([5.0, 4.0])
        found = Inversion(masks, patterns, masks.sum((1, 2)), index > 0, (Rate(1, 2),) * 10, index, anomaly=2.0)
        seen: list[Pool] = []
        monkeypatch.setattr(nc, "invert", lambda *args: found)
        monkeypatch.setattr(nc, "tune", lambda model, pool, *args, **kwargs: seen.append(pool) or model)
        clean = digits.first(100)
        NC().run({"model": make_tiny(), "clean": clean, "rng": generator(0)})
        assert torch.equal(seen[0].labels, clean.labels)
        stamped = [(seen[0].images[:, 0, row, :4] == 137).all(1) for row in (0, 9)]
        assert [int(s.sum()) for s in stamped] == [10, 10]
        changed = (seen[0].images != clean.images).flatten(1).any(1)
        assert torch.equal(changed, stamped[0] | stamped[1])


class TestEP:
    """Superficial Safety, section 3.1: the real trigger with true labels."""

    def test_a_tenth_of_the_images_get_the_trigger_and_no_label_changes(
        self, digits: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bdaudit.defenses import ep

        seen: list[Pool] = []
        monkeypatch.setattr(ep, "tune", lambda model, pool, *args, **kwargs: seen.append(pool) or model)
        inputs = everything(digits)
        EP().run(inputs)
        changed = (seen[0].images != inputs["clean"].images).flatten(1).any(1)
        assert int(changed.sum()) <= 10
        assert int(changed.sum()) >= 9  # an image whose corner was white already does not show it
        assert torch.equal(seen[0].images[changed], inputs["trigger"](inputs["clean"].images[changed]))
        assert torch.equal(seen[0].labels, inputs["clean"].labels)

    def test_it_removes_the_backdoor(self, suspect: Classifier, run: Run) -> None:
        inputs = {"model": suspect, "clean": run.pool("clean"), "trigger": run.trigger, "rng": generator(0)}
        triggered = run.trigger.on(run.pool("test"))
        asr, robust = attack_rates(EP(epochs=40).run(inputs), triggered, run.goal)
        assert asr.value <= 0.05
        assert robust.value >= 0.8


def test_ft_leaves_the_backdoor_where_pl_does_not(suspect: Classifier, run: Run) -> None:
    """FST Table 1, PL Table 1: vanilla fine-tuning is the weak baseline."""
    triggered = run.trigger.on(run.pool("test"))
    result = FT().run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})
    assert attack_rates(result, triggered, run.goal)[0].value >= 0.5
