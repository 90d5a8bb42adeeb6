"""Stages on this machine, each in a process with its own threads or GPU."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import wait

from bdaudit.bench.plan import Stage
from bdaudit.bench.process import Job, Outcome, Started


class Local:
    """Runs as many stages at a time as there are places: each a GPU, which several may share, or (None) some cores."""

    def __init__(
        self, folder: str, places: Sequence[str | None], *, threads: int = 1, limit: float | None = None
    ) -> None:
        self.workers = self.capacity = len(places)
        self.folder, self.threads, self.limit = folder, threads, limit
        self.running: dict[str, Started] = {}
        self.free = list(places)

    def submit(self, stage: Stage) -> None:
        """Start a stage; no more than `capacity` may be under way."""
        job = Job(stage, self.folder, self.threads, self.limit, self.free.pop(0))
        self.running[stage.key] = Started(job)

    def wait(self) -> list[Outcome]:
        """Wait until a stage ends; return those that have."""
        ended: list[Outcome] = []
        while not ended and self.running:
            patience = min((s.left for s in self.running.values() if s.left is not None), default=None)
            ready = wait([s.answer for s in self.running.values()], patience)
            for key, started in list(self.running.items()):
                if started.answer in ready:
                    ended.append(started.outcome())
                elif started.left is not None and started.left <= 0:
                    ended.append(started.too_late())
                else:
                    continue
                del self.running[key]
                self.free.append(started.job.gpu)
        return ended

    def close(self) -> None:
        """Stop what is under way."""
        for started in self.running.values():
            started.process.terminate()
        for started in self.running.values():
            started.stop()
        self.running.clear()
