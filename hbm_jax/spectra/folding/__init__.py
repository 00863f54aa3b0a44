"""Folding of photon spectra with instrument responses: observed spectra, responses, grouping, quadrature."""
