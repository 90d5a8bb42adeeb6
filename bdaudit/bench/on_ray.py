"""Stages on a Ray cluster: one that is there already, or one on this machine. Every node must see the folder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bdaudit.bench.plan import Stage
from bdaudit.bench.process import Job, Outcome, run_to_end
from bdaudit.errors import BdauditError, UsageError, one_line

QUEUED = 4
"""Stages that wait at Ray for each that runs: it never idles, and what is ready later can still go first."""


class OnRay:
    """Hands stages to Ray, which finds room for them; each still runs in a process of its own, as it does locally.

    address: of a cluster's head, or `auto`; None: RAY_ADDRESS, else a cluster on this machine alone. cuda: each stage
    takes a GPU where the cluster has any (None), always (True) or never (False).
    """

    def __init__(
        self,
        folder: str,
        *,
        address: str | None = None,
        threads: int = 1,
        limit: float | None = None,
        cuda: bool | None = None,
    ) -> None:
        ray = self.ray = _ray()
        self.folder, self.threads, self.limit = folder, threads, limit
        self.ours = not ray.is_initialized()
        if self.ours:
            _connect(ray, address)
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if cuda is not False else 0
        if cuda and not gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
        self.workers = gpus or max(1, int(there.get("CPU", 1)) // threads)
        self.capacity = QUEUED * self.workers
        self.task = ray.remote(num_cpus=threads, num_gpus=int(bool(gpus)), max_retries=0)(_on_a_node)
        self.running: dict[Any, str] = {}

    def submit(self, stage: Stage) -> None:
        """Queue a stage."""
        self.running[self.task.remote(Job(stage, self.folder, self.threads, self.limit))] = stage.key

    def wait(self) -> list[Outcome]:
        """Wait until a stage ends; return those that have."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1)
        return [self._outcome(ref, self.running.pop(ref)) for ref in ready]

    def _outcome(self, ref: Any, key: str) -> Outcome:
        try:
            outcome: Outcome = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as e:  # what runs there cannot even begin, here or on another node
            return Outcome(key, "failed", reason=f"on a node: {type(e.cause).__name__}: {one_line(e.cause, 300)}")
        except self.ray.exceptions.RayError as e:
            time.sleep(0.2)  # what a dying node still offers is not taken up at once again
            return Outcome(key, "lost", reason=f"its worker was lost ({type(e).__name__})")
        return outcome

    def close(self) -> None:
        """Stop what is under way, and the cluster if it was started for this."""
        with suppress(Exception):  # the cluster may be gone, and why is being told already
            for ref in self.running:
                self.ray.cancel(ref, force=True)
        self.running.clear()
        if self.ours:
            self.ray.shutdown()


def _on_a_node(job: Job) -> Outcome:
    """What a Ray worker does: a process that sees the GPU which Ray gave to this task, if it gave one."""
    return run_to_end(replace(job, gpu=os.environ.get("CUDA_VISIBLE_DEVICES")))


def _ray() -> Any:
    # Ray's future default, which it otherwise warns of: tasks without a GPU leave the variable alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray: Ray is not installed; pip install 'bdaudit[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    alone = address is None and not os.environ.get("RAY_ADDRESS")
    settings = {"include_dashboard": False} if alone else {}
    try:
        ray.init(address="local" if alone else address, log_to_driver=False, logging_level="ERROR", **settings)
    except Exception as e:  # Ray raises that very class where a node does not start in time
        where = f"at {one_line(address, 80)}" if address else "here"
        raise BdauditError(f"--executor ray: no Ray cluster {where} ({one_line(e, 200)})") from e
