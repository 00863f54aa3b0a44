"""Partial non-centring of latent sites, with weights chosen by a pilot run."""
