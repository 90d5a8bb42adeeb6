"""Mutated files, a fixed number for each reader and the same ones every time; longer: python -m benchmarks.fuzz."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.targets import TARGETS, try_input

MEMORY = 1 << 30


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_used(name: str, tmp_path: Path) -> None:
    """Otherwise nothing behind the first check would be tested."""
    for files in TARGETS[name].sound():
        try_input(TARGETS[name], files, tmp_path)  # imports what is imported late
        assert try_input(TARGETS[name], files, tmp_path).kind == "used"


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_in_one_line_or_are_used(name: str, tmp_path: Path) -> None:
    """No traceback, no hang, no code run, nothing read or written outside the input's folder, little memory."""
    target = TARGETS[name]
    for files in target.sound():
        try_input(target, files, tmp_path)  # imports what is imported late
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=target.cheap, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def damaged(rng: random.Random) -> None:
        outcome = try_input(target, target.make(rng), tmp_path)
        assert outcome.kind != "FINDING", outcome.what

    damaged()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MEMORY
