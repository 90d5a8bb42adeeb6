"""Attacks: `base` is the contract, `triggers` what they share; each other file is one plugin."""
