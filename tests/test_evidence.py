"""docs/evidence.md says what the committed results say, and the rules behind it can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bdaudit.attacks.base import Attack
from bdaudit.bench.grid_file import read_grid
from bdaudit.flow.implant import check_flagged
from bdaudit.inputs.pool import Pool
from benchmarks.evidence.__main__ import PAGE
from benchmarks.evidence.page import page, row
from benchmarks.evidence.results import RESULTS, Claim, Rate, Results, costing, crossed, effective, monotone, ordered

GRIDS = sorted((RESULTS.parent / "grids").glob("*.toml"))


def results(folder: Path, rates: dict[str, float], larger: dict[str, float] | None = None) -> Results:
    """Write what defenses left on BadNets as result files do, and read it; larger: with 1,000 clean images, not 500."""
    common = {"run": "badnets-0", "attack": "badnets", "eps": 0.0, "c_acc": 0.9, "n": 1000}
    rows: list[dict[str, Any]] = [
        common | {"clean": clean, "defense": spec, "o_asr": rate}
        for clean, left in ((1000, larger or {}), (500, rates))
        for spec, rate in left.items()
    ]
    for name, content in {"flow_clean_twin": [], "defenses_x": rows}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Results(folder)


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page(Results()), "run python -m benchmarks.evidence"


@pytest.mark.parametrize(
    ("left", "holds"),
    [((0.9, 0.5, 0.01), True), ((0.9, 0.5, 0.6), False), ((0.5, 0.505, 0.01), True)],
    ids=["falls", "rises", "within the slack"],
)
def test_an_order_is_judged_by_every_step(tmp_path: Path, left: tuple[float, ...], holds: bool) -> None:
    names = ("ft", "lp", "fst")
    found = results(tmp_path, dict(zip(names, left, strict=True)))
    assert [part.holds for part in ordered(found, names)] == [holds]


def test_a_trade_off_is_judged_along_the_option_in_order_of_its_value(tmp_path: Path) -> None:
    rates = {"d3": 0.3, "d3 epsilon=0.05": 0.6, "d3 epsilon=1": 0.1, "d3 penalty=1": 0.9}
    [part] = monotone(results(tmp_path, rates), "d3", "epsilon", 0.1)
    assert part.holds
    assert part.text.startswith("badnets-0: 0.05: 60.0 [")
    [part] = monotone(results(tmp_path, {**rates, "d3 epsilon=1": 0.4}), "d3", "epsilon", 0.1)
    assert not part.holds


def test_a_trade_off_keeps_to_the_other_options(tmp_path: Path) -> None:
    fixed = {f"pam rho={rho} accuracy_drop=1": left for rho, left in ((0.1, 0.3), (0.5, 0.2), (0.9, 0.1))}
    found = results(tmp_path, {"pam": 0.9, "pam rho=0.3": 0.0, **fixed})
    [part] = monotone(found, "pam", "rho", 0.5, fixed={"accuracy_drop": "1"})
    assert part.holds
    assert [text.partition(":")[0] for text in part.text.partition(": ")[2].split("], ")] == ["0.1", "0.5", "0.9"]
    assert not list(monotone(found, "pam", "rho", 0.5)), "two points are no trade-off"


def test_a_trade_off_is_looked_for_on_one_victim_at_a_time(tmp_path: Path) -> None:
    """A value that was tried on one victim and another that was tried on the next say nothing together."""
    found = results(tmp_path, {"d3": 0.3, "d3 epsilon=0.05": 0.6, "d3 epsilon=1": 0.1})
    next(row for row in found.tuned if row["defense"] == "d3 epsilon=1")["run"] = "badnets-1"
    assert not list(monotone(found, "d3", "epsilon", 0.1))


def test_a_model_is_compared_with_what_was_made_of_it(tmp_path: Path) -> None:
    """Suspects that a defense was not tried on do not count."""
    found = results(tmp_path, {"": 1.0, "bsd": 0.04})
    found.tuned += [row | {"run": "badnets-1", "c_acc": 0.1} for row in found.left("badnets", "")]
    assert [(a["run"], b["run"]) for a, b in found.beside_suspects("badnets", "bsd")] == [("badnets-0", "badnets-0")]
    [part] = effective(found, "bsd", 0.95)
    assert part.holds
    assert part.text.startswith("bsd on badnets: DER 98.0, ASR 4.0 [")
    [cost] = costing(found, "bsd", 0.0, 0.03)
    assert (cost.text, cost.holds) == ("bsd on badnets: 90.0 -> 90.0", True)
    assert not next(effective(found, "bsd", 0.99)).holds


def test_defenses_are_compared_on_clean_pools_of_one_size(tmp_path: Path) -> None:
    found = results(tmp_path, {"ft": 0.9, "fst": 0.5}, larger={"ft": 0.1, "fst": 0.1, "sep": 0.0})
    assert found.after("badnets", "ft", "o_asr") == Rate((0.9,), 1000)
    assert found.after("badnets", "sep", "o_asr") is None
    assert results(tmp_path, {}, larger={"sep": 0.2}).after("badnets", "sep", "o_asr") == Rate((0.2,), 1000)


def test_images_of_another_attack_are_told_from_the_triggers_of_another(tmp_path: Path) -> None:
    """A model shown its own images counts under others' triggers, one shown another's under its own trigger alone."""

    def rows(run: str, donor: str, left: float) -> list[dict[str, Any]]:
        triggers = {"badnets-1": left, "wanet-1": left / 10}
        return [{"run": run, "donor": donor, "trigger": t, "asr": asr, "n": 1000} for t, asr in triggers.items()]

    pairs = [
        ("badnets-1", "", 1.0),
        ("wanet-1", "", 0.1),
        ("badnets-1", "badnets-1", 0.01),
        ("badnets-1", "wanet-1", 0.9),
        ("wanet-1", "badnets-1", 0.8),
    ]
    (tmp_path / "cross_x.json").write_text(json.dumps([row for pair in pairs for row in rows(*pair)]))
    found = results(tmp_path, {})
    [own] = crossed(found, own_images=True, most=0.05)
    assert own.holds
    assert own.text.startswith("badnets, shown badnets, under wanet's trigger: 10.0 -> 0.1 [")
    others = list(crossed(found, own_images=False, most=0.05))
    assert [(p.text.rpartition(":")[0], p.holds) for p in others] == [
        ("badnets, shown wanet, under badnets's trigger", False),
        ("wanet, shown badnets, under wanet's trigger", False),
    ]


def test_a_claim_is_echoed_in_part_or_not_at_all(tmp_path: Path) -> None:
    subject = Claim("X", "says", lambda found: ordered(found, ("ft", "fst")), cause="because", missing="not all")
    assert row(subject, results(tmp_path, {"ft": 0.9, "fst": 0.1}))[3:] == ["echoed", "not all"]
    assert row(subject, results(tmp_path, {"ft": 0.1, "fst": 0.9}))[3:] == ["not echoed", "because. not all"]
    assert row(subject, results(tmp_path, {"ft": 0.1}))[3:] == ["not measured", "not all"]


def test_a_run_has_an_interval_over_its_images_and_several_their_range() -> None:
    assert str(Rate((0.1,), 1000)) == "10.0 [8.3, 12.0]"
    assert str(Rate((0.1, 0.3))) == "20.0 (10.0 to 30.0)"


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_grids_of_the_papers_tables_can_be_run(file: Path) -> None:
    grid = read_grid(file)
    assert grid.victim.images == 10_000
    assert len(grid.places()) >= 36
    for attack in (choice.plugin for choice in grid.attacks):
        assert isinstance(attack, Attack)
        rows = Pool.of(torch.zeros(10_000, 1, 1, 1, dtype=torch.uint8), torch.arange(10_000) % 10)
        check_flagged(attack, rows, attack.goal(0, 10), grid.victim.flagged)


def test_every_table_that_has_a_grid_is_there() -> None:
    assert len(GRIDS) == 13
