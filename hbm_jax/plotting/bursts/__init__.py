"""Figures of gamma-ray bursts."""
