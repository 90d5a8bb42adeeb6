"""Progress in a log: lines now and then, with the time left."""

from __future__ import annotations

import pytest

from bdaudit.training import progress
from bdaudit.training.progress import progress_shown, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time, in seconds, that goes on by what a test adds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_hears_of_long_loops_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """After ten seconds, and every minute from then on, each time with what is left at the pace so far."""
    with progress_shown(), track("training (x)", 2000) as advance:
        for _ in range(2000):
            clock[0] += 0.125
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "training (x): 80 of 2,000, about 4 min left",
        "training (x): 560 of 2,000, about 3 min left",
        "training (x): 1,040 of 2,000, about 2 min left",
        "training (x): 1,520 of 2,000, about 60 s left",
    ]


def test_short_loops_and_quiet_ones_are_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_shown(), track("short", 10) as advance:
        for _ in range(10):
            clock[0] += 0.5
            advance()
    with track("quiet", 1000) as advance:
        for _ in range(1000):
            clock[0] += 1
            advance()
    assert capsys.readouterr().err == ""
