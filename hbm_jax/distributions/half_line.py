"""A positive latent beside Gaussian ones: exponential, half normal or truncated normal, integrated out exactly.

Along a direction d a positive t is added to a Gaussian vector y ~ N(m, C), with density proportional to
exp(-rate t - precision t^2 / 2). Then

    p(y) = N(y; m, C) int_0^inf p(t) exp(b t - q t^2 / 2) dt,   q = d . C^-1 d,   b = d . C^-1 (y - m),

which is a normal distribution function whatever the size of y.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.special import log_ndtr, ndtr, ndtri

NUM_NODES = 32
_REACH = 9.0  # standard deviations


def log_half_line(linear, quadratic):
    """Log of the integral of exp(linear t - quadratic t^2 / 2) over t > 0; quadratic > 0."""
    root = jnp.sqrt(quadratic)
    z = linear / root
    return 0.5 * math.log(2.0 * math.pi) - jnp.log(root) + 0.5 * z * z + log_ndtr(z)


class HalfLine(NamedTuple):
    """Distribution of a positive latent t, density proportional to exp(-rate t - precision t^2 / 2), and its direction.

    Attributes
    ----------
    direction : array (..., n)
        What t adds to the observed vector (and to the true one).
    rate : array (...)
        Positive if there is no precision: the exponential distribution of mean 1 / rate.
    precision : array (...), optional
        1 with a rate of 0 is the half normal distribution, whose direction may hold the scale.
    """

    direction: Any
    rate: Any
    precision: Any = None

    @property
    def log_norm(self):
        """Log of the density at t = 0."""
        return jnp.log(self.rate) if self.precision is None else -log_half_line(-self.rate, self.precision)

    def log_integral(self, linear, quadratic):
        """Log of the mean of exp(linear t - quadratic t^2 / 2) over the distribution; quadratic > 0."""
        more = 0.0 if self.precision is None else self.precision
        return self.log_norm + log_half_line(linear - self.rate, quadratic + more)

    def sample(self, key, shape):
        """Draw t."""
        if self.precision is None:
            return random.exponential(key, shape) / self.rate
        return truncated(key, -self.rate / self.precision, 1.0 / jnp.sqrt(self.precision), shape)

    def conditional(self, key, linear, quadratic):
        """Draw t from its distribution times exp(linear t - quadratic t^2 / 2)."""
        total = quadratic + (0.0 if self.precision is None else self.precision)
        mean = (linear - self.rate) / total
        return truncated(key, mean, 1.0 / jnp.sqrt(total), jnp.shape(mean))

    def nodes(self):
        """Nodes (..., NUM_NODES) and log weights of a Gauss rule for the mean of a smooth function of t."""
        if self.precision is None:
            x, w = np.polynomial.laguerre.laggauss(NUM_NODES)
            return x / jnp.asarray(self.rate)[..., None], np.log(w)
        x, w = np.polynomial.legendre.leggauss(NUM_NODES)
        mean, std = -self.rate / self.precision, 1.0 / jnp.sqrt(self.precision)
        low = jnp.maximum(mean - _REACH * std, 0.0)
        half = 0.5 * (jnp.maximum(mean, 0.0) + _REACH * std - low)
        t = (low + half)[..., None] + half[..., None] * x
        rate, precision = jnp.asarray(self.rate)[..., None], jnp.asarray(self.precision)[..., None]
        log_density = jnp.asarray(self.log_norm)[..., None] - rate * t - 0.5 * precision * t * t
        return t, log_density + jnp.log(half)[..., None] + np.log(w)


def truncated(key, mean, std, shape):
    """Draw from the normal distribution above 0."""
    least = -mean / std
    # From the upper tail, which keeps its digits: 1 - u is as uniform as u.
    share = random.uniform(key, shape, minval=jnp.finfo(jnp.result_type(float)).tiny)
    normal = jnp.maximum(-ndtri(share * ndtr(-least)), least)
    # Beyond the reach of ndtr the tail is exponential.
    return jnp.where(least < 30.0, mean + std * normal, -jnp.log(share) * std / jnp.maximum(least, 1.0))
