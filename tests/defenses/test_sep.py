"""SEP: what each of its steps does, and that contaminated pools do not break it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import make_tiny
from torch.nn import functional as F

from bdaudit.defenses import sep
from bdaudit.defenses.pl import PL
from bdaudit.defenses.sep import SEP
from bdaudit.errors import MissingInput
from bdaudit.flow.run import Run
from bdaudit.flow.suspect import load
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.statistics import wilson
from bdaudit.runtime import generator
from bdaudit.training.loop import Recipe
from bdaudit.training.metrics import accuracy, attack_rates, predict_logits
from bdaudit.training.partition import partition
from bdaudit.training.progress import progress_shown
from benchmarks.ablation import VARIANTS

TARGET = 0


def contaminated(run: Run) -> dict[str, Any]:
    """About a tenth of both pools exchanged: triggered images among the benign ones, clean ones among the flagged."""
    clean, flagged = run.pool("reserve").shuffled(generator(3)), run.pool("flagged").labelled(TARGET)
    spare, kept = clean.split(8)
    hidden, malicious = flagged.split(30)
    return {
        "clean": Pool.concat([kept, hidden]),
        "malicious": Pool.concat([malicious, spare.labelled(TARGET)]),
        "target": TARGET,
    }


def test_the_last_step_tunes_the_suspect_on_both_pools_with_guessed_labels(
    digits: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the first-pass model, which only guesses; benign labels stay, no flagged image keeps the target."""
    seen: list[tuple[Classifier, Pool, Recipe]] = []

    def tune(model: Classifier, pool: Pool, recipe: Recipe, *_: Any, **__: Any) -> Classifier:
        seen.append((model, pool, recipe))
        return model

    monkeypatch.setattr(sep, "tune", tune)
    model, clean, malicious = make_tiny(), digits.first(96), digits.take(range(96, 120)).labelled(TARGET)
    given = {"model": model, "clean": clean, "malicious": malicious, "target": TARGET, "rng": generator(0)}
    SEP(screening=False, first_epochs=1).run(given)
    [(tuned, pool, recipe)] = seen
    assert all(torch.equal(t, tuned.state_dict()[k]) for k, t in model.state_dict().items())
    assert torch.equal(pool.images, torch.cat([clean.images, malicious.images]))
    assert torch.equal(pool.labels[:96], clean.labels)
    assert (pool.labels[96:] != TARGET).all()
    assert (recipe.epochs, recipe.lr, recipe.optimizer, recipe.schedule) == (20, 0.01, "sgd", "cosine")


def test_the_first_pass_is_pl_with_capped_ascent_on_the_screened_pools(
    suspect: Classifier, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(model: Classifier, clean: Pool, malicious: Pool, recipe: Recipe, *_: Any, **options: Any) -> Classifier:
        seen.append({"clean": clean, "malicious": malicious, "recipe": recipe, **options})
        return model

    monkeypatch.setattr(sep, "partition", watched)
    given = contaminated(run)
    SEP(epochs=1).run({"model": suspect, **given, "rng": generator(0)})
    [first] = seen
    assert (first["alpha"], first["cap"]) == (0.2, True)
    assert (first["recipe"].optimizer, first["recipe"].epochs, first["recipe"].lr) == ("adam", 10, 5e-4)
    assert len(first["clean"]) <= len(given["clean"]) - 28
    assert len(first["malicious"]) >= len(given["malicious"]) + 18


def test_capped_ascent_ends_at_log_k(digits: Pool) -> None:
    """Where every malicious loss is above log K, its gradient is nothing and only clean images teach."""
    model = make_tiny()
    malicious = digits.take(range(96, 128)).labelled(TARGET)
    model.head.bias.data[TARGET] = -20.0
    recipe = Recipe(epochs=1, lr=1e-3, batch_size=32, optimizer="adam", schedule="constant")
    tuned = [
        partition(model.clone(), digits.first(32), malicious, recipe, generator(0), alpha=a, cap=True, what="test")
        for a in (0.0, 0.5)
    ]
    assert F.cross_entropy(predict_logits(model, malicious.images), malicious.labels) > 10
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in tuned), strict=True))


def test_contaminated_pools_do_not_break_it_where_pl_fails(
    suspect: Classifier, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    given = contaminated(run)
    test = run.pool("test")
    triggered = run.trigger.on(test)
    with progress_shown():
        purified = SEP().run({"model": suspect, **given, "rng": generator(0)})
    by_pl = PL().run({"model": suspect, **given, "rng": generator(0)})
    asr, robust = attack_rates(purified, triggered, run.goal)
    assert "sep: the two pools can be told apart" in capsys.readouterr().err
    assert asr.value <= 0.05
    left = attack_rates(by_pl, triggered, run.goal)[0]
    assert wilson(left.successes, left.n)[0] > 0.05, "PL, by what SEP is held to, beyond chance"
    assert robust.value >= 0.7
    assert accuracy(purified, test).value >= accuracy(suspect, test).value - 0.05


def test_without_screening_it_fails_on_the_same_pools(suspect: Classifier, run: Run) -> None:
    """Triggered images labelled t among the benign ones teach the backdoor; the screening is what removes them."""
    triggered = run.trigger.on(run.pool("test"))
    unscreened = SEP(screening=False).run({"model": suspect, **contaminated(run), "rng": generator(0)})
    assert attack_rates(unscreened, triggered, run.goal)[0].value >= 0.15


def test_a_clean_model_with_innocent_flagged_images_comes_out_as_good(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of the target class that somebody flagged must not be unlearned; the user is told, even under --quiet."""
    assert run.reference_path is not None
    model, test = load(run.reference_path, device="cpu").classifier, run.pool("test")
    clean = run.pool("reserve")
    innocent = test.take(test.labels == TARGET)
    given = {"model": model, "clean": clean, "malicious": innocent, "target": TARGET, "rng": generator(0)}
    purified = SEP().run(given)
    assert accuracy(purified, test).value >= accuracy(model, test).value - 0.01
    assert accuracy(purified, innocent).value >= 0.95
    assert capsys.readouterr().err.startswith("warning: sep: flagged images look like any others of the target class")


def test_it_needs_the_target(suspect: Classifier, run: Run) -> None:
    """An all-to-all backdoor has none."""
    given = {"model": suspect, "clean": run.pool("clean"), "malicious": run.pool("flagged"), "rng": generator(0)}
    with pytest.raises(MissingInput, match="sep needs target"):
        SEP().run(given)


def quickly(name: str, suspect: Classifier, run: Run) -> Classifier:
    """Purify with one of the benchmark's variants, an epoch a pass."""
    defense = VARIANTS[name]
    quick = {k: 1 for k in ("epochs", "first_epochs") if getattr(defense, k)}
    return defense.model_copy(update=quick).run({"model": suspect, **contaminated(run), "rng": generator(0)})


@pytest.fixture(scope="module")
def unabridged(suspect: Classifier, run: Run) -> Classifier:
    return quickly("sep", suspect, run)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "sep" and "depth" not in n])
def test_each_ablation_differs_from_the_method(
    name: str, unabridged: Classifier, suspect: Classifier, run: Run
) -> None:
    """Every variant of benchmarks.ablation gives a model, and not the method's own; another depth may screen alike."""
    varied = quickly(name, suspect, run)
    assert not varied.training
    assert any(not torch.equal(t, varied.state_dict()[k]) for k, t in unabridged.state_dict().items())
