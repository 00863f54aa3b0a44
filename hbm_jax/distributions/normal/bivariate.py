"""Integrals of the bivariate normal distribution over a quadrant, by a fixed quadrature, with exact derivatives.

The density phi(h, k, r) of unit normals with correlation r is the derivative of P = P(X < h, Y < k) with respect to r
(Plackett 1954, Biometrika 41, 351). P is therefore its value at another correlation plus an integral of a density,
which needs no distribution function. With w^2 = (1 + rho) / (1 - rho), w^2 y^2 = (1 + r) / (1 - r), and

    a = (h + k)^2 / (4 w^2),    b = (h - k)^2 w^2 / 4,

it is P(rho) = P(r) + w / pi int_y^1 exp(-(a w^2 + b / w^2 + a / y^2 + b y^2) / 2) / (1 + w^2 y^2) dy. The first
correlation r is 0, where P = Phi(h) Phi(k), or -1 (y = 0), where P = 0 for h + k < 0, such that no small difference of
large terms remains. The exponent has one minimum, and the range where it is close to it is known in closed form.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from hbm_jax.distributions.mills_ratio import log_mills_ratio, log_mills_slope

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NODES, _WEIGHTS = 0.5 + 0.5 * _NODES, 0.5 * _WEIGHTS
_FALL = 31.0  # the integrand is neglected below exp(-_FALL) of its maximum
_SEPARATE = -2.0  # sum of the limits over w below which the integral starts at a correlation of -1, if rho < 0
LOG_2PI = math.log(2.0 * math.pi)


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
        Its error in double precision, relative to the larger of 1 and its value, is below 1e-11 for limits between -100
        and 100 and correlations from -0.99 to 0.99 (``tests/distributions/test_bivariate.py``). The derivatives are
        closed forms with the same error.

    Examples
    --------
    >>> round(float(jnp.exp(log_bivariate_ndtr(0.0, 0.0, 0.5))), 6)
    0.333333
    """
    h, k, rho = jnp.broadcast_arrays(*(jnp.asarray(a, jnp.result_type(float)) for a in (h, k, rho)))
    w = jnp.sqrt((1.0 + rho) / (1.0 - rho))
    path = _path((h + k) / w, (h - k) * w, w)
    log_start = -0.25 * (h * h + k * k) - path.lowest  # (a w^2 + b / w^2) / 2
    return _log_total(path, log_start, log_ndtr(h) + log_ndtr(k))


class _Path(NamedTuple):
    """Integral from the first correlation to rho, of a density over exp(-lowest), with the sign of the direction.

    Attributes
    ----------
    integral : array (...)
        The integral, negative towards lower correlations.
    lowest : array (...)
        Smallest value of (a / y^2 + b y^2) / 2 on the path.
    from_minus_one : array (...) of bool
        True where the first correlation is -1, where the probability is 0.
    """

    integral: Any
    lowest: Any
    from_minus_one: Any


def _path(total, difference, w) -> _Path:
    """Return the integral for (h + k) / w and (h - k) w; see the top of this file.

    In the square root x of y, 32 nodes of a Gauss-Legendre rule have an error below 1e-12 of the integral.
    """
    tiny = jnp.finfo(jnp.result_type(total)).tiny
    a, b = 0.25 * total**2, 0.25 * difference**2
    upwards, from_minus_one = w >= 1.0, (w < 1.0) & (total < _SEPARATE)
    inverse = 1.0 / w
    low = jnp.where(upwards, inverse, jnp.where(from_minus_one, 0.0, 1.0))
    high = jnp.where(upwards | from_minus_one, 1.0, inverse)
    best = jnp.clip(jnp.sqrt(jnp.sqrt(a / jnp.maximum(b, tiny))), low, high)
    lowest = 0.5 * (a / best**2 + b * best**2)
    # y^2 at both ends is a solution of a / y^2 + b y^2 = 2 (lowest + _FALL).
    size = lowest + _FALL
    size = size + jnp.sqrt(jnp.maximum(size**2 - a * b, 0.0))
    low = jnp.maximum(low, jnp.sqrt(a / size))
    high = jnp.minimum(high, jnp.sqrt(size / jnp.maximum(b, tiny)))
    top = jnp.sqrt(best)
    start = jnp.sqrt(low) - top
    length = jnp.sqrt(high) - top - start
    a, b, best, top, start, squared_w = (array[..., None] for array in (a, b, best, top, start, w * w))
    step = start + length[..., None] * _NODES  # x - top, from which differences of y^2 are accurate
    x = top + step
    y = x * x
    square, best_square = y * y, best * best
    rise = step * (x + top) * (y + best)  # y^2 - best^2
    exponent = 0.5 * rise * (a / (square * best_square) - b)
    values = _WEIGHTS * x * jnp.exp(exponent) / (1.0 + squared_w * square)
    direction = jnp.where(upwards | from_minus_one, 2.0 / math.pi, -2.0 / math.pi)
    return _Path(direction * w * length * jnp.sum(values, axis=-1), lowest, from_minus_one)


def _log_less_gaussian(h):
    """Return log Phi(h), plus h^2 / 2 for negative h."""
    negative = h < 0.0
    size = jnp.where(negative, -h, h)
    log_ratio = log_mills_ratio(size) - 0.5 * LOG_2PI
    return jnp.where(negative, log_ratio, jnp.log1p(-jnp.exp(jnp.where(negative, -1.0, log_ratio - 0.5 * h * h))))


def _log_total(path: _Path, log_factor, log_product):
    """Return the log of exp(log_factor) times the integral, plus exp(log_product) where it starts at correlation 0."""
    scale = jnp.where(path.from_minus_one, log_factor, jnp.maximum(log_factor, log_product))
    product = jnp.where(path.from_minus_one, 0.0, jnp.exp(jnp.minimum(log_product - scale, 0.0)))
    return scale + jnp.log(path.integral * jnp.exp(log_factor - scale) + product)


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
        Its error relative to the larger of 1 and its value is below 1e-11 for linear coefficients of up to 100 square
        roots of the diagonal of Q, of either sign, and correlations of up to 0.99. The derivatives are means of t, to
        1e-8 of them, and of its products, to 1e-6 of them; or to 1e-8 in units of the inverse roots of the diagonal of
        Q, which is more far in the tails (``tests/distributions/test_bivariate.py``).

    Notes
    -----
    It is 2 pi det(Q)^-1/2 exp(l . Q^-1 l / 2) times a probability as in `log_bivariate_ndtr`, for limits of the means
    over the standard deviations of t and a correlation of -q12 / sqrt(q11 q22). The factor is included in exponents, so
    that nothing cancels where the probability is small.

    Examples
    --------
    >>> round(float(log_quadrant_integral(0.0, 0.0, 1.0, 0.0, 1.0)), 6)  # log(pi / 2)
    0.451583
    """
    arguments = (jnp.asarray(a, jnp.result_type(float)) for a in (l1, l2, q11, q12, q22))
    exponent, log_rest = _quadrant(*jnp.broadcast_arrays(*arguments))
    return exponent + log_rest


@jax.custom_jvp
def _quadrant(l1, l2, q11, q12, q22):
    """Return the largest exponent l_i^2 / (2 q_ii) of the edges with l_i > 0, and the log integral less this."""
    norm = jnp.sqrt(q11 * q22)
    rho = -q12 / norm
    squared = (1.0 - rho) * (1.0 + rho)
    s = jnp.sqrt(squared)
    l1, l2 = l1 / jnp.sqrt(q11), l2 / jnp.sqrt(q22)
    largest = 0.5 * jnp.maximum(jnp.maximum(l1, l2), 0.0) ** 2
    path = _path(l1 + l2, l1 - l2, jnp.sqrt((1.0 + rho) / (1.0 - rho)))
    log_factor = 0.25 * (l1 * l1 + l2 * l2) - path.lowest - largest  # (a + b) / 2
    h, k = (l1 + rho * l2) / s, (l2 + rho * l1) / s
    # log(Phi(h) Phi(k)) + l . Q^-1 l / 2. With Phi(h) = exp(-h^2 / 2) F(h) for h < 0, and l . Q^-1 l = l1^2 + k^2 =
    # l2^2 + h^2 in units of the roots of the diagonal of Q, squares cancel in the exponent.
    both = 0.5 * rho * (rho * (h * h + k * k) - 2.0 * h * k) / squared
    first, second = 0.5 * l1 * l1 - largest, 0.5 * l2 * l2 - largest
    exponent = jnp.where(
        h < 0.0, jnp.where(k < 0.0, both - largest, second), first + jnp.where(k < 0.0, 0.0, 0.5 * k * k)
    )
    log_product = exponent + _log_less_gaussian(h) + _log_less_gaussian(k)
    return largest, LOG_2PI - jnp.log(s * norm) + _log_total(path, log_factor, log_product)


@_quadrant.defjvp
def _quadrant_derivative(primals, tangents):
    """Return the parts of the log integral, and their directional derivatives.

    The derivatives with respect to l1, l2, q11, q12 and q22 are the means of t1, t2, -t1^2 / 2, -t1 t2 and -t2^2 / 2.
    By parts, with e2 the integral over the edge t1 = 0 over the whole integral, Q_11 <t1> + Q_12 <t2> = l1 + e2,
    likewise with both exchanged, and

        Q_11 <t1^2> + Q_12 <t1 t2> = 1 + l1 <t1>,    Q_12 <t1^2> + Q_22 <t1 t2> = l2 <t1> + e1 <t1>_1,

    with <t1>_1 the mean over the edge t2 = 0, likewise for <t2^2>.
    """
    l1, l2, q11, q12, q22 = primals
    largest, log_rest = _quadrant(*primals)
    det = q11 * q22 - q12 * q12

    def edge(linear, quadratic):
        """Return the integral over an edge over the whole one, and that of the position along the edge."""
        root = jnp.sqrt(quadratic)
        y = linear / root
        log_edge = 0.5 * LOG_2PI + _log_less_gaussian(y) - log_rest
        integral = jnp.exp(log_edge + (0.5 * jnp.maximum(y, 0.0) ** 2 - largest)) / root
        return integral, -integral * log_mills_slope(-y) / root

    (first, first_moment), (second, second_moment) = edge(l1, q11), edge(l2, q22)
    right = l1 + second, l2 + first
    t1, t2 = (q22 * right[0] - q12 * right[1]) / det, (q11 * right[1] - q12 * right[0]) / det
    own, other = 1.0 + l1 * t1, l2 * t1 + first_moment
    t1_t1, t1_t2 = (q22 * own - q12 * other) / det, (q11 * other - q12 * own) / det
    t2_t2 = (q11 * (1.0 + l2 * t2) - q12 * (l1 * t2 + second_moment)) / det
    derivatives = t1, t2, -0.5 * t1_t1, -t1_t2, -0.5 * t2_t2
    terms = [a * b for a, b in zip(derivatives, tangents, strict=True)]
    # The derivative is that of the sum; it is given to the second part.
    return (largest, log_rest), (jnp.zeros_like(largest), sum(terms[1:], terms[0]))


@log_bivariate_ndtr.defjvp
def _derivative(primals, tangents):
    """Return the log probability and its directional derivative.

    With P the probability and s^2 = 1 - rho^2, dP / dh = phi(h) Phi((k - rho h) / s), likewise for k, and dP / drho is
    the bivariate density at (h, k). Each is divided by P.
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
