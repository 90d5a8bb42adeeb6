"""Plans: what is shared, what changes a key and what does not, and that planning costs next to nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from bench.benches import grid_of, plan_of

from bdaudit.bench import plan as planning
from bdaudit.bench.cost import Estimate, passes_of_audit, span
from bdaudit.bench.plan import Plan, make_plan
from bdaudit.errors import UsageError
from bdaudit.flow import code


def keys(plan: Plan, kind: Any) -> set[str]:
    return {s.key for s in plan.of_kind(kind)}


def test_one_backdoored_model_serves_every_defense_and_one_clean_twin_every_attack() -> None:
    plan = plan_of(attacks=["badnets", "blended"], defenses=["ft", "fst", "pl"], contamination=[0, 0.1], seeds=[0, 1])
    assert [len(plan.of_kind(k)) for k in ("twin", "victim", "cell")] == [2, 4, 24]
    assert len({c.stage.needs for c in plan.cells}) == 4
    assert all(set(c.stage.needs) <= keys(plan, "twin") | keys(plan, "victim") for c in plan.cells)


def test_a_stage_comes_after_what_it_needs() -> None:
    stages = plan_of(seeds=[0, 1]).stages
    place = {s.key: i for i, s in enumerate(stages)}
    assert all(place[need] < place[s.key] for s in stages for need in s.needs)


def test_the_same_grid_has_the_same_keys() -> None:
    assert plan_of().stages == plan_of().stages


def test_an_option_typed_at_its_default_changes_nothing() -> None:
    """Keys are made of options after defaults."""
    assert keys(plan_of(defenses=["ft"]), "cell") == keys(plan_of(defenses=["ft epochs=20"]), "cell")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"defenses": ["ft epochs=2"]}, {"twin", "victim"}),
        ({"options": {"probe": {"retune": {"draws": 2}}}}, {"twin", "victim"}),
        ({"probes": ["retune", "qra"]}, {"twin", "victim"}),
        ({"contamination": [0.1]}, {"twin", "victim"}),
        ({"audit": {"evaluate": 61}}, {"twin", "victim"}),
        ({"attacks": ["badnets rate=0.1"]}, {"twin"}),
        ({"seeds": [1]}, set()),
        ({"arch": "small_cnn:width=3"}, set()),
        ({"victim": {"epochs": 2, "flagged": 6}}, set()),
    ],
)
def test_a_change_reaches_only_what_depends_on_it(changes: dict[str, Any], kept: set[str]) -> None:
    """A defense's option leaves models alone, an attack's the clean twin, a seed nothing."""
    before, after = plan_of(), plan_of(**changes)
    for kind in ("twin", "victim", "cell"):
        same = keys(before, kind) == keys(after, kind)
        assert same == (kind in kept)
        assert same or not keys(before, kind) & keys(after, kind)


def test_one_defense_more_leaves_the_other_cells_alone() -> None:
    assert keys(plan_of(), "cell") < keys(plan_of(defenses=["ft epochs=1", "fst epochs=1", "pl"]), "cell")


def test_other_images_are_other_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of the same name with other pixels change every key."""
    before = plan_of()
    load = planning.load_dataset

    def brighter(name: str) -> Any:
        dataset = load(name)
        object.__setattr__(dataset, "train", dataset.train.map(lambda images: images // 2))
        return dataset

    monkeypatch.setattr(planning, "load_dataset", brighter)
    assert not {s.key for s in before.stages} & {s.key for s in plan_of().stages}


def test_other_code_is_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of what trains a model enters its key, and that of what audits it its cells' keys alone."""
    before = plan_of()
    digest = planning.code_digest
    monkeypatch.setattr(
        planning, "code_digest", lambda *modules: "edited" if modules == planning.AUDITED_BY else digest(*modules)
    )
    after = plan_of()
    assert keys(before, "victim") == keys(after, "victim")
    assert not keys(before, "cell") & keys(after, "cell")


def test_the_code_of_a_module_is_what_it_imports_however_far_down() -> None:
    """A defense rests on the training loop and not on another defense or on how reports look."""
    closure = code._closure(["bdaudit.defenses.fst"])
    assert {"bdaudit.defenses.fst", "bdaudit.defenses.base", "bdaudit.training.loop", "bdaudit.ops"} <= set(closure)
    assert not {"bdaudit.defenses.pl", "bdaudit.report.html", "bdaudit.cli.main"} & set(closure)
    assert code.code_digest("bdaudit.defenses.fst") != code.code_digest("bdaudit.defenses.pl")


def test_too_few_images_are_said_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="digits has 1797 rows: not enough for 600 training, 5000 clean"):
        plan_of(budgets=[5000], victim={"images": 600})


def test_an_unknown_data_set_or_architecture_is_said_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="did you mean digits"):
        plan_of(data="digit")
    with pytest.raises(UsageError, match="small_cnn has no option"):
        plan_of(arch="small_cnn:wdth=3")


def seconds_to_plan(cells: int) -> float:
    """Plan two defenses for so many seeds, the best of three."""
    grid = grid_of(seeds=list(range(cells // 2)))
    times = []
    for _ in range(3):
        start = time.process_time()
        assert len(make_plan(grid, "cpu").cells) == cells
        times.append(time.process_time() - start)
    return min(times)


def test_a_thousand_cells_are_planned_within_two_seconds_and_the_cost_grows_linearly() -> None:
    """10, 100 and 1,000 cells: the last takes under 2 s, and no more than its share of cells over a fixed start."""
    seconds_to_plan(10)  # what is read once: data, code
    ten, hundred, thousand = map(seconds_to_plan, (10, 100, 1000))
    assert thousand < 2
    assert (thousand - ten) / 990 < 3 * max(hundred - ten, 0.001) / 90


def test_an_estimate_is_measured_where_it_can_be_and_scaled_by_images_elsewhere() -> None:
    plan = plan_of(defenses=["ft epochs=1", "ft epochs=9"], seeds=[0, 1])
    one, other = (c.stage for c in plan.cells if c.place.seed == 0)
    assert other.passes > one.passes
    estimate = Estimate(plan.stages, {})
    assert estimate.total(plan.stages) is None
    estimate = Estimate(plan.stages, {one.key: 10.0})
    twin_cell = next(c.stage for c in plan.cells if c.place.seed == 1 and c.place.defense.label == "ft epochs=1")
    assert estimate.seconds(twin_cell) == 10.0
    assert estimate.seconds(other) == pytest.approx(10.0 * other.passes / one.passes)
    assert estimate.seconds(plan.stages[0]) is None
    estimate.speed = 100.0
    assert estimate.seconds(plan.stages[0]) == pytest.approx(plan.stages[0].passes / 100)
    assert estimate.total([one, other]) == pytest.approx(10 + 10 * other.passes / one.passes)


def test_reckoned_passes_count_the_defense_and_every_retuning() -> None:
    """FT for one epoch over 60 images; one draw of a retuning of 64 images for one epoch, and three null triggers,
    each on two models."""
    grid = grid_of(defenses=["ft epochs=1"])
    assert passes_of_audit(grid.defenses[0].plugin, [c.plugin for c in grid.probes], 60) == 60 + 2 * 64 * (1 + 3)


def test_spans_are_written_as_people_say_them() -> None:
    assert [span(s) for s in (None, 3.2, 600, 3 * 3600)] == ["unknown", "3 s", "10 min", "3.0 h"]
