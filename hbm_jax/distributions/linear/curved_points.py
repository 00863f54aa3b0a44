"""Measured points on a parabola, or with a scatter that changes with x, with the true x integrated out numerically.

The integrals over the true x are Gauss-Legendre rules on intervals between the maxima of the integrand and a few of its
widths on both sides. Maxima and widths depend on the point and on the parameters, so that the rule is accurate for
narrow integrands, as those of points with small errors of y, and for two maxima, on both sides of a parabola's vertex.
The intervals are constants in derivatives: the integral does not depend on them.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.nn import logsumexp
from jax.scipy.special import log_ndtr, ndtr, ndtri
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.selection import ProbitSelection, draw_detected, log_detected_normal

NODES = 18  # of the Gauss-Legendre rule of each interval
REACH = 9.0  # widths of the integrand on each side of a maximum
EDGES = (-REACH, -3.0, 0.0, 3.0, REACH)  # of the intervals about a maximum, in widths
STEPS = 8  # of the search for the maxima
MIN_ERROR = 1e-9  # smallest error of x in the detected fraction, in standard deviations of the population of x
LOG_2PI = math.log(2.0 * math.pi)


class CurvedPoints(dist.Distribution):
    """Distribution of the measured (x, y) of independent points about a line or parabola.

    The true x is N(x_loc, x_std^2), and with t = x - pivot the true y is
    N(intercept + slope t + curvature t^2, (scatter exp(scatter_change t))^2).

    Parameters
    ----------
    x_loc : array (...)
        Mean of the true x.
    x_std : scalar
        Standard deviation of the true x.
    pivot, intercept, slope : array (...)
        Value of x at which the true y is the intercept, and the slope there.
    curvature, scatter_change : scalar
        Coefficient of the square, and change of the logarithm of the scatter per unit of x.
    scatter : array (...)
        Standard deviation of the true y about the curve at the pivot.
    errors : array (..., 2, 2)
        Covariance of the errors; those of x may be 0.
    selections : sequence of ProbitSelection
        At most two; the density is then that of the detected points. Points that are not detected in ``MAX_TRIES``
        tries are drawn as NaN.
    limits : Limits, optional
        Upper and lower limits of y (`hbm_jax.distributions.linear.measured_points.Limits`, without ``order``). The
        density of a point at its limit or beyond it is that of x, times the probability of a y beyond the limit.

    Notes
    -----
    The log density differs from a direct integral by less than 1e-8, and its gradient by less than 1e-6, for curves of
    either sign, with the vertex within the errors of x too, scatters that change by up to a factor of 2 within a
    standard deviation of x, without and with a selection or limits (``tests/distributions/test_curved_points.py``).

    Examples
    --------
    >>> points = CurvedPoints(0.0, 1.0, 0.0, 2.0, 1.5, 0.0, 0.0, 0.0, 0.1 * np.eye(2))
    >>> round(float(points.log_prob(np.array([1.0, 3.5]))), 4)  # as of a line
    -1.7761
    """

    arg_constraints: dict = {}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    pytree_data_fields = (
        "x_loc", "x_std", "pivot", "intercept", "slope", "curvature", "scatter", "scatter_change", "errors",
        "selections", "limits",
    )  # fmt: skip

    def __init__(
        self, x_loc, x_std, pivot, intercept, slope, curvature, scatter, scatter_change, errors,
        selections: Sequence[ProbitSelection] = (), limits: Any = None, *, validate_args=None,
    ):  # fmt: skip
        self.x_loc, self.x_std, self.pivot = x_loc, x_std, pivot
        self.intercept, self.slope, self.curvature = intercept, slope, curvature
        self.scatter, self.scatter_change = scatter, scatter_change
        self.errors, self.selections, self.limits = errors, tuple(selections), limits
        shapes = map(np.shape, (x_loc, pivot, intercept, slope, scatter))
        super().__init__(
            lax.broadcast_shapes(*shapes, np.shape(errors)[:-2]), np.shape(errors)[-1:], validate_args=validate_args
        )

    def _curve(self, x):
        """Return the true y on the curve, its derivative, and the variance of the scatter, at x (..., K)."""
        pivot, intercept, slope, scatter = (
            jnp.asarray(a)[..., None] for a in (self.pivot, self.intercept, self.slope, self.scatter)
        )
        t = x - pivot
        y, derivative = intercept + t * (slope + self.curvature * t), slope + 2.0 * self.curvature * t
        return y, derivative, (scatter * jnp.exp(self.scatter_change * t)) ** 2

    def _roots(self, y):
        """Return the two x at which the curve has a value y (...), (..., 2); its vertex for a value beyond it."""
        pivot, intercept, a, c = jnp.broadcast_arrays(self.pivot, self.intercept, self.slope, self.curvature)
        discriminant = jnp.sqrt(jnp.maximum(a**2 + 4.0 * c * (y - intercept), 0.0))
        # The larger of both terms of the quadratic formula, from which the roots follow without cancellation.
        q = -0.5 * (a + jnp.where(a < 0.0, -1.0, 1.0) * discriminant)
        q = jnp.where(q == 0.0, jnp.finfo(q.dtype).tiny, q)
        near = (intercept - y) / q
        curved = jnp.where(c == 0.0, 1.0, c)
        far = jnp.where(c == 0.0, near, q / curved)
        near = jnp.where((discriminant == 0.0) & (c != 0.0), far, near)
        return jnp.asarray(pivot)[..., None] + jnp.stack([near, far], axis=-1)

    def _error(self):
        """Return the variance of the error of x, and slope and variance of the error of y given it, (...)."""
        xx, xy, yy = (jnp.asarray(self.errors)[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        slope = jnp.where(xx > 0.0, xy / jnp.where(xx > 0.0, xx, 1.0), 0.0)
        return xx, slope, jnp.maximum(yy - slope * xy, 0.0)

    def _conditional(self, value):
        """Return mean and standard deviation of the true x given the measured x, and the log density of the latter."""
        xx = self._error()[0]
        total = self.x_std**2 + xx
        mean = self.x_loc + self.x_std**2 / total * (value[..., 0] - self.x_loc)
        std = self.x_std * jnp.sqrt(xx) / jnp.sqrt(total)
        return mean, std, -0.5 * ((value[..., 0] - self.x_loc) ** 2 / total + jnp.log(total) + LOG_2PI)

    def _residual(self, value, x):
        """Return residual and its derivative in x, and variance of the measured y given true x (..., K)."""
        _, error_slope, error = (a[..., None] for a in self._error())
        y, derivative, scatter = self._curve(x)
        residual = value[..., 1, None] - y - error_slope * (value[..., 0, None] - x)
        return residual, error_slope - derivative, scatter + error

    def _nodes(self, value):
        """Return nodes in standard deviations of the true x given the measured x, and log weights, (..., K) each."""
        mean, std = (lax.stop_gradient(a)[..., None] for a in self._conditional(value)[:2])
        frozen = self._frozen()

        def step(_, u):  # Gauss-Newton; it maximises the log of the integrand
            residual, derivative, variance = frozen._residual(value, mean + std * u)
            gain = derivative * std
            return u - (u + residual * gain / variance) / (1.0 + gain**2 / variance)

        tiny = jnp.finfo(std.dtype).tiny
        start = jnp.clip((frozen._roots(value[..., 1]) - mean) / jnp.maximum(std, tiny), -1e3, 1e3)
        start = jnp.where(std > 0.0, start, 0.0)
        maxima = jnp.sort(lax.fori_loop(0, STEPS, step, jnp.broadcast_to(start, (*self.batch_shape, 2))), axis=-1)
        _, derivative, variance = frozen._residual(value, mean + std * maxima)
        width = 1.0 / jnp.sqrt(1.0 + (derivative * std) ** 2 / variance)
        # Next to the vertex the square determines the width.
        square = jnp.sqrt(variance) / jnp.maximum(jnp.abs(lax.stop_gradient(self.curvature)) * std**2, tiny)
        width = jnp.minimum(width, jnp.sqrt(square))
        about = [maxima - REACH, *(maxima + edge * width for edge in EDGES), maxima + REACH]
        edges = jnp.concatenate(about, axis=-1)
        if self.limits is not None:
            beyond = lax.stop_gradient(self._beyond(value))[..., None]
            edges = jnp.where(beyond, self._edges_of_limits(value, mean, std, start), edges)
        return _gauss_legendre(lax.stop_gradient(jnp.sort(edges, axis=-1)))

    def _edges_of_limits(self, value, mean, std, roots):
        """Return edges of intervals, (..., 14), for points beyond limits, where the curve crosses them at ``roots``."""
        frozen, tiny = self._frozen(), jnp.finfo(std.dtype).tiny
        _, derivative, variance = frozen._residual(value, mean + std * roots)
        step = jnp.sqrt(variance) / jnp.maximum(jnp.abs(derivative * std), tiny)
        square = jnp.sqrt(variance) / jnp.maximum(jnp.abs(frozen.curvature) * std**2, tiny)
        step = jnp.minimum(step, jnp.sqrt(square))
        normal = jnp.broadcast_to(np.array([-REACH, -3.0, 3.0, REACH]), (*roots.shape[:-1], 4))
        crossings = [jnp.clip(roots + edge * step, -2.0 * REACH, 2.0 * REACH) for edge in EDGES]
        return jnp.concatenate([normal, *crossings], axis=-1)

    def _beyond(self, value):
        """Return a mask (...) of the points whose measured y is at its limit or beyond it."""
        limit, side, _ = self.limits
        return side * value[..., 1] <= side * limit  # False where the limit is NaN

    def _frozen(self):
        """Return the distribution with parameters that are constants in derivatives."""
        fields = [lax.stop_gradient(getattr(self, name)) for name in self.pytree_data_fields[:9]]
        return CurvedPoints(*fields)

    def _log_integrand(self, value):
        """Return the true x (..., K) of the nodes, and log density times weight at each."""
        mean, std, log_density = self._conditional(value)
        u, log_weights = self._nodes(value)
        x = mean[..., None] + std[..., None] * u
        residual, _, variance = self._residual(value, x)
        log_conditional = -0.5 * (residual**2 / variance + jnp.log(variance) + u**2) - LOG_2PI
        if self.limits is not None:
            log_beyond = log_ndtr(self.limits.side[..., None] * residual / jnp.sqrt(variance))
            beyond = self._beyond(value)[..., None]
            log_conditional = jnp.where(beyond, log_beyond - 0.5 * (u**2 + LOG_2PI), log_conditional)
        return x, log_density[..., None] + log_conditional + log_weights

    @property
    def log_detected(self):
        """Log probability that a point is detected, (...); 0 without selections."""
        if not self.selections:
            return jnp.zeros(self.batch_shape)
        x, log_weights = self._detection_nodes()
        y, _, scatter = self._curve(x)
        xx, xy, yy = (jnp.asarray(self.errors)[..., i, j, None] for i, j in ((0, 0), (0, 1), (1, 1)))
        xx = jnp.maximum(xx, (MIN_ERROR * lax.stop_gradient(self.x_std)) ** 2)
        log_passing = log_detected_normal(self.selections, [x, y], [[xx], [xy, yy + scatter]])
        x_loc = jnp.asarray(self.x_loc)[..., None]
        log_population = -0.5 * ((x - x_loc) / self.x_std) ** 2 - jnp.log(self.x_std) - 0.5 * LOG_2PI
        return logsumexp(log_weights + log_population + log_passing, axis=-1)

    def _detection_nodes(self):
        """Return true x and log weights, (..., K), between the points where the detection probability changes."""
        frozen, shape = self._frozen(), self.batch_shape
        x_loc, x_std = frozen.x_loc, frozen.x_std
        low, high = x_loc - REACH * x_std, x_loc + REACH * x_std
        edges = [x_loc + edge * x_std for edge in EDGES]
        far = 40.0 * x_std  # further than any point at which the density of x is a number above 0
        for part in self.selections:
            slope = np.asarray(part.slope)
            limit, width = lax.stop_gradient(part.limit), lax.stop_gradient(part.variance)
            if slope[0] != 0.0:  # a limit of x
                centre = jnp.broadcast_to(limit / slope[0], shape)[..., None]
                step = jnp.broadcast_to(jnp.sqrt(frozen.errors[..., 0, 0] + width), shape)[..., None]
            else:
                centre = jnp.broadcast_to(frozen._roots(limit / slope[1]), (*shape, 2))
                centre = jnp.clip(centre, *(jnp.asarray(x_loc + far * sign)[..., None] for sign in (-1.0, 1.0)))
                _, derivative, scatter = frozen._curve(centre)
                std = jnp.sqrt(frozen.errors[..., 1, 1, None] + scatter + jnp.broadcast_to(width, shape)[..., None])
                tiny = jnp.finfo(std.dtype).tiny
                step = std / jnp.maximum(jnp.abs(derivative), tiny)
                step = jnp.minimum(step, jnp.sqrt(std / jnp.maximum(jnp.abs(frozen.curvature), tiny)))
            low, high = jnp.minimum(low, centre.min(axis=-1)), jnp.maximum(high, centre.max(axis=-1))
            edges += [*jnp.moveaxis(jnp.concatenate([centre + edge * step for edge in EDGES], -1), -1, 0)]
        low, high = jnp.maximum(low, x_loc - far), jnp.minimum(high, x_loc + far)
        edges = [jnp.broadcast_to(jnp.clip(edge, low, high), shape) for edge in [*edges, low, high]]
        return _gauss_legendre(lax.stop_gradient(jnp.sort(jnp.stack(edges, axis=-1), axis=-1)))

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., 2)."""
        log_density = logsumexp(self._log_integrand(value)[1], axis=-1)
        if not self.selections:
            return log_density
        return log_density + sum(part.log_probability(value) for part in self.selections) - self.log_detected

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., 2)``; those beyond a limit are set to it."""
        shape = (*sample_shape, *self.batch_shape)

        def draw(key):
            noise = random.normal(key, (4, *shape))
            x = self.x_loc + self.x_std * noise[0]
            y, _, scatter = (a[..., 0] for a in self._curve(x[..., None]))
            variance, slope, remaining = self._error()
            error = jnp.sqrt(variance) * noise[2]
            y = y + jnp.sqrt(scatter) * noise[1] + slope * error + jnp.sqrt(remaining) * noise[3]
            if self.limits is not None:
                y = jnp.where(self._beyond(y[..., None] * np.ones(2)), self.limits.at, y)
            return jnp.stack([x + error, y], axis=-1)

        if not self.selections:
            return draw(key)

        def probability(value):
            return math.prod(part.probability(value) for part in self.selections)

        return draw_detected(key, shape, 2, draw, probability)

    def draw_true(self, key, value):
        """Draw the true (x, y), (..., 2), given measured values.

        The distribution function of x is interpolated between the nodes of the integral; given x, y is exact.
        """
        key_x, key_y, key_limit = random.split(key, 3)
        x, log_density = self._log_integrand(value)
        weights = jnp.exp(log_density - logsumexp(log_density, axis=-1, keepdims=True))
        cumulative = jnp.cumsum(weights, axis=-1) - 0.5 * weights
        uniform = random.uniform(key_x, x.shape[:-1])[..., None]
        above = jnp.clip(jnp.sum(cumulative < uniform, axis=-1, keepdims=True), 1, x.shape[-1] - 1)
        (c0, c1), (x0, x1) = (
            tuple(jnp.take_along_axis(a, above - shift, axis=-1) for shift in (1, 0)) for a in (cumulative, x)
        )
        x = x0 + jnp.clip((uniform - c0) / jnp.maximum(c1 - c0, 1e-300), 0.0, 1.0) * (x1 - x0)
        curve, _, scatter = self._curve(x)
        residual, _, total = self._residual(value, x)
        if self.limits is not None:  # a measured y beyond the limit, from its normal distribution truncated there
            side, total_std = self.limits.side[..., None], jnp.sqrt(total)
            uniform = random.uniform(key_limit, x.shape, minval=jnp.finfo(x.dtype).tiny)
            drawn = side * total_std * ndtri(uniform * ndtr(side * residual / total_std))
            residual = jnp.where(self._beyond(value)[..., None], drawn, residual)
        weight = scatter / total  # of the residual, in the scatter
        std = jnp.sqrt(weight * jnp.maximum(total - scatter, 0.0))
        y = curve + weight * residual + std * random.normal(key_y, x.shape)
        return jnp.concatenate([x, y], axis=-1)


def _gauss_legendre(edges):
    """Return nodes and log weights, (..., (E - 1) NODES), of the integrals between increasing edges (..., E)."""
    at, weight = np.polynomial.legendre.leggauss(NODES)
    half = 0.5 * jnp.diff(edges, axis=-1)[..., None]
    nodes = edges[..., :-1, None] + half * (1.0 + at)
    log_weights = jnp.log(weight) + jnp.log(jnp.maximum(half, jnp.finfo(half.dtype).tiny))
    shape = (*edges.shape[:-1], -1)
    return nodes.reshape(shape), jnp.broadcast_to(log_weights, nodes.shape).reshape(shape)
