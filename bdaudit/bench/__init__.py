"""Grids of audits: planned, run on whatever there is, kept in one database, shown as tables."""
