"""Maximum likelihood, with Gaussian latents integrated out, and profiles."""
