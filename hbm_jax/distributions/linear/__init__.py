"""Linear relations between latent variables, with the points integrated out."""
