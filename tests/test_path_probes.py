"""The probes that walk straight lines: LMC and the trajectory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import make_tiny
from torch import nn
from torch.nn import functional as F

from bdaudit.defenses.ep import EP
from bdaudit.defenses.fst import FST
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.probes.base import Backdoor, known_backdoor
from bdaudit.probes.lmc import LMC, barrier, passing
from bdaudit.probes.trajectory import HUGE, Trajectory
from bdaudit.report.schema import Measurement
from bdaudit.runtime import generator
from bdaudit.training.metrics import Rate, accuracy, attack_rates, predict_logits
from bdaudit.training.paths import between

QUARTERS = [0.0, 0.25, 0.5, 0.75, 1.0]


def rates(*successes: int) -> list[Rate]:
    return [Rate(k, 100) for k in successes]


def values(result: Measurement) -> dict[tuple[str, str, str], float]:
    return {(f.subject, f.variant, f.metric): f.value for f in result.findings}


@pytest.fixture(scope="module")
def evidence(suspect: Classifier, run: Run) -> dict[str, Any]:
    """What both probes may ask for: a superficially purified model, and the exactly purified one as reference."""
    benign, test, clean = (run.pool(name) for name in ("reserve", "test", "clean"))
    return {
        "suspect": suspect,
        "purified": FST(epochs=5, alpha=0.05).run({"model": suspect, "clean": clean, "rng": generator(0)}),
        "reference": EP().run({"model": suspect, "clean": clean, "trigger": run.trigger, "rng": generator(0)}),
        "benign": benign,
        "test": test,
        "backdoor": known_backdoor(run.trigger, run.goal, benign, test),
    }


def brighter(weight: list[list[float]]) -> Classifier:
    """Which of two pixels is brighter, through two hidden units: logits = W' ReLU(W x)."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor(weight))
        second.weight.copy_(torch.tensor(weight).T)
    pixels = Preprocessing(channels=1, height=1, width=2, mean=(0.0,), std=(1.0,))
    return Classifier(nn.Sequential(nn.Flatten(), first, nn.ReLU(), second), pixels).eval()


def by_hand(purified: Classifier, suspect: Classifier | None = None) -> dict[str, Any]:
    """Two pixels; the trigger makes the second the brighter one, which both models take for the target, class 1."""
    images = torch.tensor([[200, 100], [100, 200]] * 20, dtype=torch.uint8).reshape(40, 1, 1, 2)
    clean = Pool.of(images, [0, 1] * 20)
    triggered = Pool.of(images[1::2], [0] * 20)
    return {
        "suspect": suspect or brighter([[1.0, 0.0], [0.0, 1.0]]),
        "purified": purified,
        "benign": clean,
        "test": clean,
        "backdoor": Backdoor(Goal(1, 2), "trigger", triggered, triggered),
        "rng": generator(0),
    }


class TestFigures:
    def test_a_straight_line_has_no_barrier(self) -> None:
        assert barrier(QUARTERS, rates(100, 75, 50, 25, 0))[:2] == (0, 0)
        assert barrier(QUARTERS, rates(30, 30, 30, 30, 30))[:2] == (0, 0)

    def test_an_attack_that_lives_on_is_no_barrier(self) -> None:
        """Only error above the line counts."""
        assert barrier(QUARTERS, rates(100, 100, 100, 100, 0))[0] == 0

    def test_the_barrier_is_the_greatest_height_over_the_line(self) -> None:
        """Errors 0, .6, .7, .9, 1 stand .35, .2, .15 over the line; all that n images leave open is in the interval."""
        value, low, high = barrier(QUARTERS, rates(100, 40, 30, 10, 0))
        assert value == pytest.approx(0.35)
        assert 0.2 < low < value < high < 0.5
        many = barrier(QUARTERS, [Rate(100 * r.successes, 10_000) for r in rates(100, 40, 30, 10, 0)])
        assert many[2] - many[1] < 0.2 * (high - low)

    def test_an_interval_keeps_a_width_where_all_images_agree(self) -> None:
        _, low, high = barrier([0, 0.5, 1], rates(100, 0, 0))
        assert low < 0.5 < high

    def test_t_asr20_is_where_the_attack_returns_on_the_way_back(self) -> None:
        """Between .6 at t = .25 and .1 at t = .5 a fifth is reached at .45; what lies before does not matter."""
        for start in (0, 100):
            found = passing(QUARTERS, rates(start, 60, 10, 0, 0))
            assert found is not None
            value, low, high = found
            assert value == pytest.approx(0.45)
            assert 0.25 < low < value < high < 0.6

    def test_t_asr20_at_the_ends(self) -> None:
        """1 where the attack never stopped, nothing where it never started."""
        found = passing(QUARTERS, rates(100, 90, 80, 70, 60))
        assert found == (1.0, 1.0, 1.0)
        assert passing(QUARTERS, rates(10, 10, 0, 0, 0)) is None


class TestLMC:
    """Superficial Safety, section 4.1."""

    def test_exact_purification_leaves_the_backdoor_behind_sooner(self, evidence: dict[str, Any]) -> None:
        """The paper's contrast: on the way back ASR passes 20% soon after FST, and near the suspect after EP."""
        result = LMC(points=11, images=150).run(evidence | {"rng": generator(0)})
        figure = values(result)
        assert figure["purified", "from the suspect", "t_asr20"] > 0.5
        assert figure["reference", "from the suspect", "t_asr20"] < 0.3
        barriers = [figure[s, "from the suspect", "backdoor_barrier"] for s in ("reference", "purified")]
        assert barriers[0] > barriers[1] + 0.3
        assert figure["purified", "to the reference", "backdoor_barrier"] < 0.05
        assert all(f.low <= f.value <= f.high and f.n == 150 for f in result.findings)  # type: ignore[operator]

    def test_the_lines_meet_at_the_models_that_they_join(self, evidence: dict[str, Any]) -> None:
        """The same images at every point, so that one model has one error, whichever line it ends."""
        result = LMC(points=3, images=50).run(evidence | {"rng": generator(0)})
        for exhibit in result.exhibits:
            assert exhibit.x == [0, 0.5, 1]
            there, yardstick, on = (exhibit.curves[n] for n in ("purified", "reference", "purified to reference"))
            assert there[0] == yardstick[0]
            assert there[-1] == on[0]
            assert yardstick[-1] == on[-1]
        everything = LMC(points=3, images=10_000).run(evidence | {"rng": generator(0)})
        backdoor, clean = everything.exhibits
        asr, _ = attack_rates(evidence["suspect"], evidence["backdoor"].evaluation, evidence["backdoor"].goal)
        assert backdoor.curves["purified"][0] == 1 - asr.value
        assert clean.curves["purified"][-1] == 1 - accuracy(evidence["purified"], evidence["test"]).value

    def test_units_in_another_order_make_a_barrier(self) -> None:
        """Two networks that compute the same; halfway their units are alike, and nothing can be told apart."""
        permuted = brighter([[0.0, 1.0], [1.0, 0.0]])
        result = LMC(points=5).run(by_hand(permuted))
        [backdoor, clean] = [e.curves["purified"] for e in result.exhibits]
        assert clean == [0, 0, 0.5, 0, 0]
        assert backdoor == [0, 0, 1, 0, 0]
        figure = values(result)
        assert figure["purified", "from the suspect", "clean_barrier"] == 0.5
        assert figure["purified", "from the suspect", "backdoor_barrier"] == 1
        assert any("clean error rises by 50.0 points" in note for note in result.notes)

    def test_a_model_and_itself_have_no_barrier(self) -> None:
        result = LMC(points=5).run(by_hand(brighter([[1.0, 0.0], [0.0, 1.0]])))
        figure = values(result)
        assert figure["purified", "from the suspect", "clean_barrier"] == 0
        assert figure["purified", "from the suspect", "backdoor_barrier"] == 0
        assert figure["purified", "from the suspect", "t_asr20"] == 1
        assert not any("clean error" in note for note in result.notes)

    def test_no_t_is_made_up_where_the_attack_never_worked(self) -> None:
        inputs = by_hand(brighter([[1.0, 0.0], [0.0, 1.0]]))
        harmless = inputs["backdoor"].evaluation.with_images(inputs["test"].images[::2])
        inputs["backdoor"] = Backdoor(Goal(1, 2), "trigger", harmless, harmless)
        result = LMC(points=5).run(inputs)
        assert "t_asr20" not in {f.metric for f in result.findings}
        assert any("below 20% all along" in note for note in result.notes)

    def test_statistics_can_be_reestimated_all_along(self, evidence: dict[str, Any]) -> None:
        """A suspect whose BatchNorm statistics are off classifies again; the caption says which was done."""
        off = evidence["suspect"].clone()
        for name, buffer in off.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(1000)
        ends = {}
        for anew in (False, True):
            result = LMC(points=3, images=100, reestimate=anew).run(evidence | {"suspect": off, "rng": generator(0)})
            ends[anew] = result.exhibits[1].curves["purified"][0]
            assert ("re-estimated on clean images" in result.exhibits[0].caption) == anew
        assert ends[False] > 0.5
        assert ends[True] < 0.2

    def test_a_reference_of_another_architecture_is_told_and_left_out(self, evidence: dict[str, Any]) -> None:
        other = make_tiny("small_cnn:width=8")
        result = LMC(points=3, images=20).run(evidence | {"reference": other, "rng": generator(0)})
        assert {f.subject for f in result.findings} == {"purified"}
        notes = [n for n in result.notes if "their architectures differ" in n]
        assert [n.partition(":")[2].partition(":")[0] for n in notes] == [
            " no straight line reference from the suspect",
            " no straight line purified to the reference",
        ]

    def test_a_purified_model_of_another_architecture_gives_notes_and_no_figures(
        self, evidence: dict[str, Any]
    ) -> None:
        inputs = evidence | {"purified": make_tiny("small_cnn:width=8"), "reference": None, "rng": generator(0)}
        for probe in (LMC(points=3, images=20), Trajectory(steps=1, images=20)):
            result = probe.run(inputs)
            assert not result.findings
            assert not result.exhibits
            assert any("their architectures differ" in note for note in result.notes)


class TestTrajectory:
    """D3, section 3.2 and Figure 2."""

    def test_losses_and_rates_are_those_of_the_models_on_the_way(self, evidence: dict[str, Any]) -> None:
        """Clean loss CE(f(x), y), backdoor loss CE(f(trigger(x)), target); 0 the suspect, 1 the purified model."""
        result = Trajectory(steps=2, images=10_000).run(evidence | {"rng": generator(0)})
        losses, shares = result.exhibits
        assert losses.x == [0, 0.5, 1, 1, 1.5, 2]
        test, backdoor = evidence["test"], evidence["backdoor"]
        triggered = backdoor.evaluation
        for place, model in ((0, evidence["suspect"]), (2, evidence["purified"])):
            clean = F.cross_entropy(predict_logits(model, test.images), test.labels).item()
            attack = F.cross_entropy(
                predict_logits(model, triggered.images), backdoor.goal.wanted(triggered.labels)
            ).item()
            assert losses.curves["clean loss"][place] == pytest.approx(clean, rel=1e-4)
            assert losses.curves["backdoor loss"][place] == pytest.approx(attack, rel=1e-4)
            assert shares.curves["clean accuracy"][place] == accuracy(model, test).value
            assert shares.curves["attack success"][place] == attack_rates(model, triggered, backdoor.goal)[0].value

    def test_to_go_on_past_a_superficial_purification_lowers_asr(self, evidence: dict[str, Any]) -> None:
        """D3's observation, with its interval; the change is counted between re-estimated and re-estimated."""
        residual = between(evidence["suspect"], evidence["purified"], 0.85, generator(0))
        result = Trajectory(steps=2).run(evidence | {"purified": residual, "rng": generator(0)})
        figure = {(f.variant, f.metric): f for f in result.findings}
        how = ", BatchNorm re-estimated"
        change = figure[f"t = 2{how}", "asr_change"]
        assert change.value == figure[f"t = 2{how}", "asr"].value - figure[f"t = 1{how}", "asr"].value
        assert change.high is not None
        assert change.high < -0.05
        assert ("t = 1", "asr") in figure
        assert ("t = 1", "c_acc") in figure

    def test_without_batchnorm_there_is_no_step(self) -> None:
        """Nothing to re-estimate: t = 1 comes once, and one clean image for it is enough."""
        end = brighter([[1.0, 0.5], [0.5, 1.0]])
        result = Trajectory(steps=2).run(by_hand(end) | {"benign": by_hand(end)["benign"].first(1)})
        assert result.exhibits[0].x == [0, 0.5, 1, 1.5, 2]
        assert {f.variant for f in result.findings} == {"t = 1", "t = 2"}
        # W(2) = [[1, 1], [1, 1]]: both classes get the same logits, and the first is taken.
        assert result.exhibits[1].curves["clean accuracy"] == [1, 1, 1, 1, 0.5]
        assert values(result)["purified", "t = 2", "asr_change"] == -1

    def test_one_clean_image_is_too_few_for_batchnorm(self, evidence: dict[str, Any]) -> None:
        result = Trajectory(steps=1, images=20).run(
            evidence | {"benign": evidence["benign"].first(1), "rng": generator(0)}
        )
        assert not result.findings
        assert any("too few clean images (1)" in note for note in result.notes)

    def test_weights_that_overflow_give_finite_losses(self) -> None:
        """A report holds no infinities: the worst that can be said is said."""
        result = Trajectory(steps=1).run(by_hand(brighter([[3e30, 0.0], [0.0, 3e30]])))
        assert max(result.exhibits[0].curves["clean loss"]) == HUGE


@pytest.mark.parametrize(
    ("source", "labels", "said", "unsaid"),
    [
        ("trigger", 3, "attacker's own trigger on 100 images: a rate is known to within 9.6 points", "unknown"),
        ("flagged", UNKNOWN, "images that truly belong to the target class would count", "attacker"),
        ("flagged", 3, "trigger is unknown, 100 flagged images", "truly belong"),
        ("inverted", 3, "a proxy", "unknown"),
    ],
)
def test_a_probe_says_what_it_had_and_what_that_costs(
    digits: Pool, source: Any, labels: int, said: str, unsaid: str
) -> None:
    rows = digits.first(100).labelled(labels)
    text = Backdoor(Goal(0, 10), source, rows, rows).certainty(100)
    assert said in text
    assert unsaid not in text
    for probe in (LMC(points=3, images=100), Trajectory(steps=1, images=100)):
        models = {"suspect": make_tiny(), "purified": make_tiny(seed=1)}
        backdoor = Backdoor(Goal(0, 10), source, rows, rows)
        given = {"benign": digits.first(20), "test": digits.first(50), "backdoor": backdoor, "rng": generator(0)}
        assert f"{probe.name}: {text}" in probe.run(models | given).notes
