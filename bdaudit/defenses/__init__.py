"""Defenses: `base` is the contract, `inverting` and `splitting` what two families share; each other file is one plugin."""
