"""Symbols of parameters in figures, for parameters that are registered where they are defined."""

SYMBOLS: dict[str, str] = {}
"""Symbol by name of the parameter, in matplotlib's mathematical notation; `hbm_jax.plotting.label` looks here too."""
