"""Figures of linear relations and of normal hierarchies."""
