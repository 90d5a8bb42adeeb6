"""The same grid on a real Ray cluster of two nodes, one of which goes while it is being run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.benches import plan_of
from programs import needs_ray

from bdaudit.bench.local import Local
from bdaudit.bench.plan import Stage
from bdaudit.bench.process import Outcome
from bdaudit.bench.run import Executor, Tally, bench_folder, run_plan
from bdaudit.bench.store import Result

# Ray's own sockets and subprocesses are left to the collector when it is shut down.
pytestmark = [needs_ray, pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core each, and this process connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


class Saboteur:
    """Takes the second node away until a cell is lost that ran there, and counts the workers that were lost."""

    def __init__(self, cluster: Any, executor: Any) -> None:
        self.cluster, self.executor, self.removed, self.lost = cluster, executor, False, 0
        self.usual = executor.wait
        executor.wait = self._wait

    def _wait(self) -> list[Outcome]:
        outcomes: list[Outcome] = self.usual()
        self.lost += sum(o.state == "lost" for o in outcomes)
        return outcomes

    def started(self, tally: Tally) -> None:
        pass

    def ended(self, stage: Stage, outcome: Outcome, tally: Tally) -> None:
        if stage.kind == "cell" and not self.lost:
            if self.removed:  # between two cells: a new one takes its place, and goes as well
                self.cluster.second = self.cluster.add_node(num_cpus=1)
            time.sleep(0.5)  # by now the node that has become free has its next cell
            self.cluster.remove_node(self.cluster.second, allow_graceful=False)
            self.removed = True


def figures(results: list[Result]) -> list[Any]:
    return [(r.cell.coordinates, r.probe, r.subject, r.variant, r.metric, r.value, r.low, r.high, r.n) for r in results]


def run(folder: Path, executor: Executor, watcher: Any = None) -> tuple[Tally, list[Any]]:
    plan = plan_of(defenses=["ft epochs=20", "fst epochs=20", "ft epochs=21", "fst epochs=21"])
    with bench_folder(folder) as store:
        tally = run_plan(plan, store, folder, executor, watcher=watcher)
        return tally, figures(store.results())


def test_a_grid_survives_the_loss_of_a_node_and_comes_to_what_it_comes_to_locally(cluster: Any, tmp_path: Path) -> None:
    """No cell is lost with the node, and every figure is the one that the local executor finds, to the bit."""
    from bdaudit.bench.on_ray import OnRay

    executor = OnRay(str(tmp_path / "ray"), cuda=False)
    assert executor.workers == 2
    saboteur = Saboteur(cluster, executor)
    tally, found = run(tmp_path / "ray", executor, saboteur)
    assert (tally.done, tally.failed) == (4, 0)
    assert saboteur.removed
    assert saboteur.lost >= 1
    _, here = run(tmp_path / "local", Local(str(tmp_path / "local"), [None, None]))
    assert found == here
    assert len(found) > 4 * 10


class Gone:
    """A cluster of which nothing is left but what its tasks raised."""

    def __init__(self, error: Exception) -> None:
        self.error, self.shut = error, False

    def __getattr__(self, name: str) -> Any:
        import ray

        return getattr(ray, name)

    def get(self, ref: object) -> None:
        raise self.error

    def cancel(self, ref: object, force: bool) -> None:
        raise ConnectionError("no cluster")

    def shutdown(self) -> None:
        self.shut = True


def executor_on(cluster: Gone) -> Any:
    from bdaudit.bench.on_ray import OnRay

    made: Any = OnRay.__new__(OnRay)
    made.ray, made.ours, made.running = cluster, True, {"ref": "key"}
    return made


def test_a_node_that_lacks_a_package_says_which_and_loses_no_worker() -> None:
    """Its stages fail with the message at once: another try would end alike. A worker that is gone is lost."""
    from ray.exceptions import RayTaskError, WorkerCrashedError

    why = ModuleNotFoundError("No module named 'bdaudit'")
    told = executor_on(Gone(RayTaskError("_on_a_node", "Traceback", why, ip="192.0.2.1")))._outcome("ref", "key")
    assert (told.state, told.reason) == ("failed", "on a node: ModuleNotFoundError: No module named 'bdaudit'")
    assert executor_on(Gone(WorkerCrashedError()))._outcome("ref", "key").state == "lost"


def test_a_cluster_that_is_gone_does_not_keep_an_executor_from_closing() -> None:
    executor = executor_on(Gone(ConnectionError()))
    executor.close()
    assert executor.ray.shut


def test_a_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from bdaudit.bench import on_ray
    from bdaudit.errors import BdauditError

    def refuse(**settings: Any) -> None:
        raise ConnectionError(f"nothing listens at {settings['address']}")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(BdauditError, match=r"no Ray cluster at 192\.0\.2\.1:6379 \(nothing listens") as caught:
        on_ray.OnRay(str(tmp_path), address="192.0.2.1:6379")
    assert caught.value.exit_code == 3
