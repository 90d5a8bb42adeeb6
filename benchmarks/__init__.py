"""Measurements of bdaudit's parts, each run as `python -m benchmarks.NAME`."""

from __future__ import annotations


def named(spec: str) -> tuple[str, dict[str, str]]:
    """Read a plugin with options, `NAME option=value ...`."""
    name, *words = spec.split()
    return name, {key: value for key, _, value in (word.partition("=") for word in words)}
