"""Exact marginalisation of a positive latent: exponential, half normal or truncated normal.

A latent t > 0 with density proportional to exp(-rate t - precision t^2 / 2) is added along a direction d to a Gaussian
vector y ~ N(m, C). Then

    p(y) = N(y; m, C) int_0^inf p(t) exp(b t - q t^2 / 2) dt,   q = d . C^-1 d,   b = d . C^-1 (y - m),

and the integral is a normal distribution function, for y of any dimension.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.special import ndtr, ndtri

from hbm_jax.distributions.mills_ratio import log_mills_ratio

NUM_NODES = 32
_REACH = 9.0  # range of the quadrature about the mean, in standard deviations


def log_half_line(linear, quadratic):
    """Return the log of the integral of exp(linear t - quadratic t^2 / 2) over t > 0, for quadratic > 0."""
    return log_mills_ratio(-linear / jnp.sqrt(quadratic)) - 0.5 * jnp.log(quadratic)


class HalfLine(NamedTuple):
    """Distribution of a positive latent t with density proportional to exp(-rate t - precision t^2 / 2).

    Attributes
    ----------
    direction : array (..., n)
        Change of the true and of the observed vector per unit of t.
    rate : array (...)
        Inverse mean of the exponential distribution, positive, where ``precision`` is omitted.
    precision : array (...), optional
        Quadratic coefficient. Precision 1 with rate 0 is the half normal distribution of unit scale; ``direction`` can
        carry another scale.
    """

    direction: Any
    rate: Any
    precision: Any = None

    @property
    def log_norm(self):
        """Log density at t = 0."""
        return jnp.log(self.rate) if self.precision is None else -log_half_line(-self.rate, self.precision)

    def log_integral(self, linear, quadratic):
        """Return the log of the mean of exp(linear t - quadratic t^2 / 2) over t, for quadratic > 0."""
        precision = 0.0 if self.precision is None else self.precision
        return self.log_norm + log_half_line(linear - self.rate, quadratic + precision)

    def sample(self, key, shape):
        """Draw t."""
        if self.precision is None:
            return random.exponential(key, shape) / self.rate
        return truncated(key, -self.rate / self.precision, 1.0 / jnp.sqrt(self.precision), shape)

    def conditional(self, key, linear, quadratic):
        """Draw t with density proportional to p(t) exp(linear t - quadratic t^2 / 2)."""
        total_precision = quadratic + (0.0 if self.precision is None else self.precision)
        mean = (linear - self.rate) / total_precision
        return truncated(key, mean, 1.0 / jnp.sqrt(total_precision), jnp.shape(mean))

    def nodes(self):
        """Return nodes (..., NUM_NODES) and log weights of a Gauss quadrature for means over t with a precision."""
        points, weights = np.polynomial.legendre.leggauss(NUM_NODES)
        mean, std = -self.rate / self.precision, 1.0 / jnp.sqrt(self.precision)
        low = jnp.maximum(mean - _REACH * std, 0.0)
        half_width = 0.5 * (jnp.maximum(mean, 0.0) + _REACH * std - low)
        t = (low + half_width)[..., None] + half_width[..., None] * points
        rate, precision = jnp.asarray(self.rate)[..., None], jnp.asarray(self.precision)[..., None]
        log_density = jnp.asarray(self.log_norm)[..., None] - rate * t - 0.5 * precision * t * t
        return t, log_density + jnp.log(half_width)[..., None] + np.log(weights)


def truncated(key, mean, std, shape):
    """Draw from a normal distribution truncated to positive values."""
    lower = -mean / std
    # Inverting the upper tail probability avoids the cancellation in 1 - cdf; 1 - u is as uniform as u.
    uniform = random.uniform(key, shape, minval=jnp.finfo(jnp.result_type(float)).tiny)
    standard = jnp.maximum(-ndtri(uniform * ndtr(-lower)), lower)
    # Where ndtr underflows, the tail is exponential.
    return jnp.where(lower < 30.0, mean + std * standard, -jnp.log(uniform) * std / jnp.maximum(lower, 1.0))
