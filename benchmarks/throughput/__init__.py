"""What bdaudit does a second beside plain loops, and what else its users wait for: python -m benchmarks.throughput."""
