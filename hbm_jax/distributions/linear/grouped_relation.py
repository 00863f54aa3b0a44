"""Points with errors in both variables on the lines of groups; the true ones and the groups' offsets integrated out.

In each group the points' distances from their expected values are e, from the line, and f, of x alone. Given the mean m
of x and the offset c of the line of a group, (f, e) of a point is a bivariate normal of covariance C; m moves all the f
of a group and c all its e, so that a group costs its points and one 2 x 2 system (Woodbury's identity).
"""

import math
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


class GroupedLinearRelation(dist.Distribution):
    """Measured (x, y) of points in groups, whose mean x and intercept are normal and integrated out too.

    The true x of point j of group i is x_shift_ij + m_i + N(0, x_scale^2), m_i ~ N(group_loc, group_scale^2), and the
    true y is intercept_ij + slope_i (x - x_shift) + c_i + N(0, scatter^2), c_i ~ N(offset_loc_i, offset_scale_i^2).

    Parameters
    ----------
    group_loc : array (...)
        Mean of the m of the groups.
    group_scale : array (...), optional
        Their standard deviation; without one, all are at the mean.
    offset_loc, offset_scale : array (...)
        Mean and standard deviation of the c, for each group.
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
    Values are (..., J, 2). The derivative of the density is written out by hand: it is that of the density of all
    numbers of the group together, averaged over m and c as the measured values leave them (Fisher's identity), which
    costs little more than the density itself. It can be differentiated once more, forward over reverse.
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

    def _arguments(self, value):
        """Parameters of the groups, (...) each, and what is known of their points, (J, ...) each.

        Groups come last, so that a processor's vectors run over groups.
        """

        def of_groups(a):
            return None if a is None else jnp.broadcast_to(jnp.asarray(a, value.dtype), self.batch_shape)

        def of_points(a):
            shape = (*self.batch_shape, self.event_shape[0])
            return jnp.moveaxis(jnp.where(self.used, jnp.broadcast_to(a, shape), 0.0), -1, 0)

        names = ("slope", "x_scale", "scatter", "group_loc", "group_scale", "offset_loc", "offset_scale")
        lines = Lines(*(of_groups(getattr(self, name)) for name in names))
        errors = jnp.asarray(self.errors)
        points = Points(
            of_points(value[..., 0] - self.x_shift), of_points(value[..., 1] - self.intercept),
            *(of_points(errors[..., k]) for k in range(3)),
        )  # fmt: skip
        used = np.asarray(self.used) if not isinstance(self.used, jax.core.Tracer) else self.used
        if isinstance(used, np.ndarray) and used.all():
            return lines, points, None
        return lines, points, jnp.moveaxis(jnp.broadcast_to(used, (*self.batch_shape, self.event_shape[0])), -1, 0)

    @validate_sample
    def log_prob(self, value):
        """Log density of measured values (..., J, 2)."""
        return _log_density(*self._arguments(value))

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., J, 2)``."""
        key_m, key_c, key_points = random.split(key, 3)
        if sample_shape:
            raise NotImplementedError("GroupedLinearRelation draws one sample at a time; use jax.vmap for more.")
        group_scale = 0.0 if self.group_scale is None else self.group_scale
        m = self.group_loc + group_scale * random.normal(key_m, self.batch_shape)
        c = self.offset_loc + self.offset_scale * random.normal(key_c, self.batch_shape)
        return jnp.where(self.used[..., None], self._points(m, c).sample(key_points), 0.0)

    def groups(self, value):
        """Exact distribution of (m, c) of every group given measured values, over (..., 2)."""
        lines, points, used = self._arguments(value)
        known = _integrated(lines, points, used)
        m, c = lines.group_loc + known.m, lines.offset_loc + known.c
        covariance = Pair(*(jnp.broadcast_to(a, np.shape(c)) for a in known.covariance))
        return bivariate(jnp.stack(jnp.broadcast_arrays(m, c), axis=-1), covariance)

    def conditional(self, value, groups):
        """Exact distribution of the true (x, y) of every point given measured values and (m, c) of its group."""
        return self._points(groups[..., 0], groups[..., 1]).conditional(value)


class Lines(NamedTuple):
    """Parameters of groups, (...) each; no group_scale where all m are at their mean."""

    slope: jnp.ndarray
    x_scale: jnp.ndarray
    scatter: jnp.ndarray
    group_loc: jnp.ndarray
    group_scale: jnp.ndarray | None
    offset_loc: jnp.ndarray
    offset_scale: jnp.ndarray


class Points(NamedTuple):
    """Measured values less what is known of each point, and the (co)variances of their errors, (J, ...) each."""

    x: jnp.ndarray
    y: jnp.ndarray
    xx: jnp.ndarray
    xy: jnp.ndarray
    yy: jnp.ndarray


class _Integrated(NamedTuple):
    """Log density of groups, and what their points say of m and c, about their means."""

    log_density: jnp.ndarray
    m: jnp.ndarray
    c: jnp.ndarray
    covariance: Pair  # of (m, c)
    information: Pair  # of the points about (m, c)


def _sum(values):
    """Sum over the points, (J, ...) -> (...): as a product, which is vectorised where a reduction is not."""
    return jnp.tensordot(np.ones(np.shape(values)[0], values.dtype), values, axes=1, precision="highest")


def _sum_of_logs(values):
    """Sum of logarithms over the points, four at a time: a logarithm is what costs most here."""
    num = np.shape(values)[0]
    size = -(-num // 4)
    values = jnp.concatenate([values, jnp.ones((4 * size - num, *np.shape(values)[1:]), values.dtype)])
    a, b, c, d = (values[i * size : (i + 1) * size] for i in range(4))
    return _sum(jnp.log((a * b) * (c * d)))


def _precision(lines: Lines, points: Points, used):
    """Inverse of the covariance of (f, e) of each point, zero where unused, and the determinant, one there."""
    slope = lines.slope
    ff = lines.x_scale**2 + points.xx
    fe = points.xy - slope * points.xx
    ee = lines.scatter**2 + points.yy - slope * (points.xy + fe)
    det = ff * ee - fe * fe
    if used is not None:
        det = jnp.where(used, det, 1.0)
        return Pair(*(jnp.where(used, a / det, 0.0) for a in (ee, -fe, ff))), det
    inverse = 1.0 / det
    return Pair(ee * inverse, -fe * inverse, ff * inverse), det


def _residuals(lines: Lines, points: Points, m, c):
    """(f, e) of every point."""
    return points.x - m, points.y - lines.slope * points.x - c


def _integrated(lines: Lines, points: Points, used) -> _Integrated:
    precision, det = _precision(lines, points, used)
    f, e = _residuals(lines, points, lines.group_loc, lines.offset_loc)
    u, v = precision.xx * f + precision.xy * e, precision.xy * f + precision.yy * e
    num = np.shape(f)[0] if used is None else jnp.sum(used, axis=0)
    density = -0.5 * (_sum(u * f + v * e) + _sum_of_logs(det)) - LOG_2PI * num
    t = lines.offset_scale
    cc, pull_c = _sum(precision.yy), t * _sum(v)
    if lines.group_scale is None:
        left = 1.0 / (1.0 + t**2 * cc)
        density = density + 0.5 * (pull_c**2 * left + jnp.log(left))
        zero = jnp.zeros_like(cc)
        return _Integrated(density, zero, t * pull_c * left, Pair(zero, zero, t**2 * left), Pair(zero, zero, cc))
    # In units of the standard deviations of m and c, which may be zero.
    s = lines.group_scale
    information = Pair(_sum(precision.xx), _sum(precision.xy), cc)
    system = Pair(1.0 + s**2 * information.xx, s * t * information.xy, 1.0 + t**2 * cc)
    pull_m = s * _sum(u)
    m, c = system.solve(pull_m, pull_c)
    density = density + 0.5 * (pull_m * m + pull_c * c - jnp.log(system.det))
    inverse = 1.0 / system.det
    covariance = Pair(s**2 * system.yy * inverse, -s * t * system.xy * inverse, t**2 * system.xx * inverse)
    return _Integrated(density, s * m, t * c, covariance, information)


@jax.custom_vjp
def _log_density(lines: Lines, points: Points, used):
    return _integrated(lines, points, used).log_density


def _forward(lines, points, used):
    known = _integrated(lines, points, used)
    return known.log_density, (lines, points, used, known)


def _backward(given, cotangent):
    """Give derivatives by all arguments; the compiler drops those that nobody asks for."""
    lines, points, used, known = given
    p, _ = _precision(lines, points, used)
    f, e = _residuals(lines, points, lines.group_loc + known.m, lines.offset_loc + known.c)
    u, v = p.xx * f + p.xy * e, p.xy * f + p.yy * e
    left = known.covariance
    if lines.group_scale is None:
        ff, fe, ee = (left.yy * a for a in (p.xy * p.xy, p.xy * p.yy, p.yy * p.yy))
    else:
        # Of P V P, with V the covariance of (m, c).
        mf, mc = p.xx * left.xx + p.xy * left.xy, p.xx * left.xy + p.xy * left.yy
        cf, cc = p.xy * left.xx + p.yy * left.xy, p.xy * left.xy + p.yy * left.yy
        ff, fe, ee = mf * p.xx + mc * p.xy, mf * p.xy + mc * p.yy, cf * p.xy + cc * p.yy
    # Of the covariance of a point the derivative is -w / 2.
    w = Pair(p.xx - u * u - ff, p.xy - u * v - fe, p.yy - v * v - ee)
    slope, sum_u, sum_v = lines.slope, _sum(u), _sum(v)
    of_groups = Lines(
        slope=_sum(w.xy * points.xx - w.yy * (slope * points.xx - points.xy) + v * points.x),
        x_scale=-lines.x_scale * _sum(w.xx),
        scatter=-lines.scatter * _sum(w.yy),
        group_loc=sum_u,
        group_scale=None if lines.group_scale is None else lines.group_scale * _of_scale(sum_u, known, 0),
        offset_loc=sum_v,
        offset_scale=lines.offset_scale * _of_scale(sum_v, known, 1),
    )
    of_points = Points(
        x=slope * v - u,
        y=-v,
        xx=-0.5 * w.xx + slope * (w.xy - 0.5 * slope * w.yy),
        xy=slope * w.yy - w.xy,
        yy=-0.5 * w.yy,
    )
    lines_bar, points_bar = jax.tree.map(lambda a: cotangent * a, (of_groups, of_points))
    return lines_bar, points_bar, None


def _of_scale(pull, known: _Integrated, which: int):
    """Give the derivative by half the prior variance of m or c: the square of the pull less its expectation."""
    information, left = known.information, known.covariance
    a, b = (information.xx, information.xy) if which == 0 else (information.xy, information.yy)
    expected = (information.xx, information.yy)[which] - (a * a * left.xx + 2.0 * a * b * left.xy + b * b * left.yy)
    return pull * pull - expected


_log_density.defvjp(_forward, _backward)
