"""Figures of regressions."""
