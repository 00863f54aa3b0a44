"""Figures of burst fits."""
