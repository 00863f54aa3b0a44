"""Figures of X-ray fits, and of absorption."""
