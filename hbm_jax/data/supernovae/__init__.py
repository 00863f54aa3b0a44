"""Type Ia supernovae: light-curve fits and distance moduli, with their readers."""
