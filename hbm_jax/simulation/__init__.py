"""Simulation of populations from a configuration (``hbm-jax simulate``), written to files."""
