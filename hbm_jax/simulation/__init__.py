"""``hbm-jax simulate``: populations drawn as a configuration says, and written to files."""
