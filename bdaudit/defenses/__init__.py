"""Defenses: `base` is the contract, `inverting` and `splitting` serve two families; each other file is one plugin."""
