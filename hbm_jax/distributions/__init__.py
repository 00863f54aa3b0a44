"""Distributions: Gaussian latents integrated out, priors in better coordinates, priors written as text."""

from hbm_jax.distributions.coordinates import CoordinatePriors, SoftClip
from hbm_jax.distributions.linear_gaussian import LinearGaussian
from hbm_jax.distributions.notation import distribution_from_text, distribution_to_text

__all__ = ["CoordinatePriors", "LinearGaussian", "SoftClip", "distribution_from_text", "distribution_to_text"]
