"""Gamma-ray bursts: tables of intervals, count spectra, and simulated populations."""
