"""Linear relation in P predictors with errors in all coordinates, outliers and limits; true values integrated out.

A point has true predictors x, from a mixture of normal distributions, or one predictor from an exponential
distribution, and a true y = intercept + slope . x + N(0, scatter^2). Student's t distribution can replace this normal
distribution; it is a mixture of normals on a grid of scales. The D = P + 1 coordinates, with the response last, are
measured with Gaussian errors. One coordinate of a point may be an upper or a lower limit, and points may be missing
because of their measured coordinates.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.nn import logsumexp
from jax.scipy.special import log_ndtr, ndtr, ndtri
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.half_line import HalfLine
from hbm_jax.distributions.normal.small_matrices import elements, factorised, normal_log_density, stacked
from hbm_jax.distributions.selection import FoundInjections, ProbitSelection, draw_detected, log_detected_normal

# Scales in the mixture for Student's t. Relative error of the density out to 50 scales: 1e-5 for 1 degree of freedom,
# 1e-7 for 2.
NODES = 48


class Limits(NamedTuple):
    """Upper or lower limits, at most one coordinate per point.

    Attributes
    ----------
    at : array (...)
        Value of the limit; NaN for none. A point with a measured value at the limit or beyond it is censored.
    side : array (...)
        1 for upper limits (values below are not detected), -1 for lower limits.
    order : array (..., D, D), optional
        Permutation matrix that moves the coordinate with the limit to the end; None where it is always the response.
    """

    at: Any
    side: Any
    order: Any = None


class MeasuredPoints(dist.Distribution):
    """Distribution of the measured coordinates of points on a line or plane.

    Parameters
    ----------
    x_loc : array (..., K, P)
        Means of the true predictors in the K components of the mixture.
    x_cov : array (..., K, P, P)
        Covariances of the true predictors in each component; zero is allowed.
    log_weights : array (K,)
        Log weights of the components.
    intercept, scatter : array (...)
        Intercept of the relation, and standard deviation of the true response about it.
    slope : array (..., P)
        Slopes.
    errors : array (..., D, D)
        Covariance of the measurement errors; positive definite.
    limits : Limits, optional
        Upper and lower limits.
    outliers : (array, array), optional
        Fraction of outliers, and the additional scatter of their response, in quadrature.
    nu : array, optional
        Degrees of freedom of Student's t distribution, 1 or more; ``scatter`` is then its scale. None: normal.
    selections : sequence of ProbitSelection
        At most two selections in measured coordinates that are not censored; the density is then that of the detected
        points. Points that are not detected in ``MAX_TRIES`` tries are drawn as NaN.
    x_tail : array (...), optional
        Mean of an exponential distribution that is added to a single predictor, whose normal distribution may have a
        variance of 0. Expects an error of every predictor, no limits and at most one selection.
    found : FoundInjections, optional
        Detected fraction of the population from injections, by which the density is divided. Draws are found injections
        with errors of measurement, which is exact where detection depends on true values alone.

    Notes
    -----
    Values are (..., D). The density of a censored point is the probability of a value beyond the limit times the
    density of the other coordinates. Draws beyond a limit are set to the limit.

    References
    ----------
    Kelly 2007, ApJ 665, 1489 (mixture, limits); Hogg, Bovy & Lang 2010, arXiv:1008.4686, sect. 3 (outliers).

    Examples
    --------
    >>> loc, cov, errors = np.zeros((1, 1)), np.ones((1, 1, 1)), 0.1 * np.eye(2)
    >>> points = MeasuredPoints(loc, cov, np.zeros(1), 2.0, np.array([1.5]), 0.0, errors)
    >>> round(float(points.log_prob(np.array([1.0, 3.5]))), 4)
    -1.7761
    """

    arg_constraints: dict = {}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    pytree_data_fields = (
        "x_loc", "x_cov", "log_weights", "intercept", "slope", "scatter", "errors", "limits", "outliers", "nu",
        "selections", "x_tail", "found",
    )  # fmt: skip

    def __init__(
        self, x_loc, x_cov, log_weights, intercept, slope, scatter, errors, limits=None, outliers=None, nu=None,
        selections: Sequence[ProbitSelection] = (), x_tail=None, found: FoundInjections | None = None, *,
        validate_args=None,
    ):  # fmt: skip
        self.x_loc, self.x_cov, self.log_weights = x_loc, x_cov, log_weights
        self.intercept, self.slope, self.scatter, self.errors = intercept, slope, scatter, errors
        self.limits, self.outliers, self.nu, self.selections = limits, outliers, nu, tuple(selections)
        self.x_tail, self.found = x_tail, found
        shapes = [np.shape(x_loc)[:-2], np.shape(x_cov)[:-3], np.shape(intercept), np.shape(slope)[:-1]]
        shapes += [np.shape(scatter), np.shape(errors)[:-2]]
        super().__init__(lax.broadcast_shapes(*shapes), np.shape(errors)[-1:], validate_args=validate_args)

    def _scatter_mixture(self):
        """Return log weights (S,) and variances (..., S, 1) of the normals whose mixture is the scatter."""
        variance = jnp.asarray(self.scatter)[..., None] ** 2
        if self.outliers is not None:
            fraction, extra_scatter = self.outliers
            log_weights = jnp.stack([jnp.log1p(-fraction), jnp.log(fraction)])
            variance = variance + extra_scatter**2 * np.array([0.0, 1.0])
        elif self.nu is not None:
            log_weights, precision = _student_t(self.nu)
            variance = variance / precision
        else:
            log_weights = jnp.zeros(1)
        return log_weights, variance[..., None]

    def _elements(self):
        """Return log weights (C,), the means of the true coordinates, and the lower triangle of their covariance.

        Every element of the means and of the rows of the triangle is an array that broadcasts to (..., C). The C = S K
        components combine the S normals of the scatter with the K components of the predictors.
        """
        num = np.shape(self.x_loc)[-1]
        slope = [self.slope[..., p, None] for p in range(num)]
        x, xx = [self.x_loc[..., p] for p in range(num)], elements(self.x_cov)
        y = sum((a * b for a, b in zip(x, slope, strict=True)), jnp.asarray(self.intercept)[..., None])
        xy = [sum(a * b for a, b in zip(row, slope, strict=True)) for row in xx]
        log_scatter_weights, variance = self._scatter_mixture()
        yy = sum(a * b for a, b in zip(xy, slope, strict=True))[..., None, :] + variance
        log_weights = (log_scatter_weights[:, None] + self.log_weights).reshape(-1)

        def repeated(row):  # arrays (..., K), repeated for every normal of the scatter
            return [jnp.tile(a, len(log_scatter_weights)) for a in row] if len(log_scatter_weights) > 1 else list(row)

        rows = [repeated(row[: i + 1]) for i, row in enumerate(xx)]
        return log_weights, repeated([*x, y]), [*rows, [*repeated(xy), yy.reshape(*yy.shape[:-2], -1)]]

    def _components(self):
        """Return log weights (C,), means (..., C, D) and covariances (..., C, D, D) of the true coordinates."""
        log_weights, loc, lower = self._elements()
        axes = range(len(loc))
        covariance = stacked([[lower[max(i, j)][min(i, j)] for j in axes] for i in axes])
        return log_weights, jnp.stack(jnp.broadcast_arrays(*loc), axis=-1), covariance

    def _measured_lower(self, lower):
        """Return the lower triangle of the covariance of measured coordinates, (..., C), from that of true ones."""
        return [[a + self.errors[..., i, j, None] for j, a in enumerate(row)] for i, row in enumerate(lower)]

    @property
    def _half_line(self) -> Any:
        """`HalfLine` of the exponential part of the predictor, whose direction has arrays (..., 1), or None."""
        if self.x_tail is None:
            return None
        slope = jnp.asarray(self.slope)
        return HalfLine((jnp.ones_like(slope), slope), 1.0 / jnp.asarray(self.x_tail)[..., None])

    def _along_half_line(self, residual, covariance):
        """Return the log density of residuals, and the coefficients of the exponential part, (..., C) each."""
        half_line, factorisation = self._half_line, factorised(covariance)
        whitened = factorisation.whiten(residual)
        coefficients = half_line.coefficients(factorisation, whitened)
        return factorisation.log_density(whitened) + half_line.log_integral(*coefficients), *coefficients

    def _component_log_density(self, value):
        """Return the log density of each component including its weight, (..., C).

        That of a point beyond its limit is the density of its other coordinates, times the probability, given these,
        that the last coordinate is beyond the limit.
        """
        log_weights, loc, lower = self._elements()
        residual = [value[..., i, None] - a for i, a in enumerate(loc)]
        covariance = self._measured_lower(lower)
        if self.x_tail is not None:
            return log_weights + self._along_half_line(residual, covariance)[0]
        if self.limits is None:
            return log_weights + normal_log_density(residual, covariance)
        if self.limits.order is not None:
            _, loc, true_cov = self._components()
            order = self.limits.order[..., None, :, :]
            ordered = (order * (value[..., None, :] - loc)[..., None, :]).sum(-1)
            residual = [ordered[..., i] for i in range(len(residual))]
            measured_cov = true_cov + self.errors[..., None, :, :]
            covariance = elements(order @ measured_cov @ jnp.swapaxes(order, -1, -2))
        z = _last_whitened(residual, covariance)
        beyond = normal_log_density(residual[:-1], covariance[:-1]) + log_ndtr(self.limits.side[..., None] * z)
        measured = normal_log_density(residual, covariance)
        return log_weights + jnp.where(self._beyond(value)[..., None], beyond, measured)

    def _beyond(self, value):
        """Return a mask (...) of the points whose measured value is at its limit or beyond it."""
        limit, side, order = self.limits
        last = value[..., -1] if order is None else (order[..., -1, :] * value).sum(-1)
        return side * last <= side * limit  # False where the limit is NaN

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., D)."""
        log_density = _summed(self._component_log_density(value))
        if self.found is not None:
            return log_density - self.found.log_normalisation
        if not self.selections:
            return log_density
        return log_density + sum(selection.log_probability(value) for selection in self.selections) - self.log_detected

    @property
    def log_detected(self):
        """Log probability that a point is detected, (...); 0 without selections."""
        if self.found is not None:
            return jnp.broadcast_to(self.found.log_normalisation, self.batch_shape)
        if not self.selections:
            return jnp.zeros(self.batch_shape)
        log_weights, loc, lower = self._elements()
        log_detected = log_detected_normal(self.selections, loc, self._measured_lower(lower), self._half_line)
        return _summed(log_weights + log_detected)

    def outlier_probability(self, value):
        """Return the probability that each point is an outlier given its measured values, (...)."""
        log_density = self._component_log_density(value)
        half = log_density.shape[-1] // 2
        return jnp.exp(logsumexp(log_density[..., half:], axis=-1) - logsumexp(log_density, axis=-1))

    def weight(self, value):
        """Return the posterior mean weight of each point, (...): 1 in the core of Student's t, 0 far in its tails.

        Student's t is a normal distribution whose variance is divided by a weight, which has a gamma prior of mean 1.
        """
        log_density = self._component_log_density(value)
        _, precision = _student_t(self.nu)
        log_density = logsumexp(log_density.reshape(*log_density.shape[:-1], NODES, -1), axis=-1)
        return jnp.exp(logsumexp(log_density + jnp.log(precision), axis=-1) - logsumexp(log_density, axis=-1))

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., D)``; values beyond a limit are set to it."""
        shape = (*sample_shape, *self.batch_shape)
        if self.found is not None:
            key_true, key_error = random.split(key)
            error = random.normal(key_error, (*shape, *self.event_shape, 1))
            return self.found.sample(key_true, shape) + (_root(self.errors) @ error)[..., 0]
        if not self.selections:
            return self._draw(key, shape)

        def probability(value):
            return math.prod(selection.probability(value) for selection in self.selections)

        return draw_detected(key, shape, self.event_shape[0], lambda key: self._draw(key, shape), probability)

    def _draw(self, key, shape):
        """Draw measured values without selection, shape + (D,)."""
        key_component, key_normal, key_tail = random.split(key, 3)
        log_weights, loc, cov = self._components()
        log_weights = jnp.broadcast_to(log_weights, (*shape, len(log_weights)))
        mean, measured_cov = _draw_component(key_component, log_weights, loc, cov + self.errors[..., None, :, :])
        value = mean + (jnp.linalg.cholesky(measured_cov) @ random.normal(key_normal, (*mean.shape, 1)))[..., 0]
        if self.x_tail is not None:
            value = value + self._tail_direction * (self.x_tail * random.exponential(key_tail, shape))[..., None]
        if self.limits is None:
            return value
        limit, _, order = self.limits
        beyond = self._beyond(value)[..., None]
        # 1 for the coordinate with the limit, else 0
        has_limit = np.eye(value.shape[-1])[-1] if order is None else order[..., -1, :]
        return jnp.where(beyond & (has_limit > 0), limit[..., None], value)

    @property
    def _tail_direction(self):
        """Direction of the exponential part in x and y, (..., 2)."""
        slope = jnp.asarray(self.slope)
        return jnp.concatenate([jnp.ones_like(slope), slope], axis=-1)

    def draw_true(self, key, value):
        """Draw the true coordinates (..., D) from their exact conditional distribution given measured values."""
        keys = random.split(key, 4)
        loc, true_cov = _draw_component(keys[0], self._component_log_density(value), *self._components()[1:])
        measured_cov = true_cov + self.errors
        if self.x_tail is not None:
            residual, covariance = (value - loc)[..., None, :], elements(measured_cov[..., None, :, :])
            _, *coefficients = self._along_half_line([residual[..., i] for i in range(2)], covariance)
            loc = loc + self._tail_direction * self._half_line.conditional(keys[3], *coefficients)
        if self.limits is not None:
            value = self._draw_censored(keys[1], value, loc, measured_cov)
        gain = jnp.swapaxes(jnp.linalg.solve(measured_cov, true_cov), -1, -2)
        mean = loc + (gain @ (value - loc)[..., None])[..., 0]
        conditional_cov = true_cov - gain @ true_cov
        return mean + (_root(conditional_cov) @ random.normal(keys[2], (*mean.shape, 1)))[..., 0]

    def _draw_censored(self, key, value, loc, measured_cov):
        """Return measured values with limits replaced by values drawn beyond them."""
        side, order = self.limits.side, self.limits.order
        order = jnp.eye(value.shape[-1]) if order is None else order
        residual = (order * (value - loc)[..., None, :]).sum(-1)
        covariance = elements(order @ measured_cov @ jnp.swapaxes(order, -1, -2))
        z = _last_whitened([residual[..., i] for i in range(residual.shape[-1])], covariance)
        # The last whitened coordinate is normal, truncated to values below its limit (above it where side is -1).
        uniform = random.uniform(key, z.shape, minval=jnp.finfo(value.dtype).tiny)
        z_beyond = side * ndtri(uniform * ndtr(side * z))
        last = residual[..., -1] + (z_beyond - z) * jnp.sqrt(factorised(covariance).pivots[-1])
        residual = jnp.concatenate([residual[..., :-1], last[..., None]], axis=-1)
        uncensored = loc + (jnp.swapaxes(order, -1, -2) * residual[..., None, :]).sum(-1)
        return jnp.where(self._beyond(value)[..., None], uncensored, value)


def _summed(log_density):
    """Return the log of the sum of densities (..., C), (...)."""
    return log_density[..., 0] if log_density.shape[-1] == 1 else logsumexp(log_density, axis=-1)


def _student_t(nu):
    """Return log weights and precisions of the normals whose mixture is Student's t of unit scale, (NODES,) each.

    The precision has the distribution Gamma(nu / 2, nu / 2). The nodes are a trapezoidal rule in its logarithm, which
    converges exponentially. At the ends of the grid the integrand has fallen to 1e-7 of its maximum, for values from 0
    to 50 scales.
    """
    # With u the precision over its most probable value, the integrand is exp(-(u - 1 - ln u) (nu + 1) / 2) times its
    # maximum: exp(-16) at both ends, where u - 1 - ln u is about `tail`.
    tail = 32.0 / (nu + 1.0)
    low, high = jnp.log((2500.0 + nu) / (nu + 1.0)) + tail, jnp.log1p(tail + jnp.sqrt(2.0 * tail) + jnp.log1p(tail))
    log_precision = -low + (low + high) * jnp.linspace(0.0, 1.0, NODES)
    log_weights = 0.5 * nu * (log_precision - jnp.exp(log_precision))
    return log_weights - logsumexp(log_weights), jnp.exp(log_precision)


def _last_whitened(residual, covariance):
    """Return the last element of C^(-1/2) r, with the Cholesky factor as the root of C, (...)."""
    factorisation = factorised(covariance)
    return factorisation.whiten(residual)[-1] * jnp.sqrt(factorisation.inverse[-1])


def _draw_component(key, log_weights, loc, cov):
    """Draw a component for each point; return its mean (..., D) and covariance (..., D, D)."""
    component = random.categorical(key, log_weights)
    one_hot = (component[..., None] == jnp.arange(log_weights.shape[-1])).astype(loc.dtype)
    return (one_hot[..., None] * loc).sum(-2), (one_hot[..., None, None] * cov).sum(-3)


def _root(cov):
    """Return a square root of a covariance, which may be singular."""
    values, vectors = jnp.linalg.eigh(0.5 * (cov + jnp.swapaxes(cov, -1, -2)))
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]
