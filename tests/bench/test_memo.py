"""Earlier purifications and measurements: the same bits as if made again, and only where nothing has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bdaudit import api
from bdaudit.attacks.triggers import BlendTrigger
from bdaudit.defenses.base import Defense
from bdaudit.defenses.ft import FT
from bdaudit.errors import InputError, UsageError
from bdaudit.flow import identity as identifying
from bdaudit.flow.audit import purify
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.evidence import Evidence
from bdaudit.flow.identity import identity
from bdaudit.flow.memo import Memo
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import overlap
from bdaudit.plugins import get
from bdaudit.report.schema import Report
from bdaudit.runtime import generator

QUICK = {"epochs": 1, "retune.epochs": 1, "retune.draws": 1, "retune.benign_size": 64, "qra.epochs": 1}


def audit(run: Run, keep: Path | None, **options: Any) -> Report:
    return api.audit(
        run.model_path, defense="ft", run=run.folder, probes=["retune", "qra"], options={**QUICK, **options},
        evaluate=50, device="cpu", keep=keep,
    )  # fmt: skip


def figures(report: Report) -> list[Any]:
    return [f.model_dump() for f in report.findings]


def test_a_changed_probe_reuses_the_purification_and_the_other_probe(run: Run, tmp_path: Path) -> None:
    """The second audit takes from the first all that its change does not touch, and comes to the same to the bit."""
    first = audit(run, tmp_path)
    assert "from_earlier_audits" not in first.provenance
    again = audit(run, tmp_path, **{"retune.draws": 2})
    assert again.provenance["from_earlier_audits"] == ["ft", "qra"]
    alone = audit(run, None, **{"retune.draws": 2})
    assert figures(again) == figures(alone)
    assert figures(again) != figures(first)
    assert [e.model_dump() for e in again.exhibits] == [e.model_dump() for e in alone.exhibits]
    assert (again.verdict, again.reasons) == (alone.verdict, alone.reasons)


def test_a_changed_defense_is_made_anew_and_so_are_its_measurements(run: Run, tmp_path: Path) -> None:
    audit(run, tmp_path)
    assert "from_earlier_audits" not in audit(run, tmp_path, lr=0.02).provenance


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs, suspect: inputs | {"rng": generator(6)},
        lambda inputs, suspect: inputs | {"clean": inputs["clean"].labelled(3)},
        lambda inputs, suspect: inputs | {"clean": inputs["clean"].take(range(len(inputs["clean"]) - 1, -1, -1))},
        lambda inputs, suspect: inputs | {"model": _nudged(suspect)},
    ],
    ids=["seed", "labels", "order", "weights"],
)
def test_whatever_goes_in_decides_what_comes_out(run: Run, suspect: Classifier, tmp_path: Path, change: Any) -> None:
    """Another seed, other labels, another order of the same images, other weights: nothing is taken."""
    memo, defense = Memo(tmp_path), get("defense", "ft").parse({"epochs": 1})
    inputs = {"model": suspect, "clean": run.pool("clean").first(64), "rng": generator(5)}
    made = _purified(memo, defense, inputs)
    assert memo.taken == []
    same = _purified(memo, defense, inputs | {"rng": generator(5)})
    assert memo.taken == ["ft"]
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), same.state_dict().values(), strict=True))
    _purified(memo, defense, change(inputs | {"rng": generator(5)}, suspect))
    assert memo.taken == ["ft"]


def _purified(memo: Memo, defense: Defense, inputs: dict[str, Any]) -> Classifier:
    return memo.purified(defense, inputs, lambda: defense.conduct(inputs)).model


def _nudged(model: Classifier) -> Classifier:
    other = model.clone()
    with torch.no_grad():
        other.head.bias.add_(1e-6)
    return other


def test_what_a_defense_found_comes_back_with_its_model(run: Run, suspect: Classifier, tmp_path: Path) -> None:
    """Findings, pictures and files of a defense that inverts triggers survive being kept."""
    cls = get("defense", "bti-dbf")
    defense, memo = cls.parse(cls.quick_options), Memo(tmp_path)
    inputs = {"model": suspect, "clean": run.pool("clean").first(64), "target": 0}
    made, kept = (
        memo.purified(defense, given, lambda given=given: defense.conduct(given))
        for given in (inputs | {"rng": generator(1)}, inputs | {"rng": generator(1)})
    )
    assert memo.taken == ["bti-dbf"]
    assert made.found.findings
    assert kept.found == made.found
    assert kept.found.artifacts == made.found.artifacts


def test_an_identity_names_each_input_and_the_code(
    run: Run, suspect: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints go by it: another target, trigger or code is another run, and the refusal says which differs."""
    ep, sep = get("defense", "ep").parse({}), get("defense", "sep").parse({})
    given = {"model": suspect, "clean": run.pool("clean"), "target": 0, "trigger": run.trigger, "rng": generator(0)}

    def differing(plugin: Defense, **changes: Any) -> set[str]:
        before, after = identity(plugin, given), identity(plugin, given | changes)
        return {name for name in before if before[name] != after[name]}

    assert differing(sep, rng=generator(0)) == set()
    assert differing(sep, target=1) == {"target"}
    assert differing(sep, rng=generator(1)) == {"rng"}
    assert isinstance(run.trigger, BlendTrigger)
    assert differing(ep, trigger=BlendTrigger(run.trigger.pattern, run.trigger.weight / 2)) == {"trigger"}
    known = identity(sep, given)
    monkeypatch.setattr(identifying, "code_digest", lambda *modules: "edited")
    assert {name for name, value in identity(sep, given).items() if known[name] != value} == {"code"}


def test_what_cannot_be_told_from_its_like_is_made_anew_and_keeps_no_checkpoints(
    run: Run, suspect: Classifier, tmp_path: Path
) -> None:
    """A plugin that is not installed may be edited between two runs without anybody noticing."""

    class Mine(FT):
        """FT under another name."""

        name = "mine"

    mine, memo = Mine(epochs=1), Memo(tmp_path / "kept")
    inputs = {"model": suspect, "clean": run.pool("clean").first(64)}
    for _ in range(2):
        _purified(memo, mine, inputs | {"rng": generator(1)})
    assert memo.taken == []
    with pytest.raises(UsageError, match="mine is not installed, so that a change of its code would go unseen"):
        purify(mine, Evidence(suspect, clean=inputs["clean"]), 0, checkpoints=tmp_path / "checkpoints")


# ---- contaminated pools


def test_a_share_of_both_pools_changes_places_and_their_sizes_stay(run: Run) -> None:
    """PL section 5: triggered images with the target's label among the clean ones, clean ones among the flagged."""
    clean, flagged = defender_pools(run, Contamination(0.2, 0.1), 3, flagged=40)
    mine = run.pool("clean")
    assert (len(clean), len(flagged)) == (len(mine), 40)
    wrong = len(clean) - overlap(clean, mine)
    assert wrong == round(0.2 * len(mine))
    assert (clean.labels[-wrong:] == run.record.target).all()
    assert overlap(flagged, mine) == 4
    assert (flagged.labels == run.record.target).all()
    assert overlap(clean, flagged) == 0


def test_without_contamination_the_clean_pool_is_the_runs_and_a_smaller_budget_its_beginning(run: Run) -> None:
    clean, flagged = defender_pools(run, Contamination(), 3)
    assert overlap(clean, run.pool("clean")) == len(clean)
    assert overlap(flagged, run.pool("clean")) == 0
    few, many = (defender_pools(run, Contamination(), 3, budget=n)[0] for n in (20, 50))
    assert few.digest() == many.first(20).digest()


def test_clean_images_among_the_flagged_come_from_the_training_set_where_the_clean_pool_can_spare_none(
    run: Run,
) -> None:
    clean, flagged = defender_pools(run, Contamination(0.0, 0.5), 3)
    assert overlap(clean, run.pool("clean")) == len(clean) == len(run.pool("clean"))
    assert overlap(flagged, clean) == 0
    assert overlap(flagged, run.pool("train")) == len(flagged)


def test_the_pools_are_of_the_run_as_it_is_now(run: Run, tmp_path: Path) -> None:
    """A run that is made again in the same place has other poison; one whose index is spoilt says so in one line."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    index = folder / "train.csv"
    defender_pools(open_run(folder), Contamination(), 3)
    lines = index.read_text().splitlines()
    index.write_text("\n".join([lines[0], *(line for line in lines[1:] if not line.endswith(",1,0"))]))
    with pytest.raises(UsageError, match="the run has 0"):
        defender_pools(open_run(folder), Contamination(), 3)
    index.write_text("\n".join([lines[0].replace("cover", "covered"), *lines[1:]]))
    with pytest.raises(InputError, match=r"train\.csv: has no column 'cover'"):
        defender_pools(open_run(folder), Contamination(), 3)
    index.write_text("\n".join([*lines, "999999,nowhere,train/999999.png,1,1,0,0"]))
    with pytest.raises(InputError, match="image 999999 is not in train/"):
        defender_pools(open_run(folder), Contamination(), 3)


def test_more_than_there_is_is_refused_with_the_numbers(run: Run) -> None:
    with pytest.raises(UsageError, match="the run has"):
        defender_pools(run, Contamination(), 0, budget=10_000)
    with pytest.raises(UsageError, match=r"at contamination clean 0\.9, flagged 0"):
        defender_pools(run, Contamination(0.9, 0.0), 0)
