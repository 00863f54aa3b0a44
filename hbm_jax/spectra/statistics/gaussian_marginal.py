"""Marginal likelihood of Poisson counts, integrated over a background with Gaussian errors.

The background b of the source region was measured as b0 with a standard deviation s. With a flat prior for b >= 0, its
density is the normal distribution truncated at 0, and the S counts of the source region have the likelihood

    P(S | mu) = integral over b >= 0 of Poisson(S | mu + b) N(b | b0, s) / Phi(b0 / s).

The integral is a Gauss-Legendre quadrature in sqrt(b) with nodes that do not depend on mu.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike
from scipy.special import log_ndtr
from scipy.special import ndtr as ndtr_of
from scipy.special import ndtri as ndtri_of

from hbm_jax.spectra.statistics.marginal import BackgroundQuadrature

RANGE = 10.0  # standard deviations of b on each side of b0 within which it is integrated
SPACING = 0.9  # distance of nodes in the middle, in standard deviations of the narrowest integrand
SHIFT = 5.0  # largest distance of the integrand's maximum from b0, in s, at which the nodes are dense enough


def gaussian_background_integral(counts: ArrayLike, background: ArrayLike, error: ArrayLike) -> BackgroundQuadrature:
    """Precompute the integral over a Gaussian background for `marginal_background`.

    Log likelihoods are accurate to 1e-7 where the most likely background is within 4 standard deviations of the
    measured one (``tests/spectra/test_gaussian_marginal.py``). Farther away they are too low, because b is integrated
    over 10 standard deviations on either side.

    Parameters
    ----------
    counts : (..., G)
        Counts of the source region.
    background, error : (..., G)
        Background in the source region and its standard deviation, 0 or more; 0 for a background that is known, which
        must then be 0 or more.
    """
    counts, b0, s = np.broadcast_arrays(*(np.asarray(x, float) for x in (counts, background, error)))
    # Far below 0 the truncated density falls exponentially, on a scale of s^2 / |b0|.
    high = np.where(b0 >= 0, b0 + RANGE * s, b0 + np.hypot(b0, RANGE * s))
    low, high = np.sqrt(np.maximum(b0 - RANGE * s, 0.0)), np.sqrt(np.maximum(high, 0.0))
    # Second derivatives in v = sqrt(b) of b - S ln(mu + b), at most 4, and of (b - b0)^2 / (2 s^2).
    known = s <= 0
    scale = np.where(known, 1.0, s)
    curvature = 4.0 + (4.0 * np.abs(b0) + 6.0 * SHIFT * s) / scale**2
    spans = np.where(known, 0.0, (high - low) * np.sqrt(curvature))
    num = math.ceil(0.5 * math.pi * spans.max(initial=0.0) / SPACING) + 4
    t, w = np.polynomial.legendre.leggauss(num)
    half = 0.5 * (high - low)[..., None]
    v = low[..., None] + half * (1.0 + t)
    b, wide = v * v, np.where(known, 1.0, half[..., 0])[..., None]
    log_normal = (
        -0.5 * ((b - b0[..., None]) / scale[..., None]) ** 2 - np.log(math.sqrt(2.0 * math.pi) * scale)[..., None]
    )
    log_density = log_normal - log_ndtr(b0 / scale)[..., None]
    log_weights = np.log(2.0 * wide * w) + np.log(np.where(known[..., None], 1.0, v)) + log_density
    nodes = np.where(known[..., None], np.maximum(b0, 0.0)[..., None], b)
    return BackgroundQuadrature(nodes, np.where(known[..., None], -math.log(num), log_weights) - nodes, counts)


def truncated_mean(background: ArrayLike, error: ArrayLike) -> np.ndarray:
    """Return the mean of normal distributions truncated at 0."""
    b0, s = np.asarray(background, float), np.asarray(error, float)
    ratio = b0 / np.where(s > 0, s, 1.0)
    return b0 + np.where(s > 0, s * np.exp(-0.5 * ratio**2 - log_ndtr(ratio)) / math.sqrt(2.0 * math.pi), 0.0)


def draw_truncated(key: jax.Array, background: ArrayLike, error: ArrayLike) -> jax.Array:
    """Draw from normal distributions truncated at 0, one value for each background."""
    b0, s = jnp.asarray(background), jnp.asarray(error)
    uniform = jax.random.uniform(
        key, jnp.broadcast_shapes(b0.shape, s.shape), b0.dtype, minval=jnp.finfo(b0.dtype).tiny
    )
    return jnp.maximum(b0 - s * ndtri(uniform * ndtr(b0 / jnp.where(s > 0, s, 1.0))), 0.0)


def drawn_truncated(rng: np.random.Generator, background: ArrayLike, error: ArrayLike, size: tuple[int, ...]):
    """Return the same with NumPy, of shape ``size``."""
    b0, s = np.asarray(background), np.asarray(error)
    uniform = 1.0 - rng.uniform(size=size)
    return np.maximum(b0 - s * ndtri_of(uniform * ndtr_of(b0 / np.where(s > 0, s, 1.0))), 0.0)
