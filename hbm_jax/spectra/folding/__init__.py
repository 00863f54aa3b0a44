"""From photons to counts: spectra, responses, grouping, and integration over energy bins."""
