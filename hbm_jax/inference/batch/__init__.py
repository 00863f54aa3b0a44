"""Sampling of many independent posteriors in one batch."""
