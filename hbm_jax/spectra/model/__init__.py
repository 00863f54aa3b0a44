"""Spectral models: components, absorbers, expressions of them, energetics."""
