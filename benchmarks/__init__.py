"""Measurements of bdaudit's parts, each run as `python -m benchmarks.NAME`."""
