"""Exact marginalisation of one or two positive latents: exponential, half normal or truncated normal.

A latent t > 0 with density proportional to exp(-rate t - precision t^2 / 2) is added along a direction d to a Gaussian
vector y ~ N(m, C). Then

    p(y) = N(y; m, C) int_0^inf p(t) exp(b t - q t^2 / 2) dt,   q = d . C^-1 d,   b = d . C^-1 (y - m),

and the integral is a normal distribution function, for y of any dimension. With a second latent along another direction
it is one of two dimensions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import ndtr, ndtri

from hbm_jax.distributions.mills_ratio import log_mills_ratio
from hbm_jax.distributions.normal.bivariate import log_quadrant_integral
from hbm_jax.distributions.normal.small_matrices import Factorisation

NUM_NODES = 32
NUM_SWEEPS = 32  # of the Gibbs sampler of two latents
_REACH = 9.0  # range of the quadrature about the mean, in standard deviations


def log_half_line(linear, quadratic):
    """Return the log of the integral of exp(linear t - quadratic t^2 / 2) over t > 0, for quadratic > 0."""
    return log_mills_ratio(-linear / jnp.sqrt(quadratic)) - 0.5 * jnp.log(quadratic)


class HalfLine(NamedTuple):
    """Distribution of a positive latent t with density proportional to exp(-rate t - precision t^2 / 2).

    It is exponential with mean 1 / rate if there is no ``precision``, and half normal with standard deviation
    precision^(-1/2) if the rate is 0. In general it is the normal distribution of mean -rate / precision and variance
    1 / precision, truncated to positive values.

    Attributes
    ----------
    direction : array (..., n)
        Change of the observed vector per unit of t, and of the true vector.
    rate : array (...)
        Linear coefficient of the exponent; positive if there is no ``precision``.
    precision : array (...), optional
        Quadratic coefficient of the exponent, positive.
    """

    direction: Any
    rate: Any
    precision: Any = None

    @property
    def log_norm(self):
        """Log density at t = 0."""
        return jnp.log(self.rate) if self.precision is None else -log_half_line(-self.rate, self.precision)

    @property
    def parts(self) -> tuple["HalfLine", ...]:
        """The single latent, as a tuple."""
        return (self,)

    def map(self, of_direction: Callable, of_scalar: Callable) -> "HalfLine":
        """Return the latent with ``of_direction`` applied to its direction, ``of_scalar`` to rate and precision."""
        precision = None if self.precision is None else of_scalar(self.precision)
        return HalfLine(of_direction(self.direction), of_scalar(self.rate), precision)

    def shift(self, t):
        """Return the change (..., n) of the vector for values t (...), for a direction of n arrays (...)."""
        return jnp.stack(jnp.broadcast_arrays(*(entry * t for entry in self.direction)), axis=-1)

    def coefficients(self, factorisation: Factorisation, whitened) -> tuple[Any, Any]:
        """Return b = d . C^-1 r and q = d . C^-1 d, (...) each, for the direction d and a residual r.

        The density N(r - d t; 0, C) of an observed vector is N(r; 0, C) exp(b t - q t^2 / 2).

        Parameters
        ----------
        factorisation : Factorisation
            Factors L and D of the covariance C = L D L^T.
        whitened : sequence of n arrays (...)
            L^-1 r.
        """
        direction = factorisation.whiten(self.direction)
        scaled = [a * b for a, b in zip(direction, factorisation.inverse, strict=True)]
        linear = sum(w * a for w, a in zip(whitened, scaled, strict=True))
        return linear, sum(a * b for a, b in zip(direction, scaled, strict=True))

    def log_integral(self, linear, quadratic):
        """Return the log of the mean of exp(linear t - quadratic t^2 / 2) over t, for quadratic > 0."""
        precision = 0.0 if self.precision is None else self.precision
        return self.log_norm + log_half_line(linear - self.rate, quadratic + precision)

    @property
    def mean(self):
        """Mean of t."""
        if self.precision is None:
            return 1.0 / self.rate
        # With the density normalised at t = 0, the mean of t is that of its derivative: rate + precision <t> = p(0).
        return (jnp.exp(self.log_norm) - self.rate) / self.precision

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


class Quadrant(NamedTuple):
    """Distribution of two independent positive latents, each along its own direction.

    Attributes
    ----------
    first, second : HalfLine
        The latents.
    """

    first: HalfLine
    second: HalfLine

    @property
    def parts(self) -> tuple[HalfLine, ...]:
        """Both latents."""
        return (self.first, self.second)

    def map(self, of_direction: Callable, of_scalar: Callable) -> "Quadrant":
        """Return the latents with `HalfLine.map` applied to each."""
        return Quadrant(*(part.map(of_direction, of_scalar) for part in self))

    def shift(self, t):
        """Return the change (..., n) of the vector for values of both latents, two arrays (...)."""
        return self.first.shift(t[0]) + self.second.shift(t[1])

    def coefficients(self, factorisation: Factorisation, whitened) -> tuple[Any, ...]:
        """Return b1, b2, q11, q12 and q22, (...) each, with b_i = d_i . C^-1 r and q_ij = d_i . C^-1 d_j.

        Arguments are those of `HalfLine.coefficients`.
        """
        (b1, q11), (b2, q22) = (part.coefficients(factorisation, whitened) for part in self)
        cross, _ = self.second.coefficients(factorisation, factorisation.whiten(self.first.direction))
        return b1, b2, q11, cross, q22

    def log_integral(self, b1, b2, q11, q12, q22):
        """Return the log of the mean of exp(b . t - t . q t / 2) over both latents, for a positive definite q."""
        norm = self.first.log_norm + self.second.log_norm
        return norm + log_quadrant_integral(*self._total(b1, b2, q11, q12, q22))

    def _total(self, b1, b2, q11, q12, q22):
        """Return the coefficients of the exponent, with those of the densities of the latents added."""
        precisions = [0.0 if part.precision is None else part.precision for part in self]
        return b1 - self.first.rate, b2 - self.second.rate, q11 + precisions[0], q12, q22 + precisions[1]

    def sample(self, key, shape):
        """Draw both latents."""
        keys = random.split(key)
        return self.first.sample(keys[0], shape), self.second.sample(keys[1], shape)

    def conditional(self, key, b1, b2, q11, q12, q22):
        """Draw both latents with density proportional to p(t) exp(b . t - t . q t / 2), by Gibbs sampling.

        The error of the distribution falls as the 64th power of their correlation: 1e-6 for 0.8.
        """
        b1, b2, q11, q12, q22 = self._total(b1, b2, q11, q12, q22)
        shape = jnp.broadcast_shapes(*map(jnp.shape, (b1, b2, q11, q12, q22)))

        def sweep(number, t):
            keys = random.split(random.fold_in(key, number))
            first = truncated(keys[0], (b1 - q12 * t[1]) / q11, 1.0 / jnp.sqrt(q11), shape)
            return first, truncated(keys[1], (b2 - q12 * first) / q22, 1.0 / jnp.sqrt(q22), shape)

        start = jnp.zeros(shape, jnp.result_type(float))
        return lax.fori_loop(0, NUM_SWEEPS, sweep, (start, start))


def truncated(key, mean, std, shape):
    """Draw from normal distributions N(mean, std^2) truncated to positive values."""
    lower = -mean / std
    # Inverting the upper tail probability avoids the cancellation in 1 - cdf; 1 - u is as uniform as u.
    uniform = random.uniform(key, shape, minval=jnp.finfo(jnp.result_type(float)).tiny)
    standard = jnp.maximum(-ndtri(uniform * ndtr(-lower)), lower)
    # Where ndtr underflows, lower >> 1 and the distribution above 0 is nearly exponential with mean std / lower.
    return jnp.where(lower < 30.0, mean + std * standard, -jnp.log(uniform) * std / jnp.maximum(lower, 1.0))
