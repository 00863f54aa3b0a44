"""Many independent posteriors, sampled at once."""
