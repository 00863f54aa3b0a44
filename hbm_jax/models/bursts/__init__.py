"""Models of gamma-ray bursts: the Golenetskii relation from catalogue values or from counts."""
