"""Models of X-ray spectra: populations of absorbed afterglows, and fits of one or several spectra."""
