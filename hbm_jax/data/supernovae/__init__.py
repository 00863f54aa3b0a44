"""Data of type Ia supernovae: light-curve parameters, distance moduli and their readers."""
