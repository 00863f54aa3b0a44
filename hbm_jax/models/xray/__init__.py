"""Models of X-ray spectra: populations of absorbed afterglows, and single or joint fits."""
