"""Gathering evidence and auditing: disjoint parts, nothing held out leaks, same seed same report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bdaudit import api
from bdaudit.attacks.triggers import load_trigger
from bdaudit.errors import InputError, OutputError, UsageError
from bdaudit.flow import proxy
from bdaudit.flow.evidence import Evidence, find_target, from_clean, from_folders
from bdaudit.flow.held_out import settle
from bdaudit.flow.implant import Sizes, cut
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool, overlap
from bdaudit.report.schema import Policy, Report
from bdaudit.runtime import generator
from bdaudit.training.inversion import Inversion, Search, anomaly_index
from bdaudit.training.metrics import Rate, accuracy

FAST = {"retune.epochs": 1, "retune.draws": 1, "qra.epochs": 2}


def test_a_run_folder_holds_what_the_design_says(run: Run) -> None:
    names = {p.name for p in run.folder.iterdir()}
    assert {"model.pt", "reference.pt", "attack.json", "trigger.safetensors", "preview.png"} <= names
    assert {"clean", "flagged", "reserve", "test", "train", "train.csv"} <= names
    assert run.record.metrics["model"]["asr"] >= 0.95
    assert run.record.metrics["model"]["c_acc"] >= 0.93
    assert run.record.metrics["reference"]["asr"] <= 0.05


def test_the_parts_of_a_run_are_disjoint(run: Run) -> None:
    parts = {name: run.pool(name) for name in ("clean", "reserve", "test", "train")}
    names = list(parts)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert overlap(parts[a], parts[b]) == 0, (a, b)


def test_flagged_images_are_poisoned_training_rows(run: Run) -> None:
    flagged = run.pool("flagged")
    assert (flagged.labels == UNKNOWN).all()
    assert overlap(flagged, run.pool("train")) == len(flagged) == 80


def test_the_triggered_test_set_is_rebuilt_exactly(run: Run) -> None:
    again = open_run(run.folder)
    test = run.pool("test")
    assert torch.equal(run.trigger(test.images), again.trigger(test.images))
    by_hand = load_trigger(run.folder / "trigger.safetensors", {run.trigger.kind: type(run.trigger)})
    assert by_hand.digest() == run.trigger.digest()


@pytest.mark.parametrize(
    "damage",
    [lambda r: "{", lambda r: "[]", lambda r: json.dumps(r | {"target": 99}), lambda r: json.dumps(r | {"x": 1})],
)
def test_a_damaged_record_is_named(run: Run, tmp_path: Path, damage: object) -> None:
    record = json.loads((run.folder / "attack.json").read_text())
    (tmp_path / "attack.json").write_text(damage(record))  # type: ignore[operator]
    with pytest.raises(InputError, match="not a record of `bdaudit attack`"):
        open_run(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        open_run(tmp_path / "nowhere")


def test_cut_refuses_more_than_there_is() -> None:
    data = load_dataset("digits")
    with pytest.raises(UsageError, match="not enough for 5000 training"):
        cut(data, Sizes(train=5000), generator(0))


def test_the_target_is_the_majority_of_the_flagged(suspect: Classifier, run: Run) -> None:
    target, said = find_target(suspect, run.pool("flagged"))
    assert target == 0
    assert "of 80 flagged images" in said
    assert "no majority" in find_target(suspect, run.pool("test"))[1]


def folders(run: Run, suspect: Classifier, flagged: int, **changes: object) -> Evidence:
    settings = {"tuned_elsewhere": False, "wants_malicious": True, "min_triggered": 20, "rng": generator(0)} | changes
    return from_folders(
        Evidence(suspect),
        run.pool("clean"),
        run.pool("flagged").first(flagged),
        Goal(0, 10),
        **settings,  # type: ignore[arg-type]
    )


def test_the_auditors_folders_are_cut_into_disjoint_parts(run: Run, suspect: Classifier) -> None:
    made = folders(run, suspect, 80)
    assert made.backdoor is not None
    parts = [made.clean, made.malicious, made.benign, made.test, made.backdoor.reactivation, made.backdoor.evaluation]
    assert all(p is not None and len(p) for p in parts)
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            assert overlap(a, b) == 0  # type: ignore[arg-type]
    assert len(made.malicious) + len(made.backdoor.reactivation) + len(made.backdoor.evaluation) == 80  # type: ignore[arg-type]
    assert (made.malicious.labels == 0).all()  # type: ignore[union-attr]
    assert (made.backdoor.evaluation.labels == UNKNOWN).all()
    assert not made.shortfall


@pytest.fixture
def inverted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Pool]:
    """A search that took no time: a corner patch for class 0, larger masks for the others; what it was given."""
    given: dict[str, Pool] = {}

    def invert(model: Classifier, rows: Pool, held_out: Pool, *rest: object) -> Inversion:
        given.update(rows=rows, held_out=held_out)
        masks, patterns = torch.zeros(10, 16, 16), torch.full((10, 1, 16, 16), 255, dtype=torch.uint8)
        masks[0, 13:, 13:] = 1
        for c in range(1, 10):
            masks[c, : c + 5, :8] = 0.9
        l1 = masks.sum((1, 2))
        return Inversion(masks, patterns, l1, l1 > 0, (Rate(9, 10),) * 10, anomaly_index(l1), 2.0)

    monkeypatch.setattr(proxy, "invert", invert)
    return given


def unflagged(run: Run, suspect: Classifier, **changes: object) -> Evidence:
    settings = {"tuned_elsewhere": False, "min_triggered": 20, "rng": generator(0), "model_name": "m.pt"} | changes
    return from_clean(Evidence(suspect), run.pool("clean"), settings.pop("target", None), **settings)  # type: ignore[arg-type]


def test_with_nothing_flagged_the_clean_images_are_cut_into_disjoint_parts(
    run: Run, suspect: Classifier, inverted: dict[str, Pool]
) -> None:
    """What was searched on, tuned with and retuned with is evaluated on by nobody, not even triggered."""
    made = settle(unflagged(run, suspect), 2000, 20, generator(0))
    assert made.backdoor is not None
    parts = [made.clean, made.benign, made.test, inverted["rows"], inverted["held_out"]]
    assert all(p is not None and len(p) for p in parts)
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            assert overlap(a, b) == 0  # type: ignore[arg-type]
    stamp = made.proxy.trigger(0)  # type: ignore[union-attr]
    for spent in (made.clean, made.benign, inverted["rows"], inverted["held_out"]):
        assert overlap(stamp.on(spent), made.backdoor.evaluation) == 0  # type: ignore[arg-type]
    assert unflagged(run, suspect, tuned_elsewhere=True).clean is None


def test_what_stands_in_is_the_inverted_trigger_with_ordinary_classes_as_controls(
    run: Run, suspect: Classifier, inverted: dict[str, Pool]
) -> None:
    made = settle(unflagged(run, suspect), 2000, 20, generator(0))
    backdoor = made.backdoor
    assert backdoor is not None
    assert (backdoor.source, backdoor.goal) == ("inverted", Goal(0, 10))
    assert made.trigger is None  # no oracle is made of it
    assert (backdoor.evaluation.images[:, :, 13:, 13:] == 255).all()
    assert not (backdoor.evaluation.labels == 0).any()
    assert set(backdoor.nulls) == {"inverted for 5", "inverted for 4", "inverted for 6"}
    for name, null in backdoor.nulls.items():
        assert null.goal.target == int(name[-1])
        assert not (null.evaluation.labels == null.goal.target).any()
    assert made.sources["backdoor"] == "inverted from m.pt, a proxy"


def test_no_defense_learns_the_target_that_was_inverted(
    run: Run, suspect: Classifier, inverted: dict[str, Pool]
) -> None:
    """A target that the auditor named, it may."""
    assert unflagged(run, suspect).for_defense(generator(0))["target"] is None
    named = unflagged(run, suspect, target=3)
    assert named.for_defense(generator(0))["target"] == 3
    assert named.goal == Goal(3, 10)
    assert any("--target names does not stand out" in n for n in named.notes)


def test_too_few_clean_images_to_invert_with_are_said_before_the_search(run: Run, suspect: Classifier) -> None:
    made = from_clean(
        Evidence(suspect), run.pool("clean").first(60), None,
        model_name="m.pt", tuned_elsewhere=False, min_triggered=20, rng=generator(0),
    )  # fmt: skip
    assert made.shortfall.startswith("too few clean images to invert a trigger, to retune and to test with: 60 given")
    assert made.proxy is None


def test_a_clean_model_with_nothing_flagged_leaves_nothing_to_test(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real search, on the clean twin: no class stands out, and nothing is purified."""
    monkeypatch.setattr(proxy, "Search", lambda **given: Search(steps=150, batch_size=12, **given))
    report = api.audit(run.reference_path, defense="fst", clean=run.folder / "clean", device="cpu")  # type: ignore[arg-type]
    assert (report.verdict, int(report.exit_code)) == ("inconclusive", 4)
    assert "no class stands out" in report.reasons[0]
    assert "--target N to test one class all the same" in report.reasons[0]
    rows = [f for f in report.findings if f.metric == "anomaly_index"]
    assert len(rows) == 10
    assert rows[0].value == max(f.value for f in rows) < 2
    assert report.exhibits[0].picture
    assert report.find("o_asr") is None
    assert report.inputs["goal"] == "unknown"
    assert all(c.outcome == "sound" for c in report.self_checks)  # there are images enough


@pytest.mark.parametrize("n", [1, 5, 29])
def test_too_few_flagged_images_say_how_many_more(run: Run, suspect: Classifier, n: int) -> None:
    assert folders(run, suspect, n).shortfall.endswith(f"{30 - n} more")
    assert not folders(run, suspect, 30).shortfall


def test_true_labels_of_flagged_images_are_used_where_given(run: Run, suspect: Classifier) -> None:
    test = run.pool("test")
    flagged = run.trigger.on(test)
    made = from_folders(
        Evidence(suspect), run.pool("clean"), flagged, Goal(0, 10),
        tuned_elsewhere=True, wants_malicious=False, min_triggered=20, rng=generator(0),
    )  # fmt: skip
    assert made.backdoor is not None
    assert made.backdoor.labels_known
    assert not (made.backdoor.evaluation.labels == 0).any()
    assert any("purified elsewhere" in n for n in made.notes)
    # All in the target's own folder: labels as given by the attacker, not true ones.
    as_given = from_folders(
        Evidence(suspect), run.pool("clean"), flagged.labelled(0), Goal(0, 10),
        tuned_elsewhere=True, wants_malicious=False, min_triggered=20, rng=generator(0),
    )  # fmt: skip
    assert as_given.backdoor is not None
    assert not as_given.backdoor.labels_known


def test_rows_that_were_tuned_on_are_not_evaluated_on_not_even_triggered(run: Run, suspect: Classifier) -> None:
    test, benign = run.pool("test"), run.pool("reserve")
    leaked = Evidence(
        suspect, goal=run.goal, trigger=run.trigger, benign=benign, test=test,
        clean=Pool.concat([run.pool("clean"), test.first(7), benign.first(3)]),
    )  # fmt: skip
    settled = settle(leaked, 10_000, 20, generator(0))
    assert settled.test is not None
    assert settled.backdoor is not None
    assert len(settled.test) == len(test) - 7
    assert any("7 test images were also in" in n for n in settled.notes)
    assert any("3 images for retuning were also in" in n for n in settled.notes)
    for pool, rows in ((settled.backdoor.evaluation, test.first(7)), (settled.backdoor.reactivation, benign.first(3))):
        assert overlap(run.trigger.on(rows), pool) == 0
    assert not settle(replace(leaked, clean=run.pool("clean")), 10_000, 20, generator(0)).notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"clean": r.pool("test")}, "0 held-out clean images"),
        (
            lambda r: {"test": r.pool("test").take(r.pool("test").labels == 0)},
            "0 held-out clean images of other classes",
        ),
        (lambda r: {"benign": r.pool("reserve").first(0)}, "0 clean images to retune with"),
    ],
)
def test_nothing_to_measure_on_is_inconclusive(run: Run, suspect: Classifier, change: object, message: str) -> None:
    made = Evidence(suspect, goal=run.goal, trigger=run.trigger, benign=run.pool("reserve"), test=run.pool("test"))
    assert message in settle(replace(made, **change(run)), 2000, 20, generator(0)).shortfall  # type: ignore[operator]


def test_folder_classes_that_are_numbers_keep_their_meaning(tmp_path: Path, digits: Pool) -> None:
    """Classes named 1, 2, 3 have labels 0, 1, 2; a run's folders must be read back as they were meant."""
    for name, label in (("1", 5), ("2", 6), ("3", 7)):
        rows = digits.take((digits.labels == label).nonzero().flatten()[:60])
        write_folder(rows, tmp_path / "data" / name, flat=True)
    made = api.attack(
        "badnets", data=str(tmp_path / "data"), out=tmp_path / "run", arch="small_cnn", epochs=8,
        options={"rate": 0.1}, sizes=Sizes(train=90, clean=20, reserve=20), device="cpu",
    )  # fmt: skip
    assert made.pool("test").labels.bincount(minlength=3).sum() == 36
    assert len(made.pool("train").labels.unique()) == 3
    model = api.load(made.model_path, device="cpu").classifier
    assert accuracy(model, made.pool("test")).value == pytest.approx(made.record.metrics["model"]["c_acc"])


@pytest.mark.parametrize(
    ("target", "message"), [(99, "out of range"), (3, "the run's backdoor is all-to-one, target 0")]
)
def test_a_target_beside_a_run_must_be_its_own(run: Run, target: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        api.audit(run.model_path, defense="ft", run=run.folder, target=target, device="cpu")


@pytest.mark.parametrize("name", ["attack.json", "report.json"])
def test_a_folder_with_a_marker_but_other_things_is_not_replaced(run: Run, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / name).write_bytes((run.folder / "attack.json").read_bytes() if name == "attack.json" else b"")
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds something else"):
        if name == "attack.json":
            api.attack("badnets", data="digits", out=folder, device="cpu")
        else:
            api.audit(run.model_path, defense="ft", run=run.folder, out=folder, device="cpu")
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_the_normalisation_given_is_used_or_refused(run: Run, tmp_path: Path) -> None:
    state = torch.load(run.model_path, weights_only=True)["state_dict"]
    torch.save(state, tmp_path / "plain.pt")
    loaded = api.load(tmp_path / "plain.pt", normalisation="digits", device="cpu").classifier
    assert loaded.preprocessing.mean == (0.3053,)
    with pytest.raises(UsageError, match="--normalise nonsense"):
        api.load(tmp_path / "plain.pt", normalisation="nonsense", device="cpu")
    chosen = api.load(tmp_path / "plain.pt", clean=run.folder / "clean", device="cpu").classifier
    assert chosen.preprocessing.shape == (1, 16, 16)


def strip(report: Report) -> dict[str, object]:
    document = json.loads(report.to_json())
    del document["provenance"]["times"]
    return document  # type: ignore[no-any-return]


def test_the_same_seed_gives_the_same_report_apart_from_times(run: Run) -> None:
    one, two = (
        api.audit(run.model_path, defense="fst", run=run.folder, options=FAST, seed=3, device="cpu") for _ in range(2)
    )
    assert strip(one) == strip(two)
    other = api.audit(run.model_path, defense="fst", run=run.folder, options=FAST, seed=4, device="cpu")
    assert strip(other)["findings"] != strip(one)["findings"]


def test_a_report_records_what_was_granted_and_marks_oracles(run: Run) -> None:
    report = api.audit(
        run.model_path, defense="ep", run=run.folder, reference=run.reference_path, options=FAST, device="cpu"
    )
    granted = {(g.plugin, g.input): g.oracle for g in report.granted}
    assert granted["ep", "trigger"] is True
    assert granted["ep", "clean"] is False
    assert not any(i in ("test", "benign") for p, i in granted if p == "ep")
    assert report.inputs["model_file"]["sha256"]
    assert report.provenance["defense"]["name"] == "ep"
    figure = {(f.probe, f.subject, f.metric) for f in report.findings if not f.variant}
    assert {
        ("evaluation", s, m) for s in ("suspect", "purified", "reference") for m in ("c_acc", "o_asr", "robust_acc")
    } <= figure
    assert {("retune", "purified", "p_asr"), ("qra", "purified", "p_asr"), ("evaluation", "purified", "der")} <= figure


def test_the_exact_reference_is_made_where_the_trigger_is_known(run: Run, tmp_path: Path) -> None:
    for name in ("attack.json", "trigger.safetensors", "model.pt"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    for name in ("clean", "reserve", "test", "flagged"):
        shutil.copytree(run.folder / name, tmp_path / name)
    report = api.audit(
        tmp_path / "model.pt", defense="ft", run=tmp_path, probes=["retune"], options={"retune.draws": 1}, device="cpu"
    )
    assert "ORACLE" in report.provenance["reference"]
    assert any(g.plugin == "ep (reference)" and g.oracle for g in report.granted)
    assert report.find("p_asr", probe="retune", subject="reference") is not None


def test_somebody_elses_purification_can_be_audited(run: Run) -> None:
    report = api.audit(run.model_path, purified=run.reference_path, run=run.folder, options=FAST, device="cpu")
    assert report.find("o_asr").value <= 0.05  # type: ignore[union-attr]
    assert not any(g.plugin == "pl" for g in report.granted)


def test_an_audit_of_bare_folders_knows_no_labels(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(run.model_path.read_bytes())
    write_folder(run.pool("clean"), tmp_path / "clean")
    report = api.audit(
        tmp_path / "model.pt", defense="fst", malicious=run.folder / "flagged", probes=["retune"],
        options={"retune.draws": 1}, policy=Policy(min_triggered=20), device="cpu",
    )  # fmt: skip
    assert report.find("robust_acc") is None
    assert any("trigger is unknown" in n for n in report.notes)
    assert report.inputs["evaluation"]["source"] == "flagged"


def test_one_flagged_image_is_inconclusive(run: Run, tmp_path: Path) -> None:
    write_folder(run.pool("flagged").first(1), tmp_path / "flagged", flat=True)
    report = api.audit(run.model_path, defense="pl", malicious=tmp_path / "flagged", device="cpu")
    assert (report.verdict, int(report.exit_code)) == ("inconclusive", 4)
    assert report.reasons[0].endswith("29 more")
