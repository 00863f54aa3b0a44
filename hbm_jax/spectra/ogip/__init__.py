"""Readers and writers of spectra and responses in OGIP files."""
