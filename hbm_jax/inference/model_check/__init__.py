"""Check of a fitted model: do the data look like draws from it?"""
