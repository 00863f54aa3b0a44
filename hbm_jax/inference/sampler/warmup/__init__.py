"""Warm-up: the metric that it learns, and chains that it begins again."""
