"""X-ray afterglows and single spectra: catalogues, files, and simulated populations."""
