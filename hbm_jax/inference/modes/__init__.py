"""Modes of a posterior: chains in different ones, exchanged components, and a tempered search for others."""
