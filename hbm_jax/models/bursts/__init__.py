"""Models of gamma-ray bursts: the Golenetskii relation, from fluxes or from counts."""
