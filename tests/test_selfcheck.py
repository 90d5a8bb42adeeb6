"""The audit's own checks: each is tripped by a model or a pool made for it, and silent on sound ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit import api
from bdaudit.cli.main import _run
from bdaudit.defenses.base import reinitialise
from bdaudit.defenses.ft import FT
from bdaudit.flow.audit import audit
from bdaudit.flow.edited import edited
from bdaudit.flow.evidence import TUNED_ELSEWHERE, Evidence, from_folders
from bdaudit.flow.held_out import ENOUGH, NOT_TARGET, ONCE, SEPARATE, settle
from bdaudit.flow.run import Run
from bdaudit.flow.selfcheck import ALONE, BETTER, GRADIENT, LOGITS, RUNS, STEADY, check_model, guesses, probabilities
from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool, overlap
from bdaudit.probes.base import Probe
from bdaudit.probes.qra import QRA
from bdaudit.report.render import render
from bdaudit.report.schema import Finding, Measurement, Policy, Report, SelfCheck
from bdaudit.runtime import Runtime, generator
from bdaudit.training.metrics import predict_logits

Change = Callable[[Tensor], Tensor]
CPU = torch.device("cpu")


class Altered(nn.Module):
    """A network with something done to its images and to its logits."""

    def __init__(self, body: nn.Module, before: Change, after: Change) -> None:
        super().__init__()
        self.body = body
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(self.before(x)))


class Training(nn.Module):
    """A network that puts itself back into train mode whenever it is asked."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body.train()(x)
        return logits


def same(x: Tensor) -> Tensor:
    return x


def altered(model: Classifier, after: Change = same, before: Change = same) -> Classifier:
    """A copy whose images or logits are changed on the way."""
    return Classifier(Altered(model.clone().body, before, after), model.preprocessing, classes=model.classes)


def without_running_statistics(model: Classifier) -> Classifier:
    """BatchNorm2d(track_running_stats=False) uses the batch's statistics in eval mode, too."""
    body = model.clone().body
    for m in body.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean = m.running_var = m.num_batches_tracked = None
            m.track_running_stats = False
    return Classifier(body, model.preprocessing, classes=model.classes)


def one_is_nan(logits: Tensor) -> Tensor:
    return torch.where(torch.arange(len(logits))[:, None] == 3, float("nan"), logits)


def always(logits: Tensor) -> Tensor:
    return logits + 1000 * F.one_hot(torch.tensor(3), logits.shape[1])


def raises(x: Tensor) -> Tensor:
    raise ValueError("no such\nluck")


FAULTY: dict[str, tuple[Callable[[Classifier], Classifier], str, str]] = {
    "softmax": (lambda m: altered(m, lambda z: z.softmax(1)), LOGITS, "sum to one .softmax."),
    "sigmoid": (lambda m: altered(m, lambda z: (4 * z).sigmoid()), LOGITS, "as after a sigmoid"),
    "noise": (lambda m: altered(m, lambda z: z + torch.randn_like(z)), STEADY, r"(29|3\d) of 32 test images get other"),
    "dropout": (lambda m: altered(m, before=lambda x: F.dropout(x, 0.3, training=True)), STEADY, "dropout or noise"),
    "batch statistics": (without_running_statistics, ALONE, "BatchNorm uses the batch's statistics"),
    "train mode": (
        lambda m: Classifier(Training(m.clone().body), m.preprocessing, classes=m.classes), ALONE, "the network calls train"
    ),
    "constant": (lambda m: altered(m, always), BETTER, r"gives class 3 \(3\) to 128 of 128 test images"),
    "rolled classes": (lambda m: altered(m, lambda z: z.roll(1, 1)), BETTER, "no better than guessing"),
    "argmax": (lambda m: altered(m, lambda z: F.one_hot(z.argmax(1), 10).float() * 9 - 4), GRADIENT, "there is none"),
    "rounded pixels": (lambda m: altered(m, before=lambda x: (4 * x).round() / 4), GRADIENT, "zero or not finite on 8 of 8"),
    "nan": (lambda m: altered(m, one_is_nan), RUNS, "1 of 128 test images get logits that are NaN"),
    "raises": (lambda m: altered(m, raises), RUNS, r"ValueError: no such.luck"),
}  # fmt: skip


def wrong(rows: list[SelfCheck]) -> dict[str, str]:
    return {row.name: row.detail for row in rows if row.outcome != "sound"}


@pytest.fixture(scope="module")
def test_pool(run: Run) -> Pool:
    return run.pool("test").shuffled(generator(0))


@pytest.mark.parametrize("fault", FAULTY)
def test_each_fault_trips_its_own_check_and_no_other(fault: str, suspect: Classifier, test_pool: Pool) -> None:
    make, name, said = FAULTY[fault]
    found = wrong(check_model("purified", make(suspect), test_pool))
    assert list(found) == [name]
    assert re.search(said, found[name])
    assert found[name].isprintable()


def test_sound_trained_models_pass_every_check(run: Run, suspect: Classifier, test_pool: Pool) -> None:
    for model in (suspect, api.load(run.reference_path, device="cpu").classifier):  # type: ignore[arg-type]
        rows = check_model("suspect", model, test_pool)
        assert {row.name for row in rows} == {RUNS, LOGITS, STEADY, ALONE, BETTER, GRADIENT}
        assert wrong(rows) == {}
        assert not model.training
    log_probabilities = altered(suspect, lambda z: z.log_softmax(1))
    assert wrong(check_model("suspect", log_probabilities, test_pool)) == {}


SMALL = (
    "resnet18:width=4", "preactresnet18:width=4", "vgg19_bn:width=4", "small_cnn:width=4", "torchvision:resnet18",
    "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121",
    "timm:resnet10t", "timm:vit_tiny_patch16_224:image_size=32",
)  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", SMALL)
def test_no_architecture_raises_a_false_alarm(arch: str, channels: int) -> None:
    """Batch sizes and memory formats move logits by rounding alone; untrained networks guess, and no more is wrong."""
    rng = generator(0)
    model = fresh(complete(parse(arch)), usual_preprocessing((channels, 32, 32), None), tuple("abcdefghij"), rng)
    reinitialise(model.head, rng)  # some begin at zero, and would let no gradient through
    images = torch.randint(256, (20, channels, 32, 32), generator=rng, dtype=torch.uint8)
    pool = Pool.of(images, torch.arange(20) % 10)
    assert set(wrong(check_model("suspect", Runtime.of(CPU).place(model), pool))) <= {BETTER}


def test_checks_leave_model_and_randomness_as_they_were(suspect: Classifier, test_pool: Pool) -> None:
    model = suspect.clone().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    check_model("suspect", altered(model, lambda z: z + torch.randn_like(z)), test_pool)
    check_model("suspect", Classifier(Training(model.body), model.preprocessing, classes=model.classes), test_pool)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_still_reaches_grey_pixels_after_predictions() -> None:
    """Moving a model in inference mode would leave buffers behind that autograd refuses."""
    model = fresh(
        complete(parse("small_cnn:width=4")), usual_preprocessing((1, 16, 16), None), tuple("ab"), generator(0)
    )
    x = torch.zeros(2, 1, 16, 16)
    predict_logits(model, x)
    model(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_what_follows_depends_on_whose_fault_it_is(suspect: Classifier, test_pool: Pool) -> None:
    """A control is left out; a purified model that guesses has lost its accuracy, a suspect was never understood."""
    outcomes = {
        (fault, subject): row.outcome
        for fault in ("softmax", "constant", "noise", "argmax")
        for subject in ("suspect", "purified", "reference")
        for row in check_model(subject, FAULTY[fault][0](suspect), test_pool)
        if row.outcome != "sound"
    }
    assert outcomes == {
        ("softmax", "suspect"): "stopped", ("softmax", "purified"): "stopped", ("softmax", "reference"): "left-out",
        ("constant", "suspect"): "stopped", ("constant", "purified"): "no-pass", ("constant", "reference"): "left-out",
        ("noise", "suspect"): "no-pass", ("noise", "purified"): "no-pass", ("noise", "reference"): "left-out",
        ("argmax", "suspect"): "caveat", ("argmax", "purified"): "caveat", ("argmax", "reference"): "caveat",
    }  # fmt: skip


def test_guessing_is_told_from_skill_where_classes_are_unequal() -> None:
    """Nine in ten right is guessing where nine in ten are of one class and all are called it."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    skilled = labels.clone()
    skilled[:4], skilled[-3:] = 1, 0
    assert not guesses(skilled, labels, ("a", "b"))
    assert "gives class 0 (a) to 100 of 100" in guesses(torch.zeros_like(labels), labels, ("a", "b"))
    assert "no better than guessing" in guesses(labels.roll(20), labels, ("a", "b"))


def test_small_logits_are_not_taken_for_probabilities() -> None:
    logits = torch.rand(50, 10, generator=generator(0)) * 0.9 + 0.05
    assert not probabilities(logits)
    assert probabilities(logits / logits.sum(1, keepdim=True))
    assert not probabilities(logits - 0.1)


def test_a_patched_copy_is_found_and_other_images_are_not(digits: Pool, run: Run) -> None:
    half = len(digits) // 2
    mine, others = digits.first(half), digits.take(range(half, len(digits)))
    assert not edited(mine, others).any()
    triggered = run.trigger.on(mine.first(40))
    mixed = Pool.concat([triggered, others.first(60)])
    assert edited(mixed, mine).tolist() == [True] * 40 + [False] * 60
    assert not edited(run.trigger.on(mine), run.trigger.on(others)).any()  # the trigger that they share is no evidence
    assert edited(mine.first(0), others).shape == (0,)
    assert not edited(mine, others.first(0)).any()


def test_a_shared_background_is_no_evidence() -> None:
    """A fixed camera's images share most of their pixels, and are not copies of one another."""
    rng = generator(0)
    scene = torch.randint(256, (1, 3, 32, 32), generator=rng, dtype=torch.uint8).repeat(80, 1, 1, 1)
    scene[:, :, 8:20, 8:20] = torch.randint(256, (80, 3, 12, 12), generator=rng, dtype=torch.uint8)
    pool = Pool.of(scene)
    assert not edited(pool.first(40), pool.take(range(40, 80))).any()
    copy = pool.first(40).map(lambda x: torch.where(torch.arange(32) < 9, 0, x).to(torch.uint8))
    assert edited(copy, pool).all()


def folders(run: Run, model: Classifier, clean: Pool, flagged: Pool) -> Evidence:
    made = from_folders(
        Evidence(model), clean, flagged, Goal(0, 10),
        tuned_elsewhere=False, wants_malicious=False, min_triggered=20, rng=generator(0),
    )  # fmt: skip
    return settle(made, 2000, 20, generator(0))


def row_of(evidence: Evidence, name: str) -> SelfCheck:
    [row] = [c for c in evidence.checks if c.name == name]
    return row


def test_a_flagged_image_whose_original_was_learned_from_is_not_tested_on(run: Run, suspect: Classifier) -> None:
    """A trigger changes pixels, so that comparing whole images finds nothing; retuning counts as learning, too."""
    clean, test = run.pool("clean"), run.pool("test")
    flagged = Pool.concat([run.trigger.on(clean), run.trigger.on(test)]).labelled(-1)
    made = folders(run, suspect, clean, flagged)
    assert made.backdoor is not None
    assert made.clean is not None
    assert made.benign is not None
    left = made.backdoor.evaluation
    assert overlap(run.trigger.on(made.clean), left) == overlap(run.trigger.on(made.benign), left) == 0
    assert overlap(left, run.trigger.on(test)) > 0.8 * len(test)
    assert "of them but for a few pixels" in row_of(made, SEPARATE).detail
    assert not row_of(folders(run, suspect, clean, run.trigger.on(test)), SEPARATE).detail


def test_the_same_image_counts_once(run: Run, suspect: Classifier) -> None:
    test = run.pool("test")
    doubled = Evidence(
        suspect, goal=run.goal, trigger=run.trigger, benign=run.pool("reserve"), test=Pool.concat([test, test.first(9)])
    )
    made = settle(doubled, 10_000, 20, generator(0))
    assert len(made.test) == len(test)  # type: ignore[arg-type]
    assert row_of(made, ONCE).detail == "9 test images were there twice; they count once"
    assert not row_of(settle(replace(doubled, test=test), 10_000, 20, generator(0)), ONCE).detail
    flagged = run.trigger.on(test.take(test.labels != 0).first(60))
    twice = folders(run, suspect, run.pool("clean"), Pool.concat([flagged, flagged]))
    assert twice.backdoor is not None
    assert "triggered test images were" in row_of(twice, ONCE).detail
    assert len(set(twice.backdoor.evaluation.fingerprints())) == len(twice.backdoor.evaluation)


def test_images_of_the_target_class_are_left_out_or_doubted(run: Run, suspect: Classifier) -> None:
    test, clean = run.pool("test"), run.pool("clean")
    theirs = int((test.labels == 0).sum())
    known = folders(run, suspect, clean, run.trigger.on(test))
    assert f"{theirs} flagged images truly belong to the target class; they were left out" in known.notes
    assert known.backdoor is not None
    assert not (known.backdoor.evaluation.labels == 0).any()
    assert row_of(known, NOT_TARGET).outcome == "sound"
    unknown = folders(run, suspect, clean, run.trigger.on(test).labelled(-1))
    assert row_of(unknown, NOT_TARGET).outcome == "caveat"


def test_too_few_images_stop_the_audit(run: Run, suspect: Classifier) -> None:
    few = folders(run, suspect, run.pool("clean"), run.pool("flagged").first(24))
    assert row_of(few, ENOUGH).outcome == "stopped"
    assert row_of(few, ENOUGH).detail == few.shortfall
    assert row_of(folders(run, suspect, run.pool("clean"), run.pool("flagged")), ENOUGH).outcome == "sound"


class Look(Probe):
    """Report success without doing anything."""

    name = "look"

    def measure(self, purified: Classifier, test: Pool) -> Measurement:
        rate = {"value": 0.0, "low": 0.0, "high": 0.01, "n": 500}
        return Measurement(findings=[Finding(probe="look", subject="purified", metric="p_asr", **rate)])


class Elsewhere(Look):
    """Look at other models, too."""

    name = "elsewhere"

    def measure(self, purified: Classifier, others: dict[str, Classifier]) -> Measurement:
        return Measurement(notes=[f"looked at {', '.join(others)}"])


@pytest.fixture
def evidence(run: Run, suspect: Classifier) -> Evidence:
    """What a run folder gives; its clean twin is the reference."""
    reference = api.load(run.reference_path, device="cpu").classifier  # type: ignore[arg-type]
    return Evidence(
        suspect, goal=run.goal, trigger=run.trigger, benign=run.pool("reserve"), test=run.pool("test"),
        clean=run.pool("clean"), reference=reference,
    )  # fmt: skip


def audited(evidence: Evidence, purified: Classifier | None, *probes: Probe, **policy: Any) -> Report:
    """Audit the clean twin, or what was made of it, under a policy that asks for little: it would pass."""
    rules = Policy(require=["look"], **policy)
    return audit(evidence, purified=purified, probes=[Look(), *probes], policy=rules).report


def test_a_sound_audit_passes_with_all_checks_in_order(evidence: Evidence) -> None:
    report = audited(evidence, evidence.reference)
    assert report.verdict == "pass"
    assert len(report.self_checks) == 4 + 3 * 6
    assert not [c for c in report.self_checks if c.outcome not in ("sound", "caveat")]
    assert "What the audit checked about itself: 22 checks, all in order" in render(report, "text")


@pytest.mark.parametrize(
    "fault", [f for f, (_, name, _) in FAULTY.items() if name in (RUNS, LOGITS, ALONE, STEADY, BETTER)]
)
def test_no_faulty_model_passes(fault: str, evidence: Evidence) -> None:
    """Even where figures and a lenient policy would let it."""
    assert evidence.reference is not None
    report = audited(evidence, FAULTY[fault][0](evidence.reference), max_accuracy_drop=1.0, max_o_asr=1.0)
    assert report.verdict == "inconclusive"
    assert int(report.exit_code) == 4
    assert report.reasons[0].startswith("the purified model")
    stopped = any(c.outcome == "stopped" for c in report.self_checks)
    assert stopped == (FAULTY[fault][1] in (RUNS, LOGITS, ALONE)) == (not report.findings)


def test_lost_accuracy_still_fails(evidence: Evidence) -> None:
    assert evidence.reference is not None
    assert audited(evidence, altered(evidence.reference, always)).verdict == "fail"


def test_a_faulty_suspect_ends_the_audit_before_any_work(evidence: Evidence) -> None:
    class Never(FT):
        """Must not be called."""

        name = "never"

        def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
            raise AssertionError

    faulty = replace(evidence, suspect=altered(evidence.suspect, lambda z: z.softmax(1)))
    audited = audit(faulty, defense=Never(), probes=[Look()])
    report, purified = audited.report, audited.purified
    assert (report.verdict, report.findings, purified) == ("inconclusive", [], None)
    assert len(report.reasons) == 1
    assert report.reasons[0].startswith("the suspect model cannot be audited: all its outputs lie in [0, 1]")


def test_faulty_controls_are_left_out_and_missed(evidence: Evidence) -> None:
    noisy = FAULTY["noise"][0](evidence.suspect)
    both = replace(evidence, reference=noisy, others={"noisy": noisy, "good": evidence.suspect})
    report = audited(both, evidence.reference, Elsewhere())
    assert "looked at good" in report.notes
    assert not any(f.subject == "reference" for f in report.findings)
    assert sum("it was left out" in note for note in report.notes) == 2
    assert report.provenance["reference"] == "none (left out: see self_checks)"
    alone = audited(replace(both, others={"noisy": noisy}), evidence.reference, Elsewhere())
    assert "elsewhere was left out: all other models were left out" in alone.notes


def test_without_a_gradient_queries_are_left_out_and_missed_where_required(evidence: Evidence) -> None:
    assert evidence.reference is not None
    blocked = FAULTY["argmax"][0](evidence.reference)
    report = audited(evidence, blocked, QRA())
    assert "qra was left out: no gradient reaches the purified model's pixels" in report.notes
    assert report.verdict == "pass"
    assert any("no gradient reaches the pixels" in note for note in report.notes)
    rules = Policy(require=["look", "qra"])
    required = audit(evidence, purified=blocked, probes=[Look(), QRA()], policy=rules).report
    assert required.verdict == "inconclusive"


def test_a_model_tuned_elsewhere_is_doubted(run: Run, suspect: Classifier) -> None:
    made = from_folders(
        Evidence(suspect), run.pool("clean"), run.pool("flagged"), Goal(0, 10),
        tuned_elsewhere=True, wants_malicious=False, min_triggered=20, rng=generator(0),
    )  # fmt: skip
    row = row_of(settle(made, 2000, 20, generator(0)), SEPARATE)
    assert (row.outcome, row.detail) == ("caveat", TUNED_ELSEWHERE)


SOFTMAX = """
from bdaudit.inputs.architectures import build

def make_model(num_classes, channels, width=16):
    net = build("small_cnn", num_classes=num_classes, channels=channels, width=width)
    net.register_forward_hook(lambda net, images, logits: logits.softmax(1))
    return net
"""


@pytest.fixture
def typed(run: Run, tmp_path: Path) -> list[str]:
    """The command for a network of one's own that ends in a softmax."""
    torch.save(torch.load(run.model_path, weights_only=True)["state_dict"], tmp_path / "plain.pt")
    (tmp_path / "models.py").write_text(SOFTMAX)
    return [
        "audit", str(tmp_path / "plain.pt"), "--defense", "ft", "--attack", str(run.folder), "--normalise", "digits",
        "--clean", str(run.folder / "clean"),
        "--arch", f"{tmp_path / 'models.py'}:make_model", "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip


def test_the_command_line_ends_with_exit_code_4_and_one_reason(
    typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(typed, debug=False) == 4
    said = capsys.readouterr().out
    assert said.count("  - [inconclusive]") == 1
    assert "  - [inconclusive] the suspect model cannot be audited: all its outputs lie in [0, 1]" in said
    assert "checks, 1 not in order" in said
    assert "probabilities, not logits" in (tmp_path / "out" / "report.html").read_text()
