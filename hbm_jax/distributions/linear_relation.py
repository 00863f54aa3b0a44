"""Points with errors in both variables on a straight line, the true ones integrated out; alone or in groups.

A point has a true x ~ N(x_loc, x_scale^2) and a true y = intercept + slope x + N(0, scatter^2), both measured with a
Gaussian error. Given the parameters the two measured values are a bivariate normal, written out in components here.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import log_ndtr, ndtr, ndtri
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

LOG_2PI = math.log(2.0 * math.pi)


class _Pair(NamedTuple):
    """A symmetric 2 x 2 matrix."""

    xx: jnp.ndarray
    xy: jnp.ndarray
    yy: jnp.ndarray

    @property
    def det(self):
        return self.xx * self.yy - self.xy * self.xy

    def solve(self, x, y):
        """Product of the inverse with a vector."""
        inverse = 1.0 / self.det  # one division, and none in the derivative
        return (self.yy * x - self.xy * y) * inverse, (self.xx * y - self.xy * x) * inverse


def _true(x_scale, slope, scatter) -> _Pair:
    """Covariance of the true (x, y)."""
    variance = x_scale**2
    return _Pair(variance, slope * variance, slope**2 * variance + scatter**2)


def _measured(true: _Pair, errors) -> _Pair:
    """Covariance of the measured (x, y); errors (..., 3) are those of x, of x with y, and of y."""
    return _Pair(true.xx + errors[..., 0], true.xy + errors[..., 1], true.yy + errors[..., 2])


class LinearRelation(dist.Distribution):
    """Measured (x, y) of points on a line, each on its own.

    Parameters
    ----------
    x_loc, x_scale : array (...)
        Mean and standard deviation of the true x.
    intercept, slope, scatter : array (...)
        Of the line; the scatter is that of y about it, 0 or more.
    errors : array (..., 3)
        Variance of the error of x, covariance, variance of the error of y; those of a positive definite matrix.
    limit : array (...), optional
        Points with a measured y below are not in the data: the density is divided by the probability to be above.
        -inf, or none, for all are.

    Notes
    -----
    Values are (..., 2). The probability to be above the limit is that of the measured y, whose distribution is normal.

    References
    ----------
    Kelly 2007, ApJ 665, 1489, eq. 16-24; and 5.1.2 there for the truncation.

    Examples
    --------
    >>> one = LinearRelation(0.0, 1.0, 2.0, 1.5, 0.0, np.array([0.1, 0.0, 0.1]))
    >>> round(float(one.log_prob(np.array([1.0, 3.5]))), 4)
    -1.7046
    """

    arg_constraints = {"slope": constraints.real}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    reparametrized_params = ("x_loc", "x_scale", "intercept", "slope", "scatter")
    pytree_data_fields = ("x_loc", "x_scale", "intercept", "slope", "scatter", "errors", "limit")

    def __init__(self, x_loc, x_scale, intercept, slope, scatter, errors, limit=None, *, validate_args=None):
        self.x_loc, self.x_scale = x_loc, x_scale
        self.intercept, self.slope, self.scatter = intercept, slope, scatter
        self.errors, self.limit = errors, limit
        shapes = [np.shape(a) for a in (x_loc, x_scale, intercept, slope, scatter)]
        shapes += [np.shape(errors)[:-1], () if limit is None else np.shape(limit)]
        super().__init__(lax.broadcast_shapes(*shapes), (2,), validate_args=validate_args)

    @property
    def mean(self):
        """Mean of the measured values, the limit aside, (..., 2)."""
        x = jnp.broadcast_to(self.x_loc, self.batch_shape)
        return jnp.stack([x, jnp.broadcast_to(self.intercept + self.slope * x, self.batch_shape)], axis=-1)

    @property
    def _covariance(self) -> _Pair:
        return _measured(_true(self.x_scale, self.slope, self.scatter), self.errors)

    @validate_sample
    def log_prob(self, value):
        """Log density of measured values (..., 2)."""
        covariance = self._covariance
        residual = value - self.mean
        x, y = residual[..., 0], residual[..., 1]
        a, b = covariance.solve(x, y)
        density = -0.5 * (x * a + y * b + jnp.log(covariance.det)) - LOG_2PI
        if self.limit is None:
            return density
        density = density - log_ndtr((self.mean[..., 1] - self.limit) / jnp.sqrt(covariance.yy))
        return jnp.where(value[..., 1] >= self.limit, density, -jnp.inf)

    def sample(self, key, sample_shape=()):
        """Draw measured values above the limit, (*sample_shape, ..., 2)."""
        key_y, key_x = random.split(key)
        shape = sample_shape + self.batch_shape
        covariance, mean = self._covariance, self.mean
        scale = jnp.sqrt(covariance.yy)
        if self.limit is None:
            normal = random.normal(key_y, shape)
        else:
            # From the upper tail, which keeps its digits: 1 - u is as uniform as u.
            least = (self.limit - mean[..., 1]) / scale
            share = random.uniform(key_y, shape, minval=jnp.finfo(scale.dtype).tiny)
            normal = jnp.maximum(-ndtri(share * ndtr(-least)), least)
        y = mean[..., 1] + scale * normal
        left = covariance.xx - covariance.xy**2 / covariance.yy
        x = mean[..., 0] + covariance.xy / covariance.yy * (y - mean[..., 1])
        x = x + jnp.sqrt(jnp.maximum(left, 0.0)) * random.normal(key_x, shape)
        return jnp.stack([x, y], axis=-1)

    def conditional(self, value):
        """Exact distribution of the true (x, y) given measured ones, (..., 2); the limit does not matter to it."""
        return _conditional(self.mean, _true(self.x_scale, self.slope, self.scatter), self._covariance, value)


def _conditional(mean, true: _Pair, measured: _Pair, value):
    residual = value - mean
    a, b = measured.solve(residual[..., 0], residual[..., 1])
    loc = mean + jnp.stack([true.xx * a + true.xy * b, true.xy * a + true.yy * b], axis=-1)
    # T - T M^-1 T, of the true and the measured covariance.
    p, q = measured.solve(true.xx, true.xy)
    r, s = measured.solve(true.xy, true.yy)
    xx = jnp.maximum(true.xx - true.xx * p - true.xy * q, 0.0)
    xy = true.xy - true.xx * r - true.xy * s
    yy = true.yy - true.xy * r - true.yy * s
    return _bivariate(loc, _Pair(xx, xy, yy))


def _bivariate(loc, covariance: _Pair):
    """Bivariate normal, singular ones too."""
    first = jnp.sqrt(covariance.xx)
    some = first > 0
    below = jnp.where(some, covariance.xy / jnp.where(some, first, 1.0), 0.0)
    last = jnp.sqrt(jnp.maximum(covariance.yy - below**2, 0.0))
    rows = [jnp.stack(jnp.broadcast_arrays(first, 0.0 * first), -1), jnp.stack(jnp.broadcast_arrays(below, last), -1)]
    return dist.MultivariateNormal(loc, scale_tril=jnp.stack(rows, axis=-2), validate_args=False)


def _sum_of_logs(values):
    """Sum of the logarithms over the last axis, four at a time: a logarithm is what costs most here."""
    size = -(-values.shape[-1] // 4)
    values = jnp.concatenate([values, jnp.ones((*values.shape[:-1], 4 * size - values.shape[-1]))], axis=-1)
    a, b, c, d = (values[..., i * size : (i + 1) * size] for i in range(4))
    return jnp.log((a * b) * (c * d)).sum(-1)


class GroupedLinearRelation(dist.Distribution):
    """Measured (x, y) of points in groups, whose mean x and intercept are normal and integrated out too.

    The true x of point j of group i is x_shift_ij + m_i + N(0, x_scale^2), m_i ~ N(group_loc, group_scale^2), and the
    true y is intercept_ij + slope_i (x - x_shift) + c_i + N(0, scatter^2), c_i ~ N(offset_loc_i, offset_scale_i^2).

    Parameters
    ----------
    group_loc, group_scale : array (...)
        Mean and standard deviation of the m of the groups.
    offset_loc, offset_scale : array (...)
        Mean and standard deviation of their c, for each group.
    slope : array (...)
        Of each group.
    x_scale, scatter : array (...)
        Standard deviations of x about m, and of y about the line.
    x_shift, intercept : array (..., J) or (..., 1)
        What is known of each point.
    errors : array (..., J, 3)
        As in `LinearRelation`.
    used : array (..., J)
        False for padding, which counts for nothing. Draws there are zero.

    Notes
    -----
    Values are (..., J, 2). Every group costs J bivariate normals and one 2 x 2 system (Woodbury's identity).
    """

    arg_constraints = {"slope": constraints.real}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.independent(constraints.real, 2)
    pytree_data_fields = (
        "group_loc", "group_scale", "offset_loc", "offset_scale", "slope", "x_scale", "scatter", "x_shift",
        "intercept", "errors", "used",
    )  # fmt: skip

    def __init__(
        self, group_loc, group_scale, offset_loc, offset_scale, slope, x_scale, scatter, x_shift, intercept, errors,
        used, *, validate_args=None,
    ):  # fmt: skip
        self.group_loc, self.group_scale = group_loc, group_scale
        self.offset_loc, self.offset_scale = offset_loc, offset_scale
        self.slope, self.x_scale, self.scatter = slope, x_scale, scatter
        self.x_shift, self.intercept, self.errors, self.used = x_shift, intercept, errors, used
        shapes = [np.shape(a) for a in (group_loc, group_scale, offset_loc, offset_scale, slope, x_scale, scatter)]
        shapes += [np.shape(used)[:-1], np.shape(x_shift)[:-1], np.shape(intercept)[:-1], np.shape(errors)[:-2]]
        super().__init__(lax.broadcast_shapes(*shapes), (np.shape(used)[-1], 2), validate_args=validate_args)

    def _points(self, group, offset) -> LinearRelation:
        """Points of groups whose m and c are known, (...) each."""
        group, offset, slope, x_scale, scatter = (
            jnp.broadcast_to(a, self.batch_shape)[..., None]
            for a in (group, offset, self.slope, self.x_scale, self.scatter)
        )
        intercept = self.intercept + offset - slope * self.x_shift
        return LinearRelation(self.x_shift + group, x_scale, intercept, slope, scatter, self.errors)

    @property
    def mean(self):
        """Mean of the measured values, (..., J, 2)."""
        return self._points(self.group_loc, self.offset_loc).mean

    def _system(self, value):
        """Log density of the points at the mean m and c, and the 2 x 2 system for their deviations."""
        points = self._points(self.group_loc, self.offset_loc)
        covariance, residual, used = points._covariance, value - points.mean, self.used
        slope = jnp.broadcast_to(self.slope, self.batch_shape)[..., None]
        x, y = jnp.where(used, residual[..., 0], 0.0), jnp.where(used, residual[..., 1], 0.0)
        a, b = covariance.solve(x, y)
        num = jnp.sum(used, axis=-1)
        density = -0.5 * ((x * a + y * b).sum(-1) + _sum_of_logs(jnp.where(used, covariance.det, 1.0))) - LOG_2PI * num
        # m moves a point by (1, slope), c by (0, 1).
        m_x, m_y = covariance.solve(1.0, slope)
        c_x, c_y = covariance.solve(0.0, 1.0)
        weight = jnp.where(used, 1.0, 0.0)
        information = _Pair(
            (weight * (m_x + slope * m_y)).sum(-1), (weight * (c_x + slope * c_y)).sum(-1), (weight * c_y).sum(-1)
        )
        pull = (a + slope * b).sum(-1), b.sum(-1)
        # In units of the standard deviations of m and c, which may be zero.
        s, t = self.group_scale, self.offset_scale
        system = _Pair(1.0 + s**2 * information.xx, s * t * information.xy, 1.0 + t**2 * information.yy)
        return density, system, (s * pull[0], t * pull[1])

    @validate_sample
    def log_prob(self, value):
        """Log density of measured values (..., J, 2)."""
        density, system, (p, q) = self._system(value)
        u, v = system.solve(p, q)
        return density + 0.5 * (p * u + q * v - jnp.log(system.det))

    def sample(self, key, sample_shape=()):
        """Draw measured values, (*sample_shape, ..., J, 2)."""
        key_m, key_c, key_points = random.split(key, 3)
        if sample_shape:
            raise NotImplementedError("GroupedLinearRelation draws one sample at a time; use jax.vmap for more.")
        m = self.group_loc + self.group_scale * random.normal(key_m, self.batch_shape)
        c = self.offset_loc + self.offset_scale * random.normal(key_c, self.batch_shape)
        return jnp.where(self.used[..., None], self._points(m, c).sample(key_points), 0.0)

    def groups(self, value):
        """Exact distribution of (m, c) of every group given measured values, over (..., 2)."""
        _, system, (p, q) = self._system(value)
        u, v = system.solve(p, q)
        s, t = self.group_scale, self.offset_scale
        loc = jnp.stack(jnp.broadcast_arrays(self.group_loc + s * u, self.offset_loc + t * v), axis=-1)
        det = system.det
        covariance = _Pair(s**2 * system.yy / det, -s * t * system.xy / det, t**2 * system.xx / det)
        return _bivariate(loc, covariance)

    def conditional(self, value, groups):
        """Exact distribution of the true (x, y) of every point given measured values and (m, c) of its group."""
        return self._points(groups[..., 0], groups[..., 1]).conditional(value)
