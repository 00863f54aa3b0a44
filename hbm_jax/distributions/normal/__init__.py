"""Correlated and grouped normal distributions, with latents integrated out."""
