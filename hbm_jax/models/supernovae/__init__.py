"""Models of Type Ia supernovae and of Hubble diagrams."""
