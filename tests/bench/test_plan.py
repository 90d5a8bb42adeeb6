"""Plans: what is shared, what changes a key and what does not, and that planning costs next to nothing."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench.benches import grid_of, plan_of
from PIL import Image

from bdaudit.bench import plan as planning
from bdaudit.bench import work
from bdaudit.bench.cost import Estimate, passes_of_audit, span
from bdaudit.bench.plan import Plan, make_plan
from bdaudit.bench.work import check_code
from bdaudit.errors import InputError, UsageError
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


def test_a_cell_with_another_attacks_images_needs_that_attacks_run_and_its_own_images_are_the_same_cell() -> None:
    attacks = ["badnets", "blended"]
    own = plan_of(attacks=attacks, defenses="pl")
    crossed = plan_of(attacks=attacks, defenses="pl", malicious=attacks)
    needs = {c.stage.label: set(c.stage.needs) for c in crossed.cells}
    models = keys(crossed, "twin") | keys(crossed, "victim")
    assert needs["badnets, pl, flagged images of blended, seed 0"] == models == keys(own, "twin") | keys(own, "victim")
    assert keys(own, "cell") < keys(crossed, "cell")
    assert len(keys(crossed, "cell")) == 4


def test_defenses_to_transfer_to_are_all_but_the_cells_own_and_decide_its_key() -> None:
    def cells(*others: str) -> dict[str, Any]:
        plan = plan_of(probes=["transfer"], audit={"evaluate": 60, "transfer_to": list(others)})
        return {c.place.defense.label: c.stage for c in plan.cells}

    both, three = cells("ft epochs=1", "fst epochs=1"), cells("ft epochs=1", "fst epochs=1", "pl")
    assert {name: [o["label"] for o in s.spec["transfer_to"]] for name, s in both.items()} == {
        "ft epochs=1": ["fst epochs=1"],
        "fst epochs=1": ["ft epochs=1"],
    }
    assert all(both[name].key != three[name].key for name in both)
    renamed = cells("ft epochs=01", "fst epochs=1")  # the same defense; findings bear its name
    assert renamed["fst epochs=1"].key != both["fst epochs=1"].key


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


def test_another_picture_under_the_same_name_is_another_model(tmp_path: Path) -> None:
    """What is in a file that an option names decides the result; the clean twin does not see it."""
    picture = tmp_path / "a.png"
    plans = []
    for shade in (10, 200):
        Image.new("L", (16, 16), shade).save(picture)
        plans.append(plan_of(attacks=[{"name": "blended", "pattern": "image", "image": str(picture)}]))
    assert keys(plans[0], "twin") == keys(plans[1], "twin")
    assert not keys(plans[0], "victim") & keys(plans[1], "victim")


def test_another_module_beside_a_network_of_the_users_own_is_another_model(tmp_path: Path) -> None:
    """The file that is named may import it."""
    own = "from torch import nn\n\ndef make(num_classes=10):\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))\n"
    (tmp_path / "m.py").write_text(own)
    plans = []
    for width in (4, 8):
        (tmp_path / "width.py").write_text(f"W = {width}\n")
        plans.append(plan_of(arch=f"{tmp_path / 'm.py'}:make"))
    assert not keys(plans[0], "twin") & keys(plans[1], "twin")


@pytest.mark.parametrize("package", ["torch", "torchvision", "timm"])
def test_another_version_of_a_library_is_another_stage(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    before = plan_of()
    usual = planning._version
    monkeypatch.setattr(planning, "_version", lambda name: "0.0" if name == package else usual(name))
    assert not {s.key for s in before.stages} & {s.key for s in plan_of().stages}


def test_work_with_other_code_than_was_planned_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a cluster may have another version; its results would stand under the wrong key."""
    stages = plan_of().stages
    for stage in stages:
        check_code(stage)
    usual = planning._version
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_version", lambda name: "2.11" if name == "torch" else usual(name))
        with pytest.raises(InputError, match="torch differs from that which the grid was planned with"):
            check_code(stages[0])
    monkeypatch.setattr(work, "plugin_identity", lambda plugin: {"code": "edited"})
    check_code(stages[0])
    for stage in stages[1:]:
        with pytest.raises(InputError, match=r"^(badnets|ft|fst) differs"):
            check_code(stage)


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


def test_a_stage_says_which_data_and_architecture_where_there_are_several() -> None:
    """Else two cells, or two models, would go by one name in progress and among failures."""
    plan = plan_of(arch=["", "small_cnn:width=3"], defenses=["ft"])
    assert [s.label for s in plan.stages] == [
        "default, clean twin, seed 0",
        "small_cnn:width=3, clean twin, seed 0",
        "default, backdoored model, badnets, seed 0",
        "small_cnn:width=3, backdoored model, badnets, seed 0",
        "default, badnets, ft, seed 0",
        "small_cnn:width=3, badnets, ft, seed 0",
    ]


def test_a_cell_under_two_names_is_refused() -> None:
    """An architecture and itself with a default typed out: one result cannot have two places in the table."""
    words = "a cell twice, under two names: small_cnn, badnets, .* and small_cnn:width=16, badnets, .*; leave one"
    with pytest.raises(UsageError, match=words):
        plan_of(arch=["small_cnn", "small_cnn:width=16"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": [5000], "victim": {"images": 600}}, "not enough for 600 training, 5000 clean, 1 reserve and"),
        ({"victim": {"flagged": 5000}}, "5000 flagged images were asked for, badnets poisons"),
        ({"victim": {"flagged": 0}}, "0 flagged images were asked for"),
        ({"budgets": [20, 90]}, "budgets: 90 is more than the 60 images of clean under"),
        ({"victim": {"target": 99}}, r"target 99 is out of range: the model has classes 0\.\.9"),
    ],
)  # fmt: skip
def test_what_the_data_cannot_give_is_said_before_anything_runs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(**changes)


def test_an_unknown_data_set_or_architecture_is_said_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="did you mean digits"):
        plan_of(data="digit")
    with pytest.raises(UsageError, match="small_cnn has no option"):
        plan_of(arch="small_cnn:wdth=3")


def test_a_thousand_cells_are_planned_within_two_seconds_and_the_cost_grows_linearly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """10, 100 and 1,000 cells: of each its own key is hashed and those of its two models; data and code only once."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> None:
        usual = getattr(planning, name)
        monkeypatch.setattr(planning, name, lambda *given: counts.update([name]) or usual(*given))

    for name in ("digest", "load_dataset", "plugin_identity", "code_digest"):
        counted(name)
    for cells in (10, 100, 1000):
        grid = grid_of(seeds=list(range(cells // 2)))
        counts.clear()
        start = time.process_time()
        assert len(make_plan(grid, "cpu").cells) == cells
        seconds = time.process_time() - start
        assert counts == {"digest": 1 + 3 * cells, "load_dataset": 1, "plugin_identity": 4, "code_digest": 2}
    assert seconds < 2


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
    assert passes_of_audit([grid.defenses[0].plugin], [c.plugin for c in grid.probes], 60) == 60 + 2 * 64 * (1 + 3)


def test_what_trains_is_reckoned_by_its_training_set() -> None:
    """BSD names no `epochs`: ten over all training images, not over the clean ones, which it does not get."""
    [cell] = plan_of(defenses=["bsd"], probes=[], victim={"images": 500, "clean": 20}).cells
    assert cell.stage.passes == 10 * 500


def test_spans_are_written_as_people_say_them() -> None:
    assert [span(s) for s in (None, 3.2, 600, 3 * 3600)] == ["unknown", "3 s", "10 min", "3.0 h"]
