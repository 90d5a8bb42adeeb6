"""Probes: one table for all of them, and what each attack on a purified model is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch.nn import functional as F

from bdaudit import plugins
from bdaudit.defenses.fst import FST
from bdaudit.errors import OptionError
from bdaudit.flow.run import Run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool, overlap
from bdaudit.probes import base
from bdaudit.probes.base import Backdoor, Probe, known_backdoor, null_triggers, retuned
from bdaudit.probes.qra import QRA
from bdaudit.probes.queries import Course, Generator, Perturbations, longest_gain
from bdaudit.probes.retune import Retune
from bdaudit.probes.transfer import Transfer
from bdaudit.report.controls import controls_of
from bdaudit.report.schema import Measurement, Policy, is_artifact
from bdaudit.report.verdict import judge
from bdaudit.runtime import generator
from bdaudit.training.augment import Augment
from bdaudit.training.loop import Recipe
from bdaudit.training.metrics import attack_rates, predict_logits

PROBES = [found.cls for found in plugins.registry().of_kind("probe").values()]
REACTIVATING = [cls for cls in PROBES if cls.name in ("retune", "qra")]
CONTROLLED = [cls for cls in PROBES if "reference" in cls.wants()]


def quick(cls: type[Probe]) -> Probe:
    return cls.parse(cls.quick_options)


@pytest.fixture(scope="module")
def purified(suspect: Classifier, run: Run) -> Classifier:
    return FST().run({"model": suspect, "clean": run.pool("clean"), "rng": generator(0)})


@pytest.fixture(scope="module")
def evidence(suspect: Classifier, purified: Classifier, run: Run) -> dict[str, Any]:
    from bdaudit import api

    benign, test = run.pool("reserve"), run.pool("test")
    assert run.reference_path is not None
    return {
        "suspect": suspect,
        "purified": purified,
        "reference": api.load(run.reference_path, device="cpu").classifier,
        "others": {"another": suspect},
        "clean": run.pool("clean"),
        "benign": benign,
        "test": test,
        "backdoor": known_backdoor(run.trigger, run.goal, benign, test),
    }


@pytest.mark.parametrize("cls", PROBES, ids=lambda c: c.name)
class TestEveryProbe:
    """What holds for all of them beyond the contract (tests/test_conformance.py)."""

    def test_it_works_from_flagged_images_whose_classes_nobody_knows(
        self, cls: type[Probe], evidence: dict[str, Any]
    ) -> None:
        known: Backdoor = evidence["backdoor"]
        rows, held_out = (p.labelled(UNKNOWN) for p in (known.reactivation, known.evaluation))
        flagged = Backdoor(known.goal, "flagged", rows.first(10), held_out.first(30))
        result = quick(cls).run(evidence | {"backdoor": flagged, "rng": generator(0)})
        assert any(f.subject == "purified" for f in result.findings)

    def test_only_what_reactivates_weighs_in_the_verdict(self, cls: type[Probe], evidence: dict[str, Any]) -> None:
        """A probe that brings nothing back reports no P-ASR, and leaves every check of the verdict as it was."""
        rows = quick(cls).run(evidence | {"rng": generator(0)}).findings
        weighs = any(f.metric == "p_asr" for f in rows)
        assert weighs == (cls in REACTIVATING)
        policy = Policy(require=[])
        if not weighs:
            assert judge(rows, policy) == judge([], policy)
            assert controls_of(rows, cls.name) == ([], [], [])


@pytest.mark.parametrize("cls", REACTIVATING, ids=lambda c: c.name)
def test_p_asr_is_reported_for_the_purified_model_with_an_interval(cls: type[Probe], evidence: dict[str, Any]) -> None:
    result = quick(cls).run(evidence | {"rng": generator(0)})
    [row] = [f for f in result.findings if (f.subject, f.metric) == ("purified", "p_asr")]
    assert row.probe == cls.name
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.value <= row.high
    assert row.n == len(evidence["backdoor"].evaluation)


@pytest.mark.parametrize("cls", CONTROLLED, ids=lambda c: c.name)
def test_a_reference_is_measured_where_there_is_one_and_its_absence_told(
    cls: type[Probe], evidence: dict[str, Any]
) -> None:
    result = quick(cls).run(evidence | {"rng": generator(0)})
    assert any(f.subject == "reference" for f in result.findings)
    result = quick(cls).run(evidence | {"rng": generator(0), "reference": None})
    assert not any(f.subject == "reference" for f in result.findings)
    assert any("reference" in note for note in result.notes)


class TestRetuning:
    """Superficial Safety, section 3.2 and B.2."""

    def test_poisoned_rows_replace_benign_ones_and_are_not_augmented(
        self, digits: Pool, tiny: Classifier, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[Pool, Recipe]] = []
        monkeypatch.setattr(base, "tune", lambda model, pool, recipe, *a, **k: seen.append((pool, recipe)) or model)
        poison = digits.first(5).labelled(7)
        retuned(tiny, digits.take(range(100, 200)), poison, Recipe(epochs=1, lr=0.1, augment=Augment(pad=2)), rng)
        [(pool, recipe)] = seen
        assert len(pool) == 100
        assert torch.equal(pool.images[-5:], poison.images)
        assert pool.labels[-5:].tolist() == [7] * 5
        assert pool.labels[:-5].tolist() == digits.labels[105:200].tolist()
        # Each benign image keeps one augmented view: the loop itself augments no more.
        assert not torch.equal(pool.images[:-5], digits.images[105:200])
        assert recipe.augment == Augment()

    def test_a_superficial_purification_is_found_out_and_a_clean_model_is_not(self, evidence: dict[str, Any]) -> None:
        """Few poisoned images bring the backdoor of a barely tuned model back, and teach a clean model nothing."""
        inputs = {"model": evidence["suspect"], "clean": evidence["clean"], "rng": generator(0)}
        residual = FST(epochs=5, alpha=0.05).run(inputs)
        asr, _ = attack_rates(residual, evidence["backdoor"].evaluation, evidence["backdoor"].goal)
        assert asr.value <= 0.1
        result = Retune(draws=2, poisoned=10).run(evidence | {"purified": residual, "rng": generator(0)})
        figure = {(f.subject, f.metric, f.variant): f for f in result.findings}
        assert figure["purified", "p_asr", ""].value >= 0.4
        assert figure["reference", "p_asr", ""].value <= 0.2
        assert figure["purified", "p_asr", ""].seeds == 2
        assert figure["purified", "p_c_acc", ""].value >= 0.8

    def test_a_pool_sorted_by_class_is_not_retuned_on_half_its_classes(
        self, evidence: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Folders are read class by class; the first rows of one are no fair sample."""
        from bdaudit.probes import retune

        seen: list[Pool] = []
        real = retune.retuned

        def spy(model: Classifier, benign: Pool, *args: Any, **kwargs: Any) -> Classifier:
            seen.append(benign)
            return real(model, benign, *args, **kwargs)

        monkeypatch.setattr(retune, "retuned", spy)
        benign = evidence["benign"]
        in_order = benign.take(benign.labels.argsort())
        Retune(draws=1, epochs=1, benign_size=100).run(evidence | {"benign": in_order, "rng": generator(0)})
        assert all(len(pool) == 100 and len(pool.labels.unique()) == 10 for pool in seen)

    def test_the_curve_starts_before_retuning(self, evidence: dict[str, Any]) -> None:
        result = Retune(draws=1, epochs=3).run(evidence | {"rng": generator(0)})
        [curve] = result.exhibits
        assert curve.x == [0, 1, 2, 3]
        assert {"purified", "reference", "null: patch", "null: noise", "null: stripes"} == set(curve.curves)
        assert all(len(ys) == 4 for ys in curve.curves.values())

    @pytest.mark.parametrize(
        ("attack", "classes", "options", "expected"),
        [
            ("badnets", 10, {}, 5),
            ("blended", 10, {}, 1),
            ("blended", 100, {}, 10),
            ("ssba", 10, {}, 10),
            ("", 10, {}, 5),
            ("blended", 10, {"poisoned": 7}, 7),
            ("badnets", 10, {"preset": "blended"}, 1),
            ("badnets", 200, {"preset": "ssba"}, 35),
        ],
    )
    def test_the_count_is_the_papers_for_the_attack(
        self, digits: Pool, attack: str, classes: int, options: dict[str, Any], expected: int
    ) -> None:
        """B.2: CIFAR-10 BadNets 5, Blended 1, SSBA 10; CIFAR-100 and Tiny 25, 10, 35; unknown ones as BadNets."""
        backdoor = Backdoor(Goal(0, classes), "trigger", digits.first(9), digits.first(9), attack)
        assert Retune.parse(options).count(backdoor, 1000) == expected
        assert Retune.parse(options).count(backdoor, 2) == 1

    def test_an_unknown_preset_is_named(self) -> None:
        with pytest.raises(OptionError, match="auto or one of badnets, blended, ssba, lc"):
            Retune.parse({"preset": "blend"})

    def test_the_excess_over_each_control_comes_with_an_interval(self, evidence: dict[str, Any]) -> None:
        result = quick(Retune).run(evidence | {"rng": generator(0)})
        rows = {f.variant: f for f in result.findings if f.metric == "excess"}
        assert set(rows) == {"over reference", "over patch", "over noise", "over stripes"}
        p_asr = {f.subject: f.value for f in result.findings if f.metric == "p_asr" and not f.variant}
        assert rows["over reference"].value == pytest.approx(p_asr["purified"] - p_asr["reference"])
        assert all(f.low is not None and f.high is not None and f.low <= f.value <= f.high for f in rows.values())

    def test_null_triggers_come_from_several_families_and_differ_from_the_real_one(self, run: Run) -> None:
        nulls = null_triggers((1, 16, 16), generator(0))
        again = null_triggers((1, 16, 16), generator(0))
        assert len(nulls) >= 3
        digests = {t.digest() for t in nulls.values()}
        assert len(digests | {run.trigger.digest()}) == len(nulls) + 1
        assert digests == {t.digest() for t in again.values()}

    def test_null_backdoors_never_use_images_of_the_target(self, digits: Pool) -> None:
        trigger = null_triggers((1, 16, 16), generator(0))["patch"]
        null = known_backdoor(trigger, Goal(3, 10), digits.first(500), digits.take(range(500, 900)))
        assert not (null.reactivation.labels == 3).any()
        assert (null.draw(10, generator(0)).labels == 3).all()


class TestQRA:
    """Superficial Safety, section 3.3, Eq. 2."""

    def test_perturbations_stay_in_the_budget_and_in_the_image(self, digits: Pool, tiny: Classifier) -> None:
        torch.manual_seed(0)
        made = Generator((1, 16, 16), 64, 3, 16 / 255)
        x = digits.images[:50].float() / 255
        out = made(x, tiny.normalise(x))
        assert (out - x).abs().max() <= 16 / 255 + 1e-6
        assert out.min() >= 0
        assert out.max() <= 1

    def test_depth_counts_linear_layers(self) -> None:
        for depth in (2, 3, 4):
            made = Generator((1, 4, 4), 8, depth, 0.1)
            assert sum(isinstance(m, torch.nn.Linear) for m in made.mlp) == depth
            assert isinstance(made.mlp[-1], torch.nn.Tanh)

    def test_training_lowers_the_divergence_of_eq_1(self, evidence: dict[str, Any]) -> None:
        """The perturbed purified model comes to answer like the retuned one, without being retuned."""
        backdoor: Backdoor = evidence["backdoor"]
        purified, suspect = evidence["purified"], evidence["suspect"]
        mixed = Pool.concat([evidence["benign"].first(100), backdoor.reactivation.first(100)])
        target = predict_logits(suspect, mixed.images).log_softmax(1)
        course = Course(QRA(hidden=256), 0.05, suspect.clone(), purified.clone(), None, mixed, 0)

        def divergence() -> float:
            logits = predict_logits(purified, course.made(mixed.images))
            return F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean").item()

        course.run(1)
        before = divergence()
        course.run(29)
        assert divergence() < 0.8 * before

    @pytest.mark.parametrize("weighting", ["paper", "released"])
    def test_the_loss_is_eq_2(self, evidence: dict[str, Any], weighting: str) -> None:
        """KL + alpha CE in the paper, alpha KL + CE in the released code; unknown labels count in the first term."""
        backdoor: Backdoor = evidence["backdoor"]
        purified, reference, suspect = (evidence[n].clone() for n in ("purified", "reference", "suspect"))
        mixed = Pool.concat([evidence["benign"].first(8), backdoor.reactivation.first(8).labelled(UNKNOWN)])
        course = Course(QRA(alpha=0.3, hidden=32, weighting=weighting), 0.1, suspect, purified, reference, mixed, 0)
        x = mixed.images.float() / 255
        perturbed = course.made.generator(x, purified.normalise(x))
        p = suspect(x).softmax(1)
        divergence = (p * (p.log() - purified(perturbed).log_softmax(1))).sum(1).mean()
        against = -reference(perturbed[:8]).log_softmax(1).gather(1, mixed.labels[:8, None]).mean()
        expected = divergence + 0.3 * against if weighting == "paper" else 0.3 * divergence + against
        assert course._loss(torch.arange(16)).item() == pytest.approx(expected.item(), rel=1e-3)

    def test_the_learning_rate_is_chosen_on_held_out_rows_that_are_neither_learnt_from_nor_judged_by(
        self, evidence: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learnt: list[Pool] = []
        looked: list[Pool] = []
        start, success = Course.__init__, Perturbations.success
        monkeypatch.setattr(Course, "__init__", lambda self, *a: (learnt.append(a[5]), start(self, *a))[1])
        monkeypatch.setattr(
            Perturbations, "success", lambda self, m, pool, g: (looked.append(pool), success(self, m, pool, g))[1]
        )
        inputs = [evidence[n] for n in ("purified", "benign", "backdoor", "reference")]
        made, how = QRA(epochs=2, images=60, hidden=32).perturbations(*inputs, generator(0))
        assert made.generator.budget == 16 / 255
        assert "learning rate 0.1 and" in how or "learning rate 0.02 and" in how
        evaluated = evidence["backdoor"].evaluation
        for pool in looked:
            assert overlap(pool, learnt[0]) == overlap(pool, evaluated) == 0
        assert overlap(learnt[0], evaluated) == 0
        assert len(learnt) == 2

    def test_training_stops_when_more_of_it_gains_nothing(self) -> None:
        """The better of two courses is followed until two looks in a row bring nothing; its best look is kept."""

        class Told:
            """A course whose gains are known beforehand."""

            def __init__(self, lr: float, gains: list[float]) -> None:
                self.lr, self.gains, self.epochs = lr, gains, 0
                self.made = Perturbations(torch.nn.Identity(), None)  # type: ignore[arg-type]

            def run(self, epochs: int) -> None:
                self.epochs += epochs

        worse, better = Told(0.1, [0.1, 0.9]), Told(0.02, [0.3, 0.2, 0.6, 0.5, 0.6, 0.9])
        order = iter([(worse, 0), *((better, i) for i in range(6))])

        def gain(_: Perturbations) -> float:
            course, i = next(order)
            return course.gains[i]

        best = longest_gain([worse, better], gain, 50)  # type: ignore[list-item]
        assert (best.lr, best.epochs, best.gain) == (0.02, 15, 0.6)
        assert (worse.epochs, better.epochs) == (5, 25)

    def test_both_rates_are_measured_on_both_models(self, evidence: dict[str, Any]) -> None:
        result: Measurement = quick(QRA).run(evidence | {"rng": generator(0)})
        rows = {(f.subject, f.metric) for f in result.findings}
        both = {(s, m) for s in ("purified", "reference") for m in ("p_asr", "c_asr")}
        assert rows == both | {("null", "p_asr"), ("purified", "excess")}
        excess = {f.variant for f in result.findings if f.metric == "excess"}
        assert excess == {"over clean images", "over reference", "over patch", "over noise", "over stripes"}
        assert result.exhibits[0].picture

    def test_the_generator_is_kept(self, evidence: dict[str, Any]) -> None:
        """What was found can be tried again: the file rebuilds the generator, budget and all."""
        result: Measurement = quick(QRA).run(evidence | {"rng": generator(0)})
        [(name, content)] = result.artifacts.items()
        weights = load(content)
        made = Generator((1, 16, 16), 64, 3, 16 / 255)
        made.load_state_dict(weights)
        assert is_artifact(name)
        assert "artifacts" not in result.model_dump()


class TestTransfer:
    """Superficial Safety, section 3.3, Figure 3."""

    def test_one_other_model_is_tried_once_several_in_a_matrix(self, evidence: dict[str, Any]) -> None:
        def pairs(*names: str) -> set[str]:
            others = dict.fromkeys(names, evidence["suspect"])
            result = quick(Transfer).run(evidence | {"others": others, "rng": generator(0)})
            found = [f for f in result.findings if f.metric == "transfer_p_asr"]
            made_on = sorted(f.variant for f in found if f.subject == "reference")
            assert len(made_on) == (1 if len(names) == 1 else 1 + len(names))
            return {f.variant for f in found if f.subject == "purified"}

        assert pairs("a") == {"made on this model, tried on a"}
        made = ("this model", "a", "b")
        assert pairs("a", "b") == {f"made on {i}, tried on {j}" for i in made for j in made if i != j}

    def test_a_model_takes_its_own_perturbations_best(self, evidence: dict[str, Any]) -> None:
        """Tried on the very model that they were made on they do what qra reports; the diagonal is left to qra."""
        inputs = evidence | {"others": {"twin": evidence["purified"]}, "rng": generator(0)}
        [rate] = [
            f.value
            for f in quick(Transfer).run(inputs).findings
            if (f.subject, f.metric) == ("purified", "transfer_p_asr")
        ]
        own = quick(QRA).run(evidence | {"rng": generator(0)})
        [expected] = [f.value for f in own.findings if (f.subject, f.metric) == ("purified", "p_asr")]
        assert rate == pytest.approx(expected, abs=0.25)
