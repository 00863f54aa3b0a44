"""Figures of supernova fits."""
