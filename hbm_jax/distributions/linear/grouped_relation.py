"""Linear relations of groups of points with errors in x and y; true values and group offsets are integrated out.

For each point, f is the residual of x from its expected value and e the residual of y from the line. Given the group's
mean m of x and the offset c of its line, (f, e) is bivariate normal with a covariance C. A change of m shifts all f of
the group and a change of c all e, so that by the Woodbury identity a group costs one pass over its points and one 2 x 2
linear system.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.linear.linear_relation import LinearRelation, Pair, bivariate

LOG_2PI = math.log(2.0 * math.pi)
BLOCK, MAX_BLOCKS = 8, 3  # points that are summed by one reduction, and largest number of reductions


class GroupedLinearRelation(dist.Distribution):
    """Distribution of measured (x, y) of groups of points, with each group's mean x and intercept integrated out.

    The true x of point j of group i is x_shift_ij + m_i + N(0, x_scale^2), m_i ~ N(group_loc, group_scale^2), and the
    true y is intercept_ij + slope_i (x - x_shift) + c_i + N(0, scatter^2), c_i ~ N(offset_loc_i, offset_scale_i^2).

    Parameters
    ----------
    group_loc : array (...)
        Population mean of m.
    group_scale : array (...), optional
        Population standard deviation of m; where omitted, m equals ``group_loc`` in every group.
    offset_loc, offset_scale : array (...)
        Mean and standard deviation of c for each group.
    slope : array (...)
        Slope of the line of each group.
    x_scale, scatter : array (...)
        Standard deviations of the true x about x_shift + m, and of the true y about the line.
    x_shift, intercept : array (..., J) or (..., 1)
        Constants in x and y for each point.
    errors : array (..., J, 3)
        As in `LinearRelation`.
    used : array (..., J)
        False for padding, which does not contribute. Draws there are zero.

    Notes
    -----
    Values are (..., J, 2). The gradient of the log density is written out by Fisher's identity, as the posterior mean
    over m and c of the gradient of the joint log density of all variables of the group; it costs little more than the
    density. It can be differentiated once more, forward over reverse.
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
        shapes = [np.shape(a) for a in (group_loc, offset_loc, offset_scale, slope, x_scale, scatter)]
        shapes += [() if group_scale is None else np.shape(group_scale)]
        shapes += [np.shape(used)[:-1], np.shape(x_shift)[:-1], np.shape(intercept)[:-1], np.shape(errors)[:-2]]
        super().__init__(lax.broadcast_shapes(*shapes), (np.shape(used)[-1], 2), validate_args=validate_args)

    def _points(self, m, c) -> LinearRelation:
        """Return the distribution of single points given m and c of their groups, (...) each."""
        m, c, slope, x_scale, scatter = (
            jnp.broadcast_to(a, self.batch_shape)[..., None] for a in (m, c, self.slope, self.x_scale, self.scatter)
        )
        intercept = self.intercept + c - slope * self.x_shift
        return LinearRelation(self.x_shift + m, x_scale, intercept, slope, scatter, self.errors)

    @property
    def mean(self):
        """Mean of the measured values, (..., J, 2)."""
        return self._points(self.group_loc, self.offset_loc).mean

    def _arguments(self, value):
        """Return the parameters of the groups, (...) each, their points, and the weights of the points, (J, ...) each.

        The axis of groups comes last, so that operations are vectorised over groups. Weights are one, and zero in
        padding, where errors are one, so that determinants are positive without a mask. All this depends on the data
        alone.
        """

        def per_group(a):
            return None if a is None else jnp.broadcast_to(jnp.asarray(a, value.dtype), self.batch_shape)

        def per_point(a, padding=0.0):
            shape = (*self.batch_shape, self.event_shape[0])
            return jnp.moveaxis(jnp.where(self.used, jnp.broadcast_to(a, shape), padding), -1, 0)

        names = ("slope", "x_scale", "scatter", "group_loc", "group_scale", "offset_loc", "offset_scale")
        lines = Lines(*(per_group(getattr(self, name)) for name in names))
        errors = jnp.asarray(self.errors)
        points = Points(
            per_point(value[..., 0] - self.x_shift), per_point(value[..., 1] - self.intercept),
            *(per_point(errors[..., k], padding) for k, padding in enumerate((1.0, 0.0, 1.0))),
        )  # fmt: skip
        return lines, points, per_point(jnp.ones((), value.dtype))

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., J, 2)."""
        return _log_density(*self._arguments(value))

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., J, 2)``."""
        if sample_shape:
            raise NotImplementedError("GroupedLinearRelation draws one sample at a time; use jax.vmap for more.")
        return self.from_normals(random.normal(key, self.shape_of_normals))

    @property
    def shape_of_normals(self) -> tuple[int, ...]:
        """Shape of the standard normals that `from_normals` needs: two for each group, and for each of its points."""
        return (*self.batch_shape, self.event_shape[0] + 1, 2)

    def from_normals(self, normals):
        """Return measured values from standard normals of `shape_of_normals`, (..., J, 2)."""
        group_scale = 0.0 if self.group_scale is None else self.group_scale
        m = self.group_loc + group_scale * normals[..., 0, 0]
        c = self.offset_loc + self.offset_scale * normals[..., 0, 1]
        return jnp.where(self.used[..., None], self._points(m, c).from_normals(normals[..., 1:, :]), 0.0)

    def groups(self, value):
        """Return the exact conditional distribution of (m, c) of every group, (..., 2), given measured values."""
        lines, points, weights = self._arguments(value)
        posterior = _integrated(lines, points, weights)
        m, c = lines.group_loc + posterior.m, lines.offset_loc + posterior.c
        covariance = Pair(*(jnp.broadcast_to(a, np.shape(c)) for a in posterior.covariance))
        return bivariate(jnp.stack(jnp.broadcast_arrays(m, c), axis=-1), covariance)

    def conditional(self, value, groups):
        """Return the exact conditional distribution of the true (x, y) given measured values and (m, c)."""
        return self._points(groups[..., 0], groups[..., 1]).conditional(value)


class Lines(NamedTuple):
    """Parameters of groups, (...) each; ``group_scale`` is None where m is fixed at its mean."""

    slope: jnp.ndarray
    x_scale: jnp.ndarray
    scatter: jnp.ndarray
    group_loc: jnp.ndarray
    group_scale: jnp.ndarray | None
    offset_loc: jnp.ndarray
    offset_scale: jnp.ndarray


class Points(NamedTuple):
    """Measured values minus x_shift and intercept, and the (co)variances of their errors, (J, ...) each."""

    x: jnp.ndarray
    y: jnp.ndarray
    xx: jnp.ndarray
    xy: jnp.ndarray
    yy: jnp.ndarray


class _Integrated(NamedTuple):
    """Log density of groups, and the posterior of m and c relative to their prior means."""

    log_density: jnp.ndarray
    m: jnp.ndarray
    c: jnp.ndarray
    covariance: Pair  # posterior covariance of (m, c)
    information: Pair  # Fisher information of the points about (m, c)


def _sum(values):
    """Return the sum over points, (J, ...) -> (...).

    XLA fuses a few reductions of up to `BLOCK` elements, with which gradients take 0.8 of the time with matrix
    products: before a product it writes an array in the place of another, and without its fusion emitters such a loop
    is not vectorised. More than `MAX_BLOCKS` reductions make a gradient 1.4 to 1.6 times slower, and longer ones are
    not vectorised either.
    """
    num = np.shape(values)[0]
    if num > MAX_BLOCKS * BLOCK:
        return jnp.tensordot(np.ones(num, values.dtype), values, axes=1, precision="highest")
    size = -(-num // -(-num // BLOCK))
    return functools.reduce(operator.add, (values[i : i + size].sum(axis=0) for i in range(0, num, size)))


def _sum_of_logs(values):
    """Return the sum of log(values) over points, by logarithms of products of four, because logarithms are slow."""
    num = np.shape(values)[0]
    size = -(-num // 4)
    values = jnp.concatenate([values, jnp.ones((4 * size - num, *np.shape(values)[1:]), values.dtype)])
    a, b, c, d = (values[i * size : (i + 1) * size] for i in range(4))
    return _sum(jnp.log((a * b) * (c * d)))


def _precision(lines: Lines, points: Points, weights):
    """Return the inverse covariance of (f, e) of each point, zero in padding, and the determinant of the covariance."""
    slope = lines.slope
    ff = lines.x_scale**2 + points.xx
    fe = points.xy - slope * points.xx
    ee = lines.scatter**2 + points.yy - slope * (points.xy + fe)
    det = ff * ee - fe * fe
    inverse = weights / det  # computed once, whereas XLA would repeat a mask in each of the sums
    return Pair(ee * inverse, -fe * inverse, ff * inverse), det


def _residuals(lines: Lines, points: Points, m, c):
    """Return the residuals (f, e) of every point."""
    return points.x - m, points.y - lines.slope * points.x - c


def _integrated(lines: Lines, points: Points, weights) -> _Integrated:
    """Integrate m and c out of the density of the points of each group."""
    precision, det = _precision(lines, points, weights)
    f, e = _residuals(lines, points, lines.group_loc, lines.offset_loc)
    u, v = precision.xx * f + precision.xy * e, precision.xy * f + precision.yy * e
    num, unit = jnp.sum(weights, axis=0), det[0]  # in other units products of determinants under- or overflow
    log_det = _sum_of_logs(jnp.where(weights > 0.0, det / unit, 1.0)) + num * jnp.log(unit)
    log_density = -0.5 * (_sum(u * f + v * e) + log_det) - LOG_2PI * num
    t = lines.offset_scale
    cc, score_c = _sum(precision.yy), t * _sum(v)
    if lines.group_scale is None:
        shrinkage = 1.0 / (1.0 + t**2 * cc)
        log_density = log_density + 0.5 * (score_c**2 * shrinkage + jnp.log(shrinkage))
        zero = jnp.zeros_like(cc)
        return _Integrated(
            log_density, zero, t * score_c * shrinkage, Pair(zero, zero, t**2 * shrinkage), Pair(zero, zero, cc)
        )
    # Solve in units of the prior standard deviations of m and c, which may be zero.
    s = lines.group_scale
    information = Pair(_sum(precision.xx), _sum(precision.xy), cc)
    system = Pair(1.0 + s**2 * information.xx, s * t * information.xy, 1.0 + t**2 * cc)
    score_m = s * _sum(u)
    m, c = system.solve(score_m, score_c)
    log_density = log_density + 0.5 * (score_m * m + score_c * c - jnp.log(system.det))
    inverse = 1.0 / system.det
    covariance = Pair(s**2 * system.yy * inverse, -s * t * system.xy * inverse, t**2 * system.xx * inverse)
    return _Integrated(log_density, s * m, t * c, covariance, information)


@jax.custom_vjp
def _log_density(lines: Lines, points: Points, weights):
    """Return the log density of the points of each group, with derivatives by `_backward`."""
    return _integrated(lines, points, weights).log_density


def _forward(lines, points, weights):
    """Return the log density and the residuals for the backward pass."""
    posterior = _integrated(lines, points, weights)
    return posterior.log_density, (lines, points, weights, posterior)


def _backward(saved, cotangent):
    """Return the derivatives with respect to all arguments; XLA removes the unused ones."""
    lines, points, weights, posterior = saved
    p, _ = _precision(lines, points, weights)
    f, e = _residuals(lines, points, lines.group_loc + posterior.m, lines.offset_loc + posterior.c)
    u, v = p.xx * f + p.xy * e, p.xy * f + p.yy * e
    cov = posterior.covariance
    if lines.group_scale is None:
        ff, fe, ee = (cov.yy * a for a in (p.xy * p.xy, p.xy * p.yy, p.yy * p.yy))
    else:
        # Elements of P V P, with V the posterior covariance of (m, c).
        mf, mc = p.xx * cov.xx + p.xy * cov.xy, p.xx * cov.xy + p.xy * cov.yy
        cf, cc = p.xy * cov.xx + p.yy * cov.xy, p.xy * cov.xy + p.yy * cov.yy
        ff, fe, ee = mf * p.xx + mc * p.xy, mf * p.xy + mc * p.yy, cf * p.xy + cc * p.yy
    # The derivative with respect to the covariance of a point is -w / 2.
    w = Pair(p.xx - u * u - ff, p.xy - u * v - fe, p.yy - v * v - ee)
    slope, sum_u, sum_v = lines.slope, _sum(u), _sum(v)
    lines_gradient = Lines(
        slope=_sum(w.xy * points.xx - w.yy * (slope * points.xx - points.xy) + v * points.x),
        x_scale=-lines.x_scale * _sum(w.xx),
        scatter=-lines.scatter * _sum(w.yy),
        group_loc=sum_u,
        group_scale=None if lines.group_scale is None else lines.group_scale * _scale_derivative(sum_u, posterior, 0),
        offset_loc=sum_v,
        offset_scale=lines.offset_scale * _scale_derivative(sum_v, posterior, 1),
    )
    points_gradient = Points(
        x=slope * v - u,
        y=-v,
        xx=-0.5 * w.xx + slope * (w.xy - 0.5 * slope * w.yy),
        xy=slope * w.yy - w.xy,
        yy=-0.5 * w.yy,
    )
    lines_bar, points_bar = jax.tree.map(lambda a: cotangent * a, (lines_gradient, points_gradient))
    return lines_bar, points_bar, None


def _scale_derivative(score, posterior: _Integrated, index: int):
    """Return the derivative with respect to half the prior variance of m (index 0) or c (index 1).

    It is the square of the score minus its expectation.
    """
    information, cov = posterior.information, posterior.covariance
    a, b = (information.xx, information.xy) if index == 0 else (information.xy, information.yy)
    expected_square = (information.xx, information.yy)[index] - (a * a * cov.xx + 2.0 * a * b * cov.xy + b * b * cov.yy)
    return score * score - expected_square


_log_density.defvjp(_forward, _backward)
