"""Linear relation with errors in x and y and the true values integrated out.

A point has a true x ~ N(x_loc, x_scale^2) and a true y = intercept + slope x + N(0, scatter^2), both measured with
Gaussian errors. Given the parameters, the measured (x, y) is bivariate normal, written out element by element here.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import log_ndtr
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.half_line import truncated
from hbm_jax.distributions.selection import (
    FoundInjections,
    InjectedSelection,
    draw_detected,
    log_detected_normal,
)

LOG_2PI = math.log(2.0 * math.pi)


class Pair(NamedTuple):
    """A symmetric 2 x 2 matrix."""

    xx: jnp.ndarray
    xy: jnp.ndarray
    yy: jnp.ndarray

    @property
    def det(self):
        """Determinant."""
        return self.xx * self.yy - self.xy * self.xy

    def solve(self, x, y):
        """Return the product of the inverse with the vector (x, y)."""
        inverse = 1.0 / self.det  # a single division, and none in the derivative
        return (self.yy * x - self.xy * y) * inverse, (self.xx * y - self.xy * x) * inverse


def _true_covariance(x_scale, slope, scatter) -> Pair:
    """Return the covariance of the true (x, y)."""
    variance = x_scale**2
    return Pair(variance, slope * variance, slope**2 * variance + scatter**2)


def _measured_covariance(true: Pair, errors) -> Pair:
    """Return the covariance of the measured (x, y); errors (..., 3) are var(x), cov(x, y) and var(y)."""
    return Pair(true.xx + errors[..., 0], true.xy + errors[..., 1], true.yy + errors[..., 2])


class LinearRelation(dist.Distribution):
    """Distribution of the measured (x, y) of independent points on a line.

    Parameters
    ----------
    x_loc, x_scale : array (...)
        Mean and standard deviation of the true x.
    intercept, slope, scatter : array (...)
        Intercept and slope of the line, and standard deviation of the true y about it, 0 or more.
    errors : array (..., 3)
        Variance of the error of x, covariance of the errors, variance of the error of y; a positive definite matrix.
    limit : array (...), optional
        Limit of a selection: points with a measured y below it are not in the data, and the density is divided by the
        probability that a point is in them. None for no selection.
    width : array (...), optional
        Width of a smooth selection, whose detection probability is Phi((y - limit) / width); None for a step.
    efficiency : TabulatedSelection, FunctionSelection or InjectedSelection, optional
        Detection probability of a measured (x, y), in place of a limit; or injections of true (x, y), from which draws
        are then taken and measured with errors.

    Notes
    -----
    Values are (..., 2).

    References
    ----------
    Kelly 2007, ApJ 665, 1489, eq. 16-24, and sect. 5.1.2 for the selection.

    Examples
    --------
    >>> relation = LinearRelation(0.0, 1.0, 2.0, 1.5, 0.0, np.array([0.1, 0.0, 0.1]))
    >>> round(float(relation.log_prob(np.array([1.0, 3.5]))), 4)
    -1.7761
    """

    arg_constraints = {"slope": constraints.real}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    reparametrized_params = ("x_loc", "x_scale", "intercept", "slope", "scatter")
    pytree_data_fields = ("x_loc", "x_scale", "intercept", "slope", "scatter", "errors", "limit", "width", "efficiency")

    def __init__(
        self, x_loc, x_scale, intercept, slope, scatter, errors, limit=None, width=None, efficiency=None,
        *, validate_args=None,
    ):  # fmt: skip
        self.x_loc, self.x_scale = x_loc, x_scale
        self.intercept, self.slope, self.scatter = intercept, slope, scatter
        self.errors, self.limit, self.width, self.efficiency = errors, limit, width, efficiency
        shapes = [np.shape(a) for a in (x_loc, x_scale, intercept, slope, scatter)]
        shapes += [np.shape(errors)[:-1], *(np.shape(a) for a in (limit, width) if a is not None)]
        super().__init__(lax.broadcast_shapes(*shapes), (2,), validate_args=validate_args)

    @property
    def mean(self):
        """Mean of the measured values without selection, (..., 2)."""
        x = jnp.broadcast_to(self.x_loc, self.batch_shape)
        return jnp.stack([x, jnp.broadcast_to(self.intercept + self.slope * x, self.batch_shape)], axis=-1)

    @property
    def _variance_of_width(self):
        """Squared width of the selection."""
        return 0.0 if self.width is None else self.width**2

    @property
    def _covariance(self) -> Pair:
        """Covariance of the measured (x, y)."""
        return _measured_covariance(_true_covariance(self.x_scale, self.slope, self.scatter), self.errors)

    @property
    def found(self) -> FoundInjections | None:
        """Injections that were found, weighted as the points of each line; None without injections."""
        if not isinstance(self.efficiency, InjectedSelection):
            return None
        true = _true_covariance(self.x_scale, self.slope, self.scatter)
        xx, xy, yy = (jnp.broadcast_to(entry, self.batch_shape)[..., None] for entry in true)
        x, y = self.mean[..., 0, None], self.mean[..., 1, None]
        return self.efficiency.found((x, y), ((xx,), (xy, yy)))

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., 2).

        With a limit it is N(x, y) Phi((y - limit) / width) / Phi((mean of y - limit) / sqrt(var(y) + width^2)); with an
        efficiency it is N(x, y) times the efficiency over its mean.
        """
        covariance = self._covariance
        residual = value - self.mean
        x, y = residual[..., 0], residual[..., 1]
        a, b = covariance.solve(x, y)
        log_density = -0.5 * (x * a + y * b + jnp.log(covariance.det)) - LOG_2PI
        if (found := self.found) is not None:
            return log_density - found.log_normalisation
        if self.efficiency is not None:
            mean, (xx, xy, yy) = self.mean, jnp.broadcast_arrays(*covariance)
            log_fraction = log_detected_normal([self.efficiency], (mean[..., 0], mean[..., 1]), ((xx,), (xy, yy)))
            return log_density + self.efficiency.log_probability(value) - log_fraction
        if self.limit is None:
            return log_density
        scale = jnp.sqrt(covariance.yy + self._variance_of_width)
        log_density = log_density - log_ndtr((self.mean[..., 1] - self.limit) / scale)
        if self.width is None:
            return jnp.where(value[..., 1] >= self.limit, log_density, -jnp.inf)
        return log_density + log_ndtr((value[..., 1] - self.limit) / self.width)

    def sample(self, key, sample_shape=()):
        """Draw measured values of detected points, ``(*sample_shape, ..., 2)``."""
        if self.efficiency is None:
            return self._draw(key, sample_shape)
        shape = sample_shape + self.batch_shape
        if (found := self.found) is not None:
            key_true, key_error = random.split(key)
            noise = bivariate(jnp.zeros(2), Pair(*jnp.moveaxis(jnp.asarray(self.errors), -1, 0)))
            errors = noise.expand(self.batch_shape).sample(key_error, sample_shape)
            return found.sample(key_true, shape) + errors
        return draw_detected(key, shape, 2, lambda key: self._draw(key, sample_shape), self.efficiency.probability)

    def _draw(self, key, sample_shape):
        """Draw measured values without an efficiency."""
        key_y, key_x = random.split(key)
        shape = sample_shape + self.batch_shape
        covariance, mean = self._covariance, self.mean
        scale = jnp.sqrt(covariance.yy + self._variance_of_width)
        if self.limit is None:
            deviation = scale * random.normal(key_y, shape)
        else:
            below_mean = self.limit - mean[..., 1]
            deviation = below_mean + truncated(key_y, -below_mean, scale, shape)
        if self.width is not None:
            # A point is detected if y plus a normal deviate of this width exceeds the limit. Draw y given the sum.
            fraction = covariance.yy / scale**2
            conditional_std = self.width * jnp.sqrt(fraction)
            deviation = fraction * deviation + conditional_std * random.normal(random.fold_in(key_y, 1), shape)
        y = mean[..., 1] + deviation
        variance_x = covariance.xx - covariance.xy**2 / covariance.yy
        x = mean[..., 0] + covariance.xy / covariance.yy * (y - mean[..., 1])
        x = x + jnp.sqrt(jnp.maximum(variance_x, 0.0)) * random.normal(key_x, shape)
        return jnp.stack([x, y], axis=-1)

    def from_normals(self, normals):
        """Return measured values from standard normals (..., 2), without selection."""
        covariance, mean = self._covariance, self.mean
        y = jnp.sqrt(covariance.yy) * normals[..., 1]
        variance_x = covariance.xx - covariance.xy**2 / covariance.yy
        x = covariance.xy / covariance.yy * y + jnp.sqrt(jnp.maximum(variance_x, 0.0)) * normals[..., 0]
        return mean + jnp.stack([x, y], axis=-1)

    def conditional(self, value):
        """Return the exact conditional distribution of the true (x, y), (..., 2); it does not depend on the limit."""
        true = _true_covariance(self.x_scale, self.slope, self.scatter)
        return _conditional(self.mean, true, self._covariance, value)


def _conditional(mean, true: Pair, measured: Pair, value):
    """Return the distribution of the true (x, y) given measured values and both covariances."""
    residual = value - mean
    a, b = measured.solve(residual[..., 0], residual[..., 1])
    loc = mean + jnp.stack([true.xx * a + true.xy * b, true.xy * a + true.yy * b], axis=-1)
    # Conditional covariance T - T M^-1 T, with T the true and M the measured covariance.
    p, q = measured.solve(true.xx, true.xy)
    r, s = measured.solve(true.xy, true.yy)
    xx = jnp.maximum(true.xx - true.xx * p - true.xy * q, 0.0)
    xy = true.xy - true.xx * r - true.xy * s
    yy = true.yy - true.xy * r - true.yy * s
    return bivariate(loc, Pair(xx, xy, yy))


def bivariate(loc, covariance: Pair):
    """Return a bivariate normal distribution; the covariance may be singular."""
    l00 = jnp.sqrt(covariance.xx)
    positive = l00 > 0
    off_diagonal = jnp.where(positive, covariance.xy / jnp.where(positive, l00, 1.0), 0.0)
    l11 = jnp.sqrt(jnp.maximum(covariance.yy - off_diagonal**2, 0.0))
    rows = [jnp.stack(jnp.broadcast_arrays(l00, 0.0 * l00), -1), jnp.stack(jnp.broadcast_arrays(off_diagonal, l11), -1)]
    return dist.MultivariateNormal(loc, scale_tril=jnp.stack(rows, axis=-2), validate_args=False)
