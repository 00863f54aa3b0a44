"""Figures of X-ray fits and of X-ray absorption."""
