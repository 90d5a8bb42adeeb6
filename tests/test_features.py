"""The probe features: whom triggered images lie among, as a figure and as a map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import make_tiny

from bdaudit import api
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.probes.base import Backdoor, known_backdoor
from bdaudit.probes.features import Features, aligned, near_target, neighbours, project
from bdaudit.report.schema import Measurement
from bdaudit.runtime import generator
from bdaudit.testing import soundness
from bdaudit.training.metrics import predict_features

QUICK = Features.parse(Features.quick_options)


@pytest.fixture(scope="module")
def evidence(run: Run, suspect: Classifier) -> dict[str, Any]:
    """The run's own material; the reference stands in for a purified model without a backdoor."""
    assert run.reference_path is not None
    benign, test = run.pool("reserve"), run.pool("test")
    return {
        "suspect": suspect,
        "purified": api.load(run.reference_path, device="cpu").classifier,
        "benign": benign,
        "test": test,
        "backdoor": known_backdoor(run.trigger, run.goal, benign, test),
    }


def share(result: Measurement, subject: str, variant: str = "") -> float:
    [found] = [f for f in result.findings if (f.subject, f.variant) == (subject, variant)]
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    return found.value


def test_the_share_counts_images_nearest_to_the_centre_of_the_class_the_attacker_wants() -> None:
    """Images of that class itself do not count, and a class without images has no centre to be near to."""
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [torch.nan, torch.nan]])
    features = torch.tensor([[1.0, 0.0], [1.9, 5.0], [2.1, 0.0], [0.0, 0.0], [9.0, 9.0]])
    labels = torch.tensor([1, 1, 2, 0, UNKNOWN])
    rate = near_target(features, centres, labels, Goal(0, 3))
    assert (rate.successes, rate.n) == (2, 4)
    assert near_target(features, centres, labels, Goal(2, 3)).n == 0
    # All to all: 0 -> 1, 1 -> 2 (which has no centre), 2 -> 0.
    rate = near_target(features[:4], centres, labels[:4], Goal(None, 3))
    assert (rate.successes, rate.n) == (0, 2)


def test_features_are_what_goes_into_the_head(tiny: Classifier, digits: Pool) -> None:
    tiny.train()
    images = digits.images[:70]
    features = predict_features(tiny, images, batch_size=32)
    assert tiny.training
    tiny.eval()
    with torch.no_grad():
        torch.testing.assert_close(tiny.head(features), tiny(images))


def test_a_backdoor_shows_in_the_features_and_a_clean_model_has_none(evidence: dict[str, Any]) -> None:
    """Triggered images lie with the target class in the suspect, with their own in a model without a backdoor."""
    result = Features().run(evidence | {"rng": generator(0)})
    assert share(result, "suspect") >= 0.8
    assert share(result, "purified") <= 0.1
    assert share(result, "suspect", "clean images") <= 0.1
    assert soundness.measurement(result, "features") == ""
    assert any("reference" in note for note in result.notes)


def test_maps_show_the_images_that_the_figure_counts(evidence: dict[str, Any], run: Run) -> None:
    result = QUICK.run(evidence | {"reference": evidence["suspect"], "rng": generator(0)})
    before, after = result.exhibits
    for e in (before, after):
        clean, target, triggered = (len(places) for places in e.points.values())
        assert clean + target == 60
        assert triggered == 20
        assert list(e.points)[-1] == "triggered images"
        assert f"class {run.goal.target}, the target" in list(e.points)[1]
    assert before.points != after.points
    [clean_row] = [f for f in result.findings if f.subject == "suspect" and f.variant]
    assert clean_row.n == len(before.points["clean images of other classes"])
    assert share(result, "reference") == share(result, "suspect")
    assert not result.notes


def test_both_maps_have_the_same_axes() -> None:
    """What did not move between the models is at the same place on both maps, however far the rest moved."""
    rng = generator(0)
    clean = torch.randn(40, 6, generator=rng).double()
    triggered = torch.randn(10, 6, generator=rng).double()
    away = triggered + torch.tensor([0.0, 0, 0, 30, 0, 0])
    (before, after), _ = project([torch.cat([clean, triggered]), torch.cat([clean, away])], 40)
    torch.testing.assert_close(before[:40], after[:40])
    assert (after[40:] - before[40:]).norm(dim=1).min() > 20
    assert (before[40:].mean(0) >= 0).all()


def test_axes_are_principal_components_and_hold_the_variance_that_is_told() -> None:
    """Variances of 9, 4, 1 along known directions: the first two become the axes and hold 13/14."""
    rows = torch.randn(20_000, 3, generator=generator(0)).double() * torch.tensor([1.0, 3.0, 2.0])
    ([place], [kept]) = project([rows], 10_000)
    assert place.var(0).tolist() == pytest.approx([9, 4], rel=0.05)
    assert kept == pytest.approx(13 / 14, abs=0.01)


def test_models_are_compared_by_arrangement_and_not_by_offset_or_scale() -> None:
    """A body whose features are twice as long and lie elsewhere gives the same map."""
    rows = torch.randn(30, 5, generator=generator(0))
    torch.testing.assert_close(aligned(rows, 20), aligned(2 * rows + 7, 20), atol=1e-5, rtol=0)
    assert aligned(torch.ones(4, 3), 2).isfinite().all()


def test_features_of_another_width_get_axes_of_their_own(evidence: dict[str, Any]) -> None:
    other = make_tiny("small_cnn:width=4")
    result = QUICK.run(evidence | {"purified": other, "rng": generator(0)})
    assert len(result.exhibits) == 2
    assert "each model's own" in result.exhibits[0].caption
    assert "both maps have the same" not in result.exhibits[0].caption


def test_one_feature_is_a_map_as_well() -> None:
    """A network may end in a single number; its map is a line."""
    [place], [kept] = project([torch.arange(6.0).double()[:, None]], 3)
    assert place.shape == (6, 2)
    assert kept == pytest.approx(1)


def test_tsne_keeps_neighbours_together_and_depends_on_its_seed_alone() -> None:
    """Three far clusters in eight dimensions stay three; the state of global generators changes nothing."""
    centres = torch.randn(3, 8, generator=generator(1)) * 20
    rows = (centres.repeat_interleave(15, 0) + torch.randn(45, 8, generator=generator(2))).double()
    [start], _ = project([rows], 30)
    torch.manual_seed(1)
    first = neighbours(rows, start, 8, generator(0))
    torch.manual_seed(2)
    assert torch.equal(first, neighbours(rows, start, 8, generator(0)))
    between = torch.cdist(first, first).fill_diagonal_(torch.inf)
    assert (between.argmin(1) // 15 == torch.arange(45) // 15).all()


def test_tsne_is_drawn_on_request_whatever_the_number_of_images(evidence: dict[str, Any]) -> None:
    """A perplexity beyond what so few images allow is lowered, and the caption says what was used and what it means."""
    probe = Features.parse({**Features.quick_options, "projection": "tsne", "perplexity": "1000"})
    result = probe.run(evidence | {"rng": generator(0)})
    assert all("t-SNE (perplexity 26.3" in e.caption for e in result.exhibits)
    pca = QUICK.run(evidence | {"rng": generator(0)})
    assert result.findings == pca.findings
    assert [e.points.keys() for e in result.exhibits] == [e.points.keys() for e in pca.exhibits]


def test_flagged_images_do_and_what_they_cost_is_said(evidence: dict[str, Any]) -> None:
    """Without the trigger and without true labels the same is measured, on the flagged images."""
    known: Backdoor = evidence["backdoor"]
    flagged = Backdoor(known.goal, "flagged", known.reactivation.first(5), known.evaluation.first(30).labelled(UNKNOWN))
    result = Features().run(evidence | {"backdoor": flagged, "rng": generator(0)})
    assert share(result, "suspect") >= 0.8
    assert "30 triggered images (flagged images)" in result.exhibits[0].caption
    assert any("truly belong to the target class" in note for note in result.notes)


def test_without_clean_images_of_the_target_there_is_a_map_but_no_figure(evidence: dict[str, Any], run: Run) -> None:
    benign = evidence["benign"]
    others = benign.take(benign.labels != run.goal.target)
    result = QUICK.run(evidence | {"benign": others, "rng": generator(0)})
    assert not result.findings
    assert len(result.exhibits) == 2
    assert any("no clean image of the target class" in note for note in result.notes)


def test_all_to_all_backdoors_have_no_target_class_to_mark(evidence: dict[str, Any], run: Run) -> None:
    backdoor = known_backdoor(run.trigger, Goal(None, 10), evidence["benign"], evidence["test"])
    result = QUICK.run(evidence | {"backdoor": backdoor, "rng": generator(0)})
    assert [list(e.points) for e in result.exhibits] == [["clean images", "triggered images"]] * 2
    assert {f.subject for f in result.findings} == {"suspect", "purified"}


def test_features_that_are_not_finite_are_told_and_not_drawn(evidence: dict[str, Any]) -> None:
    broken = evidence["suspect"].clone()
    with torch.no_grad():
        broken.body.bn1.bias.fill_(3e38)
        broken.body.conv2.weight.fill_(1e3)
    result = QUICK.run(evidence | {"purified": broken, "rng": generator(0)})
    assert not result.exhibits
    assert any("not finite" in note for note in result.notes)
