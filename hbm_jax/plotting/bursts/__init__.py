"""Figures of gamma-ray burst fits."""
