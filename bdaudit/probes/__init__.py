"""Probes: `base` is the contract, `queries` what those by queries share; each other file is one plugin."""
