"""Blinding of a fit: hidden shifts of the values of parameters until they are revealed."""
