"""The loop that runs a plan, on an executor that does nothing but what each test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bench.benches import SMALL, plan_of, report_of

from bdaudit.bench.plan import Plan, Stage
from bdaudit.bench.process import Outcome
from bdaudit.bench.progress import news, said
from bdaudit.bench.run import Tally, bench_folder, outstanding, run_plan
from bdaudit.bench.store import CellRow
from bdaudit.errors import OutputError
from bdaudit.flow.output import REPORT

Act = Callable[[Stage, int], Outcome]


def do(stage: Stage, folder: Path, seconds: float = 2.0) -> Outcome:
    """Leave what a stage leaves."""
    place = folder / stage.path
    if stage.kind == "cell":
        place.mkdir(parents=True)
        (place / REPORT).write_text(report_of(0.9, 0.1, 0.5).to_json())
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return Outcome(stage.key, "done", seconds)


class Scripted:
    """An executor of two places: `act` says what comes of the n-th try of each stage."""

    workers = capacity = 2

    def __init__(self, act: Act) -> None:
        self.act = act
        self.queue: list[Stage] = []
        self.order: list[Stage] = []
        self.closed = False

    def submit(self, stage: Stage) -> None:
        assert len(self.queue) < self.capacity
        self.queue.append(stage)
        self.order.append(stage)

    def wait(self) -> list[Outcome]:
        stage = self.queue.pop(0)
        return [self.act(stage, [s.key for s in self.order].count(stage.key))]

    def close(self) -> None:
        self.closed = True


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []
        self.news: list[str] = []

    def started(self, tally: Tally) -> None:
        self.tallies.append(Tally(**vars(tally)))

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        self.tallies.append(Tally(**vars(tally)))
        self.news.append(news(stage, outcome))


def run(plan: Plan, folder: Path, act: Act, **more: int) -> tuple[Scripted, Tally, list[CellRow], Told]:
    executor, told = Scripted(act), Told()
    with bench_folder(folder) as store:
        tally = run_plan(plan, store, folder, executor, watcher=told, **more)
        return executor, tally, store.cells(), told


def test_each_shared_stage_is_done_once_and_before_what_needs_it(tmp_path: Path) -> None:
    plan = plan_of(attacks=["badnets", "blended"])
    executor, tally, cells, _ = run(plan, tmp_path, lambda s, n: do(s, tmp_path))
    assert sorted(s.key for s in executor.order) == sorted(s.key for s in plan.stages)
    place = {s.key: i for i, s in enumerate(executor.order)}
    assert all(place[need] < place[s.key] for s in executor.order for need in s.needs)
    assert (tally.done, tally.failed, tally.left) == (4, 0, 0)
    assert {c.state for c in cells} == {"done"}
    assert executor.closed


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    run(plan_of(), tmp_path, lambda s, n: do(s, tmp_path))
    executor, tally, _, _ = run(plan_of(), tmp_path, lambda s, n: do(s, tmp_path))
    assert executor.order == []
    assert tally.done == 2


def test_a_defense_more_costs_its_own_cells_alone(tmp_path: Path) -> None:
    run(plan_of(), tmp_path, lambda s, n: do(s, tmp_path))
    grown = plan_of(defenses=[*SMALL["defenses"], "pl"])
    executor, _, _, _ = run(grown, tmp_path, lambda s, n: do(s, tmp_path))
    assert [s.label for s in executor.order] == ["badnets, pl, seed 0"]


def test_a_model_that_is_gone_is_made_again_only_for_cells_that_need_it(tmp_path: Path) -> None:
    """Folders of models may be deleted to save space; finished cells do not bring them back."""
    plan = plan_of()
    run(plan, tmp_path, lambda s, n: do(s, tmp_path))
    victim = plan.of_kind("victim")[0]
    (tmp_path / victim.path).unlink()
    assert outstanding(plan, tmp_path) == []
    assert victim in outstanding(plan_of(defenses=["pl"]), tmp_path)


def test_one_failed_cell_loses_no_other_and_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    bad = "badnets, ft epochs=1, seed 0"

    def act(stage: Stage, n: int) -> Outcome:
        return Outcome(stage.key, "failed", 1.0, "it diverged") if stage.label == bad else do(stage, tmp_path)

    executor, tally, cells, _ = run(plan_of(), tmp_path, act)
    assert (tally.done, tally.failed, tally.left) == (1, 1, 0)
    assert [(c.state, c.reason) for c in cells] == [("failed", "it diverged"), ("done", "")]
    assert len(executor.order) == 4  # a failure is no loss: the same would come of it
    executor, tally, cells, _ = run(plan_of(), tmp_path, lambda s, n: do(s, tmp_path))
    assert [s.label for s in executor.order] == [bad]
    assert {c.state for c in cells} == {"done"}


def test_cells_whose_model_failed_are_given_up_with_its_name(tmp_path: Path) -> None:
    def act(stage: Stage, n: int) -> Outcome:
        failed = stage.kind == "victim" and stage.spec["attack"] == "blended"
        return Outcome(stage.key, "failed", 1.0, "no memory") if failed else do(stage, tmp_path)

    _, tally, cells, _ = run(plan_of(attacks=["badnets", "blended"]), tmp_path, act)
    assert (tally.done, tally.failed, tally.left) == (2, 2, 0)
    assert [c.state for c in cells] == ["done", "done", "blocked", "blocked"]
    assert cells[2].reason == "what it needs failed: backdoored model, blended, seed 0"


def test_models_that_only_given_up_cells_needed_are_not_trained(tmp_path: Path) -> None:
    """Seed 0's twin fails: its four cells are given up, and with them their models, none of which has begun."""

    def act(stage: Stage, n: int) -> Outcome:
        failed = stage.kind == "twin" and stage.spec["seed"] == 0
        return Outcome(stage.key, "failed", 1.0, "no memory") if failed else do(stage, tmp_path)

    plan = plan_of(attacks=["badnets", "blended", "sig", "lf"], defenses=["ft epochs=1"], seeds=[0, 1])
    executor, tally, _, _ = run(plan, tmp_path, act)
    assert (tally.done, tally.failed, tally.left) == (4, 4, 0)
    trained = [s.spec["seed"] for s in executor.order if s.kind == "victim"]
    assert trained.count(1) == 4
    assert trained.count(0) == 0


def test_a_lost_worker_is_replaced_so_many_times(tmp_path: Path) -> None:
    """Lost twice and then done is done; lost once more than allowed has failed, and says how often it was tried.

    Nobody is left to wonder what takes so long: each lost try is told.
    """

    def act(stage: Stage, n: int) -> Outcome:
        lost = n <= 2 if "fst" in stage.label else "ft" in stage.label
        return Outcome(stage.key, "lost", 1.0, "its process died (SIGKILL)") if lost else do(stage, tmp_path)

    _, tally, cells, told = run(plan_of(), tmp_path, act, retries=2)
    assert (tally.done, tally.failed, tally.left) == (1, 1, 0)
    why = "its process died (SIGKILL)"
    assert told.news.count(f"badnets, fst epochs=1, seed 0 LOST, is tried again: {why}") == 2
    assert told.news.count(f"badnets, ft epochs=1, seed 0 LOST, is tried again: {why}") == 2
    assert f"badnets, ft epochs=1, seed 0 FAILED: {why}; tried 3 times" in told.news
    assert [(c.state, c.reason) for c in cells] == [
        ("failed", "its process died (SIGKILL); tried 3 times"),
        ("done", ""),
    ]


def test_audits_that_a_killed_run_left_behind_count(tmp_path: Path) -> None:
    """The folder of an audit appears whole or not at all; one that the database does not know of is read into it."""
    plan = plan_of()
    do(plan.cells[0].stage, tmp_path / "b")
    with pytest.raises(OutputError, match="exists and holds something else"), bench_folder(tmp_path / "b"):
        pass
    run(plan_of(defenses=["pl"]), tmp_path / "c", lambda s, n: do(s, tmp_path / "c"))
    do(plan.cells[0].stage, tmp_path / "c")
    executor, _, cells, _ = run(plan, tmp_path / "c", lambda s, n: do(s, tmp_path / "c"))
    assert [s.label for s in executor.order if s.kind == "cell"] == ["badnets, fst epochs=1, seed 0"]
    assert [(c.state, c.verdict) for c in cells] == [("done", "fail")] * 2


def test_a_report_that_cannot_be_read_is_a_failure_now_and_in_the_next_run(tmp_path: Path) -> None:
    """Nothing replaces a folder that holds something else than an audit; it stops no other cell."""

    def act(stage: Stage, n: int) -> Outcome:
        outcome = do(stage, tmp_path)
        if stage.kind == "cell":
            (tmp_path / stage.path / REPORT).write_text("{}")
        return outcome

    for _ in range(2):
        _, tally, cells, _ = run(plan_of(), tmp_path, act)
        assert (tally.done, tally.failed, tally.left) == (0, 2, 0)
        assert "not a bdaudit report" in cells[0].reason
        assert cells[0].reason.endswith("; delete the folder to make it again")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        bench_folder(tmp_path / "b"),
        pytest.raises(OutputError, match="another bench is running in it"),
        bench_folder(tmp_path / "b"),
    ):
        pass


def test_the_tally_counts_down_and_predicts_from_what_was_measured(tmp_path: Path) -> None:
    """Two models of 2 s say nothing of cells; the first cell says what the other, of the same passes, will take."""
    _, _, _, told = run(plan_of(), tmp_path, lambda s, n: do(s, tmp_path))
    assert [(t.done, t.failed, t.left) for t in told.tallies] == [(0, 0, 2)] * 3 + [(1, 0, 1), (2, 0, 0)]
    assert [t.seconds_left for t in told.tallies[:3]] == [None] * 3
    assert told.tallies[3].seconds_left == pytest.approx(2.0)
    assert said(told.tallies[3]) == "1 done, 0 failed, 1 left, about 2 s"


def test_an_interrupted_run_stops_what_is_under_way(tmp_path: Path) -> None:
    def act(stage: Stage, n: int) -> Outcome:
        raise KeyboardInterrupt

    executor = Scripted(act)
    with bench_folder(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        run_plan(plan_of(), store, tmp_path, executor)
    assert executor.closed
