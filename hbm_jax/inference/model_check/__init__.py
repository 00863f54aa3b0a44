"""Check of a fitted model: whether the data look like draws from it."""
