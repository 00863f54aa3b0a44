"""Spectra and responses in OGIP files, read and written."""
