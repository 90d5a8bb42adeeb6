"""Where the time of a command goes, part by part: run as a process of its own by `waiting.parts`.

    python -m benchmarks.throughput.parts STARTED ARGUMENT ...

STARTED: the time (of the epoch) at which the process was asked for. ARGUMENT: of `bdaudit`. Ends with a line of JSON.
Imports nothing until it has begun to measure.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch


class Clock:
    """Seconds by part. Every moment counts once: while a part runs within another, for the inner one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.running = ["everything else"]
        self.since = time.perf_counter()

    def turn(self) -> None:
        """Put down what has passed to the part that is running."""
        if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_initialized():
            cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.turn()
        self.running.append(name)
        try:
            yield
        finally:
            self.turn()
            self.running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts for a part."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def dealt(self, name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Wrap a generator so that the time until each of its items counts."""

        def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = function(*args, **kwargs)
            while (item := self.timed(name, next)(items, None)) is not None:
                yield item

        return run

    def stepped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap an optimiser's step; the loss that it asks for is a part of its own."""

        def step(optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Any:
            with self.part(name):
                return function(optimizer, self.timed("loss", closure))

        return step


def run(arguments: list[str], clock: Clock) -> None:
    """Run a command of bdaudit with its parts timed."""
    with clock.part("import torch"):
        import torch
    with clock.part("import bdaudit and its plugins"):
        from bdaudit import api, plugins
        from bdaudit.cli import main, purify  # noqa: F401  # the command that main would import
        from bdaudit.inputs.classifier import Classifier
        from bdaudit.inputs.listing import Listing
        from bdaudit.training import loop, metrics

        plugins.registry()
    places: list[tuple[object, str, str, Callable[..., Any]]] = [
        (api, "load", "read the model", clock.timed),
        (Listing, "read", "read the images", clock.timed),
        (loop, "batches", "data path", clock.dealt),
        (Classifier, "normalise", "data path", clock.timed),
        (Classifier, "forward", "forward", clock.timed),
        (torch.Tensor, "backward", "backward", clock.timed),
        (torch.optim.Optimizer, "__init__", "first optimiser, for which torch imports its compiler", clock.timed),
        (torch.optim.SGD, "step", "optimiser", clock.stepped),
        (metrics, "_over", "evaluation", clock.timed),
        (api, "save", "write the model", clock.timed),
    ]
    with ExitStack() as stack:
        for owner, name, part, wrapped in places:
            stack.enter_context(mock.patch.object(owner, name, wrapped(part, getattr(owner, name))))
        try:
            main.main(arguments)
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    clock = Clock()
    clock.seconds["start python"] = time.time() - float(sys.argv[1])
    run(sys.argv[2:], clock)
    clock.turn()
    print(json.dumps(clock.seconds))
