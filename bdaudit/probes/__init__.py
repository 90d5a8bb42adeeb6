"""Probes: `base` is the contract; each other file is one plugin."""
