"""Figures of fits to X-ray spectra, and of X-ray absorption."""
