"""Warm-up: adaptation of metric and step size, and restarts of lost chains."""
