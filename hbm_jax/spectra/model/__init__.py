"""Spectral models: components, absorbers, model expressions, fluxes and luminosities."""
