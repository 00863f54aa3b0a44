"""Statistics of counts, with and without background, and goodness of fit."""
