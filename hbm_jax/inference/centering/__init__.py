"""Partial non-centring of latents, chosen by a pilot run."""
