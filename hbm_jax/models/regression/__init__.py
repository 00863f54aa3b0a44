"""Hierarchical regressions, and rates that change in time."""
