"""Earlier purifications and measurements: the same bits as if made again, and only where nothing has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bdaudit import api
from bdaudit.defenses.base import Defense
from bdaudit.errors import UsageError
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.memo import Memo
from bdaudit.flow.run import Run
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


def test_more_than_there_is_is_refused_with_the_numbers(run: Run) -> None:
    with pytest.raises(UsageError, match="the run has"):
        defender_pools(run, Contamination(), 0, budget=10_000)
    with pytest.raises(UsageError, match=r"at contamination clean 0\.9, flagged 0"):
        defender_pools(run, Contamination(0.9, 0.0), 0)
