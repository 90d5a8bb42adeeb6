"""Stages on this machine, each in a process with its own threads or GPU."""

from __future__ import annotations

import time
from multiprocessing.connection import wait

from bdaudit.bench.plan import Stage
from bdaudit.bench.process import Job, Outcome, Started


class Local:
    """Runs so many stages at a time; gpus: the devices that they are spread over, if any."""

    def __init__(
        self, folder: str, *, workers: int, threads: int = 1, limit: float | None = None, gpus: tuple[str, ...] = ()
    ) -> None:
        self.workers = self.capacity = workers
        self.folder, self.threads, self.limit = folder, threads, limit
        self.running: dict[str | int, Started] = {}
        # What a stage occupies while it runs: a GPU, which several may share, or a place among the cores.
        self.free: list[str | None] = [gpus[i % len(gpus)] if gpus else None for i in range(workers)]

    def submit(self, stage: Stage) -> None:
        """Start a stage; no more than `capacity` may be under way."""
        job = Job(stage, self.folder, self.threads, self.limit, self.free.pop(0))
        self.running[stage.key] = Started(job)

    def wait(self, seconds: float) -> list[Outcome]:
        """Wait until a stage ends, but no longer than so; return those that have."""
        until = time.monotonic() + seconds
        ended: list[Outcome] = []
        while not ended and self.running:
            patience = min([until - time.monotonic(), *(s.left for s in self.running.values() if s.left is not None)])
            ready = wait([s.answer for s in self.running.values()], max(0.0, patience))
            for key, started in list(self.running.items()):
                if started.answer in ready:
                    ended.append(started.outcome())
                elif started.left is not None and started.left <= 0:
                    ended.append(started.too_late())
                else:
                    continue
                del self.running[key]
                self.free.append(started.job.gpu)
            if time.monotonic() >= until:
                break
        return ended

    def close(self) -> None:
        """Stop what is under way."""
        for started in self.running.values():
            started.process.terminate()
        for started in self.running.values():
            started.stop()
        self.running.clear()
