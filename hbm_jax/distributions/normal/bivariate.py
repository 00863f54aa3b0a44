"""Integrals of the bivariate normal distribution over a quadrant, by a fixed quadrature, with exact derivatives."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from hbm_jax.distributions.mills_ratio import mills_ratio

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(22)  # in each of two intervals of the angle
_NODES, _WEIGHTS = 0.5 + 0.5 * _NODES, 0.5 * _WEIGHTS
FALL = 60.0  # the integrand is neglected below exp(-FALL / 2) of its maximum
LOG_2PI = math.log(2.0 * math.pi)
# Taylor coefficients in x^2 of cos(x) and of sin(x) / x; the first one left out is 2e-19 at pi / 2.
_COSINE = tuple((-1.0) ** n / math.factorial(2 * n) for n in range(12))
_SINE = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(12))


@jax.custom_jvp
def log_bivariate_ndtr(h, k, rho):
    """Return log P(X < h, Y < k) of standard normal X and Y with correlation rho.

    Parameters
    ----------
    h, k : array (...)
        Finite limits.
    rho : array (...)
        Correlation, above -1 and below 1.

    Returns
    -------
    array (...)
        Its error in double precision, relative to the larger of 1 and its value, is below 1e-8 for limits between -100
        and 100 and correlations from -0.99 to 0.99 (``tests/distributions/test_bivariate.py``). The derivatives are
        closed forms with the same error.

    Notes
    -----
    In coordinates in which X and Y are independent, the region is a wedge; see `_wedge`.

    Examples
    --------
    >>> round(float(jnp.exp(log_bivariate_ndtr(0.0, 0.0, 0.5))), 6)
    0.333333
    """
    h, k, rho = jnp.broadcast_arrays(*(jnp.asarray(a, jnp.result_type(float)) for a in (h, k, rho)))
    s = jnp.sqrt((1.0 - rho) * (1.0 + rho))
    apex = (k - rho * h) / s, h
    wedge = _wedge(*apex, jnp.arctan2(s, -rho))
    total = jnp.sum(wedge.weights * wedge.radial_integral, axis=-1)
    return jnp.log(total) + wedge.log_scale - 0.5 * (apex[0] ** 2 + apex[1] ** 2) - LOG_2PI


class _Wedge(NamedTuple):
    """Quadrature in polar coordinates about the apex of a wedge, over functions of the angle, (..., nodes).

    Attributes
    ----------
    sine, cosine, weights : array (..., nodes)
        Sine and cosine of the angles from one edge of the wedge, and their weights.
    b : array (..., nodes)
        Linear coefficient of the exponent -r^2 / 2 - b r along each direction.
    log_scale : array (...)
        Log of a factor that is left out of `radial_integral`, so that nothing overflows.
    """

    sine: Any
    cosine: Any
    weights: Any
    b: Any
    log_scale: Any

    @property
    def radial_integral(self):
        """Integral of r exp(-r^2 / 2 - b r) over positive r, 1 - b M(b) with M Mills' ratio, over exp(log_scale)."""
        size, gaussian = self._parts
        t = 4.0 / (4.0 + size)  # |b| in the variable of `mills_ratio`, which returns M / t and D / t^2
        return self._factor * t * t * mills_ratio(t)[1] + size * gaussian

    @property
    def radial_moments(self):
        """Integrals of r^n exp(-r^2 / 2 - b r) over positive r for n of 1, 2 and 3, over exp(log_scale).

        By parts, that for n + 1 is n times that for n - 1, minus b times that for n.
        """
        size, gaussian = self._parts
        t = 4.0 / (4.0 + size)
        ratio, slope = mills_ratio(t)
        mills = jnp.where(self.b < 0.0, gaussian - self._factor * t * ratio, self._factor * t * ratio)
        first = self._factor * t * t * slope + size * gaussian
        second = mills - self.b * first
        return first, second, 2.0 * first - self.b * second

    @property
    def _factor(self):
        """exp(-log_scale), (..., 1): the same factor for every direction."""
        return jnp.exp(-self.log_scale)[..., None]

    @property
    def _parts(self):
        """Return |b|, and sqrt(2 pi) exp(b^2 / 2) for negative b: the sum of M(b) and M(-b)."""
        negative = self.b < 0.0
        exponent = jnp.where(negative, 0.5 * self.b**2, 0.0) - self.log_scale[..., None]
        gaussian = jnp.where(negative, jnp.exp(exponent + 0.5 * LOG_2PI), 0.0)
        return jnp.where(negative, -self.b, self.b), gaussian


def _wedge(x, y, opening) -> _Wedge:
    """Return a quadrature over a wedge 0 < angle < opening of the exponential of -r^2 / 2 + r (x, y) . direction.

    The radial integral as a function of the angle varies over 1 / distance, with (x, y) the distance times a direction.
    It has one maximum in the wedge and falls from it to both edges, or it is largest at the edges. On both intervals,
    from the maximum to the edges or from the edges to the middle, a sinh of the coordinate of a Gauss-Legendre rule
    has steps that grow from 1 / distance on.
    """
    squared_distance = x * x + y * y
    positive = squared_distance > 0.0
    distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared_distance, 1.0)), 0.0)
    scale = 1.0 / jnp.maximum(distance, 0.1)
    origin = jnp.arctan2(y, jnp.where(positive, x, 1.0))
    to_opening = jnp.abs(origin - opening)
    at_first = jnp.abs(origin) < jnp.minimum(to_opening, 2.0 * math.pi - to_opening)
    inside = (origin >= 0.0) & (origin <= opening)
    maximum = jnp.where(inside, origin, jnp.where(at_first, 0.0, opening))
    separation = jnp.abs(jnp.remainder(maximum - origin + math.pi, 2.0 * math.pi) - math.pi)
    facing = separation < 0.5 * math.pi
    sine = jnp.sqrt(jnp.sin(separation) ** 2 + FALL / jnp.maximum(squared_distance, 1.0))
    reach = jnp.where(facing & (sine < 1.0), jnp.arcsin(jnp.minimum(sine, 1.0)) - separation, math.pi)
    log_scale = jnp.where(facing, 0.5 * (distance * jnp.cos(separation)) ** 2, 0.0)
    angles, weights = [], []
    for edge, near in ((jnp.zeros_like(opening), inside | at_first), (opening, inside | ~at_first)):
        start, end = jnp.where(inside, maximum, edge), jnp.where(inside, edge, 0.5 * opening)
        length = jnp.where(near, jnp.minimum(jnp.abs(end - start), reach), jnp.abs(end - start))
        size = jnp.arcsinh(length / scale)
        grown = jnp.exp(size[..., None] * _NODES)
        step = (jnp.sign(end - start) * scale)[..., None]
        angles.append(start[..., None] + step * 0.5 * (grown - 1.0 / grown))
        weights.append((size * scale)[..., None] * _WEIGHTS * 0.5 * (grown + 1.0 / grown))
    sine, cosine = _sine_and_cosine(jnp.concatenate(angles, axis=-1))
    b = -(x[..., None] * cosine + y[..., None] * sine)
    return _Wedge(sine, cosine, jnp.concatenate(weights, axis=-1), b, log_scale)


def _sine_and_cosine(angle):
    """Return sine and cosine of angles between 0 and pi, to 3e-16: Taylor series about pi / 2.

    XLA calls a scalar function for each sine or cosine on a CPU; a polynomial is vectorised.
    """
    x = angle - 0.5 * math.pi
    square = x * x
    even, odd = jnp.full_like(x, _COSINE[-1]), jnp.full_like(x, _SINE[-1])
    for a, b in zip(_COSINE[-2::-1], _SINE[-2::-1], strict=True):
        even, odd = even * square + a, odd * square + b
    return even, -x * odd


@jax.custom_jvp
def log_quadrant_integral(l1, l2, q11, q12, q22):
    """Return the log of the integral of exp(l . t - t . Q t / 2) over positive t1 and t2.

    Parameters
    ----------
    l1, l2 : array (...)
        Linear coefficients.
    q11, q12, q22 : array (...)
        Elements of the positive definite matrix Q.

    Returns
    -------
    array (...)
        Its error relative to the larger of 1 and its value is below 1e-8 for linear coefficients of up to 100 square
        roots of the diagonal of Q, of either sign, and correlations of up to 0.99. The derivatives are means of t, to
        1e-8 of them, and of its products, to 1e-6 (``tests/distributions/test_bivariate.py``).

    Examples
    --------
    >>> round(float(log_quadrant_integral(0.0, 0.0, 1.0, 0.0, 1.0)), 6)  # log(pi / 2)
    0.451583
    """
    wedge, _, log_norm = _quadrant(l1, l2, q11, q12, q22)
    return jnp.log(jnp.sum(wedge.weights * wedge.radial_integral, axis=-1)) + log_norm


def _quadrant(l1, l2, q11, q12, q22):
    """Return the wedge, t1 and t2 per unit of the radius along each direction, and the log of the factor.

    In coordinates in which t . Q t is the squared radius, the quadrant is a wedge: the directions of t1 and t2, its
    edges, have an angle of cosine q12 / sqrt(q11 q22).
    """
    l1, l2, q11, q12, q22 = jnp.broadcast_arrays(
        *(jnp.asarray(a, jnp.result_type(float)) for a in (l1, l2, q11, q12, q22))
    )
    scale = jnp.sqrt(q11), jnp.sqrt(q22)
    cosine = q12 / (scale[0] * scale[1])
    sine = jnp.sqrt((1.0 - cosine) * (1.0 + cosine))
    x = l1 / scale[0]
    opening = jnp.arctan2(sine, cosine)
    wedge = _wedge(x, (l2 / scale[1] - cosine * x) / sine, opening)
    slopes = (
        (wedge.cosine - (cosine / sine)[..., None] * wedge.sine) / scale[0][..., None],
        wedge.sine / (sine * scale[1])[..., None],
    )
    return wedge, slopes, wedge.log_scale - jnp.log(sine * scale[0] * scale[1])


@log_quadrant_integral.defjvp
def _quadrant_derivative(primals, tangents):
    """Return the log integral and its directional derivative.

    The derivatives with respect to l1, l2, q11, q12 and q22 are the means of t1, t2, -t1^2 / 2, -t1 t2 and -t2^2 / 2.
    """
    wedge, (t1, t2), log_norm = _quadrant(*primals)
    first, second, third = wedge.radial_moments
    total = jnp.sum(wedge.weights * first, axis=-1)

    def mean(radial, direction):
        """Return the mean of a radial moment times a function of the direction."""
        return jnp.sum(wedge.weights * radial * direction, axis=-1) / total

    terms = (
        mean(second, t1) * tangents[0],
        mean(second, t2) * tangents[1],
        -0.5 * mean(third, t1 * t1) * tangents[2],
        -mean(third, t1 * t2) * tangents[3],
        -0.5 * mean(third, t2 * t2) * tangents[4],
    )
    return jnp.log(total) + log_norm, sum(terms[1:], terms[0])


@log_bivariate_ndtr.defjvp
def _derivative(primals, tangents):
    """Return the log probability and its directional derivative.

    With P the probability and s^2 = 1 - rho^2, dP / dh = phi(h) Phi((k - rho h) / s), likewise for k, and dP / drho is
    the bivariate density at (h, k) (Plackett 1954, Biometrika 41, 351). Each is divided by P.
    """
    h, k, rho = primals
    log_probability = log_bivariate_ndtr(h, k, rho)
    squared = (1.0 - rho) * (1.0 + rho)
    s = jnp.sqrt(squared)

    def edge(limit, other):
        return jnp.exp(-0.5 * (limit**2 + LOG_2PI) + log_ndtr((other - rho * limit) / s) - log_probability)

    density = jnp.exp(
        -0.5 * (h**2 - 2.0 * rho * h * k + k**2) / squared - LOG_2PI - 0.5 * jnp.log(squared) - log_probability
    )
    return log_probability, edge(h, k) * tangents[0] + edge(k, h) * tangents[1] + density * tangents[2]
