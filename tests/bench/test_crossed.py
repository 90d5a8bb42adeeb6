"""Cells that need more than their own attack and defense, made for real: another attack's images, other models."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.benches import plan_of

from bdaudit import api
from bdaudit.bench.work import perform
from bdaudit.defenses.ft import FT
from bdaudit.errors import InputError, UsageError
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.output import REPORT
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.pool import overlap
from bdaudit.report.schema import Report, read_report

ATTACKS = ["badnets", "blended"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Report], dict[str, Run]]:
    """Both attacks' models, PL with the flagged images of each, and what was made on PL tried on two others."""
    plan = plan_of(
        attacks=ATTACKS,
        defenses=["pl epochs=1"],
        malicious=ATTACKS,
        exclude=[{"attacks": "blended"}],
        probes=["transfer"],
        audit={"evaluate": 60, "transfer_to": ["ft epochs=1", "pl epochs=1", "ft-sam epochs=1"]},
        options={"probe": {"transfer": {"epochs": 1, "images": 64}}},
    )
    folder = tmp_path_factory.mktemp("crossed")
    for stage in plan.stages:
        perform(stage, folder)
    [crossed] = (c.stage.spec for c in plan.cells if c.place.donor)
    runs = {name: open_run(folder / crossed[role]) for name, role in zip(ATTACKS, ("victim", "donor"), strict=True)}
    return folder, {c.stage.label: read_report(folder / c.stage.path / REPORT) for c in plan.cells}, runs


def matrix(report: Report) -> set[str]:
    return {f.variant for f in report.findings if (f.metric, f.subject) == ("transfer_p_asr", "purified")}


def test_a_defense_is_given_the_other_attacks_images_and_judged_by_its_own_trigger(
    made: tuple[Path, dict[str, Report], dict[str, Run]],
) -> None:
    """PL appendix E: the images that are unlearned are of an attack that the model does not know."""
    _, reports, runs = made
    crossed = reports["badnets, pl epochs=1, flagged images of blended, seed 0"]
    own = reports["badnets, pl epochs=1, seed 0"]
    flagged = {name: run.pool("flagged").labelled(0).digest() for name, run in runs.items()}
    assert crossed.inputs["malicious"]["sha256"] == flagged["blended"] != flagged["badnets"]
    assert own.inputs["malicious"]["sha256"] == flagged["badnets"]
    same = ("model", "clean", "test", "trigger", "evaluation")
    assert {n: crossed.inputs[n] for n in same} == {n: own.inputs[n] for n in same}


def test_what_is_made_on_one_purified_model_is_tried_on_those_of_the_other_defenses(
    made: tuple[Path, dict[str, Report], dict[str, Run]],
) -> None:
    """Superficial Safety, Figure 3, in a grid: the cell's own defense is no other."""
    names = ("this model", "ft epochs=1", "ft-sam epochs=1")
    for report in made[1].values():
        assert matrix(report) == {f"made on {i}, tried on {j}" for i in names for j in names if i != j}
        given = {g.plugin for g in report.granted}
        assert {"ft (transfer)", "ft-sam (transfer)"} <= given
        assert "pl (transfer)" not in given


def test_a_purification_to_transfer_to_is_the_one_that_the_defense_has_in_a_cell_of_its_own(
    made: tuple[Path, dict[str, Report], dict[str, Run]],
) -> None:
    """The clean images are the same in both cells, so each of the two others is made once."""
    taken = [r.provenance.get("from_earlier_audits", []) for r in made[1].values()]
    assert sorted(map(sorted, taken)) == [[], ["ft", "ft-sam"]]
    folder, reports, _ = made
    plan = plan_of(attacks=ATTACKS, defenses=["ft epochs=1"], probes=[])
    cell = next(c.stage for c in plan.cells if c.place.attack.label == "badnets")
    perform(cell, folder)
    report = read_report(folder / cell.path / REPORT)
    assert report.provenance["from_earlier_audits"] == ["ft"]
    one, two = reports.values()
    assert one.inputs["other: ft epochs=1"] == two.inputs["other: ft epochs=1"]


def test_a_donors_images_are_flagged_and_the_runs_own_are_among_the_clean_ones(
    made: tuple[Path, dict[str, Report], dict[str, Run]],
) -> None:
    """Contamination is of the model's own attack: those are the images that a defender of it overlooks."""
    badnets, blended = (made[2][name] for name in ATTACKS)
    clean, flagged = defender_pools(badnets, Contamination(0.1, 0.5), 0, flagged=8, donor=blended)
    assert (len(clean), len(flagged)) == (60, 8)
    theirs = blended.pool("train")
    assert overlap(flagged, theirs) == 4
    assert overlap(flagged, badnets.pool("clean")) == 4
    mine = badnets.pool("clean")
    assert overlap(clean, badnets.pool("train")) == 6 == 60 - overlap(clean, mine)
    assert overlap(clean, flagged) == 0
    with pytest.raises(UsageError, match=r"and 500 flagged images .* takes 500 triggered images; the run has \d+"):
        defender_pools(badnets, Contamination(), 0, flagged=500, donor=blended)


def test_a_defense_named_for_transfer_purifies_the_same_suspect(run: Run, tmp_path: Path) -> None:
    """As it is typed: a name is a defense's unless there is such a file."""
    model = tmp_path / "ft-sam"  # a purified model in a file that has a defense's name
    model.write_bytes(run.model_path.read_bytes())
    both = api.audit(
        run.model_path, defense="ft", run=run.folder, probes=["transfer"], others=[model, "ft-sam"], evaluate=50,
        device="cpu", options={"epochs": 1, "transfer.epochs": 1, "transfer.images": 64},
    )  # fmt: skip
    assert {"made on this model, tried on ft-sam", "made on this model, tried on ft-sam'"} < matrix(both)
    with pytest.raises(InputError, match=r"--transfer-to ft-san: no such file, .* did you mean ft-sam"):
        api.audit(run.model_path, defense="fst", run=run.folder, probes=["transfer"], others=["ft-san"])
    with pytest.raises(UsageError, match="--transfer-to ft is there twice"):
        api.audit(run.model_path, defense="fst", run=run.folder, probes=["transfer"], others=["ft", FT()])
