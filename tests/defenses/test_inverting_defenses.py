"""Defenses that unlearn reversed triggers: BTI-DBF, PAM and BTI+SAM."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load
from support import make_tiny
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit import api
from bdaudit.defenses import base, bti_sam, inverting, pam
from bdaudit.defenses.base import Defense
from bdaudit.defenses.bti_dbf import BTIDBF, unlearning
from bdaudit.defenses.bti_sam import BTISAM
from bdaudit.defenses.pam import PAM
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.report.schema import Measurement
from bdaudit.runtime import generator
from bdaudit.training.bti import Generator, Reversed, reverse
from bdaudit.training.loop import Loss, Recipe
from bdaudit.training.metrics import Rate, accuracy, attack_rates
from bdaudit.training.path_aware import path_aware
from bdaudit.training.progress import progress_shown
from bdaudit.training.sam import Sam
from bdaudit.training.split import Split


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A backdoored network with features to spare.

    In the narrow one of `suspect`, digits need the very features that the backdoor uses, and BTI cannot part them.
    """
    return api.attack(
        "badnets",
        data="digits",
        out=tmp_path_factory.mktemp("runs") / "roomy",
        arch="small_cnn:width=48",
        options={"rate": 0.1},
        epochs=8,
        seed=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def found(roomy: Run) -> Reversed:
    suspect = api.load(roomy.model_path, device="cpu").classifier
    how = replace(BTIDBF().reversal(), mask_steps=250, steps=100)
    return reverse(suspect, roomy.pool("clean"), how, generator(0))


def test_the_reversed_trigger_leads_to_the_runs_target(roomy: Run, found: Reversed) -> None:
    suspect, images = api.load(roomy.model_path, device="cpu").classifier, roomy.pool("test").spread(200).images
    assert found.target == roomy.goal.target
    assert found.rate.value >= 0.9
    with torch.no_grad():
        poisoned = found.generator(images)
        assert (suspect(poisoned).argmax(1) == roomy.goal.target).float().mean() >= 0.9
        assert ((poisoned - images / 255) / suspect.std).square().mean() <= 2 * 0.3


def assert_found(reported: Measurement, found: Reversed, suspect: Classifier, name: str) -> None:
    """The detected target, and a file from which the generator can be made again."""
    [row] = reported.findings
    assert (row.probe, row.metric, row.value) == (name, "reversed_share", found.rate.value)
    assert row.variant.startswith(f"class {found.target} ")
    again = Generator(suspect, BTIDBF().generator_width)
    again.load_state_dict(load(reported.artifacts[f"{name}-generator.safetensors"]))
    pixels = torch.rand(3, *suspect.preprocessing.shape)
    with torch.no_grad():
        assert torch.equal(again(pixels), found.generator(pixels))


@pytest.mark.parametrize("defense", [BTIDBF(rounds=1, epochs=20, lr=1e-3), PAM(rounds=1, epochs=20, rho=0.3)])
def test_unlearning_it_removes_the_real_backdoor(
    defense: Defense, roomy: Run, found: Reversed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images with the attacker's own trigger get their true classes back, and clean ones keep theirs."""
    monkeypatch.setattr(inverting, "reverse", lambda *args: found)
    suspect, test = api.load(roomy.model_path, device="cpu").classifier, roomy.pool("test").spread(400)
    triggered = roomy.trigger.on(test)
    assert attack_rates(suspect, triggered, roomy.goal)[0].value >= 0.95
    done = defense.conduct({"model": suspect, "clean": roomy.pool("clean"), "rng": generator(0)})
    result = done.model
    assert_found(done.found, found, suspect, defense.name)
    asr, robust = attack_rates(result, triggered, roomy.goal)
    assert asr.value <= 0.10
    assert robust.value >= 0.8
    assert accuracy(result, test).value >= 0.9


def test_bti_unlearns_with_true_labels_and_holds_the_features(digits: Pool) -> None:
    """CE(f(x'), y) + MSE(g(x), g(x')) over the whole batch."""
    model = make_tiny()
    x, y = digits.images[:16], digits.labels[:16]
    found = Reversed(Generator(model, 4), 0, Rate(1, 1))
    split, mixed = Split(model), found.mix(x, 0.25)
    by_hand = F.cross_entropy(model(mixed), y) + F.mse_loss(split.features(x), split.features(mixed))
    assert unlearning(split, found, 0.25)(model, x, y).item() == pytest.approx(by_hand.item(), rel=1e-4)


def two_weights(w: list[float]) -> Classifier:
    """Logits w * pixel, for two classes."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model = Classifier(body, Preprocessing(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,)))
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor(w)[:, None])
    return model


@pytest.mark.parametrize(
    ("rho", "shifted"),
    [(0.5, [1.3, -0.4]), (5.0, [1.0, 0.0]), (99.0, [1.0, 0.0])],
    ids=["on the path", "its end", "no further than its end"],
)
def test_pams_gradient_is_taken_on_the_path_back(rho: float, shifted: list[float]) -> None:
    """W0 = (1, 0), W = (1.6, -.8), distance 1: at rho .5 the gradient is that at (1.3, -.4), by hand."""
    model = two_weights([1.6, -0.8])
    origin = {"body.1.weight": torch.tensor([[1.0], [0.0]])}
    x, y = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1), torch.tensor([1, 0])
    loss = path_aware(origin, rho)(model, x, y)
    (gradient,) = torch.autograd.grad(loss, [model.head.weight])

    w = torch.tensor(shifted)
    probabilities = (x.flatten()[:, None] * w).softmax(1)
    by_hand: Tensor = ((probabilities - F.one_hot(y, 2)) * x.flatten()[:, None]).mean(0)
    assert torch.allclose(gradient.flatten(), by_hand, atol=1e-6)
    assert model.head.weight.flatten().tolist() == pytest.approx([1.6, -0.8])


def test_pams_first_step_starts_where_the_path_does() -> None:
    """At W = W0 nothing is shifted (and nothing is divided by zero)."""
    model = two_weights([1.0, 0.0])
    origin = {"body.1.weight": model.head.weight.detach().clone()}
    x, y = torch.ones(2, 1, 1, 1), torch.tensor([1, 0])
    loss = path_aware(origin, 0.5)(model, x, y)
    assert loss.item() == pytest.approx(F.cross_entropy(model(x), y).item())


def test_pam_tunes_batchnorms_statistics_but_does_not_move_them_along_the_path(digits: Pool) -> None:
    """One step's running mean is that of the shifted model's batch, from where W's own was."""
    model = make_tiny().train()
    origin = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    by_hand = model.clone()
    with torch.no_grad():
        for name, p in by_hand.named_parameters():
            p.copy_(origin[name])
    x, y = digits.images[:16], digits.labels[:16]
    path_aware(origin, 99.0)(model, x, y)
    by_hand(x)
    for (name, b), expected in zip(model.named_buffers(), by_hand.buffers(), strict=True):
        assert torch.allclose(b.float(), expected.float(), atol=1e-5), name


@pytest.mark.parametrize(
    ("judged_by", "rho", "tries"),
    [("estimate", "0.3, held-out accuracy 0.770", 5), ("bound", "0.5, held-out accuracy 0.750", 4)],
)
def test_pam_takes_the_largest_step_that_keeps_the_accuracy(
    judged_by: str,
    rho: str,
    tries: int,
    digits: Pool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Held-out accuracy .80, then .60 at rho .9, .70 at .7, .75 at .5, .77 at .3: .5 is not shown to cost over three.

    At .7 twelve images are lost and two won, whose one-sided 95% bound is a fall of 3.6 points (two-sided: 2.4).
    """
    hits = iter([range(80), range(60), range(12, 82), range(75), range(77)])
    rows: list[set[str]] = []

    def accuracy_of(model: Classifier, pool: Pool) -> Rate:
        rows.append(set(pool.origin))
        return Rate.of(torch.isin(torch.arange(100), torch.tensor([*next(hits)])))

    def trained_on(model: Classifier, pool: Pool, *args: object, **kwargs: object) -> Classifier:
        assert not rows[0] & set(pool.origin)
        return model

    monkeypatch.setattr(base, "accuracy", accuracy_of)
    monkeypatch.setattr(pam, "tune", trained_on)
    with progress_shown():
        PAM.parse({**PAM.quick_options, "rounds": 1, "judged_by": judged_by}).run(
            {"model": make_tiny(), "clean": digits.first(100), "rng": generator(0)}
        )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pam: rho {rho}")
    assert [len(r) for r in rows] == [20] * tries


def test_bti_sam_tunes_on_the_mixed_batches(digits: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain cross-entropy of the mix, under ordinary SAM."""
    x, y = digits.images[:16], digits.labels[:16]
    found = Reversed(Generator(make_tiny(), 4), 0, Rate(1, 1))
    seen: list[float] = []

    def look(model: Classifier, pool: Pool, recipe: Recipe, rng: object, *, loss: Loss, what: str) -> Classifier:
        assert recipe.sam == Sam(0.3, adaptive=False)
        seen.append(loss(model, x, y).item() - F.cross_entropy(model(found.mix(x, 0.2)), y).item())
        return model

    monkeypatch.setattr(inverting, "reverse", lambda *args: found)
    monkeypatch.setattr(bti_sam, "tune", look)
    BTISAM(rho=0.3).run({"model": make_tiny(), "clean": digits.first(64), "rng": generator(0)})
    assert seen == pytest.approx([0.0, 0.0])
