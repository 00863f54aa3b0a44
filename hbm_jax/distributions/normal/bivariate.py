"""Logarithm of the bivariate normal distribution function, by a fixed quadrature, with exact derivatives."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, log_ndtr

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)  # in each of two intervals of the angle
FALL = 60.0  # the integrand is neglected below exp(-FALL / 2) of its maximum
FAR = 12.0  # distance beyond which the radial integral is an asymptotic series
TERMS = np.cumprod([1.0] + [-(2.0 * n + 1.0) for n in range(1, 13)])  # its coefficients, to 1e-14 at FAR
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
        Its error in double precision is below 1e-8 for probabilities above 1e-6 and correlations from -0.999 to 0.999
        (``tests/distributions/test_bivariate.py``). It is finite far in the tails. The derivatives are closed forms
        with the same error.

    Notes
    -----
    In coordinates in which X and Y are independent, the region is a wedge. In polar coordinates about its apex, at
    distance r from the origin, the radial integral is 1 - b M(b), with b the projection of the apex on the direction
    and M Mills' ratio; the integral over the angle, a smooth function with one maximum, is a Gauss-Legendre sum on both
    sides of the maximum.

    Examples
    --------
    >>> round(float(jnp.exp(log_bivariate_ndtr(0.0, 0.0, 0.5))), 6)
    0.333333
    """
    h, k, rho = jnp.broadcast_arrays(*(jnp.asarray(a, jnp.result_type(float)) for a in (h, k, rho)))
    s = jnp.sqrt((1.0 - rho) * (1.0 + rho))
    apex = h, (k - rho * h) / s
    squared_distance = apex[0] ** 2 + apex[1] ** 2
    distance = jnp.sqrt(squared_distance)
    opening = jnp.arctan2(s, -rho)  # upper limit of the angle
    origin = jnp.arctan2(*apex)  # direction of the origin seen from the apex, -pi to pi
    to_opening = jnp.abs(origin - opening)
    nearer_end = jnp.where(jnp.abs(origin) < jnp.minimum(to_opening, 2.0 * math.pi - to_opening), 0.0, opening)
    maximum = jnp.where((origin >= 0.0) & (origin <= opening), origin, nearer_end)
    separation = jnp.abs(jnp.remainder(maximum - origin + math.pi, 2.0 * math.pi) - math.pi)
    sine = jnp.sqrt(jnp.sin(separation) ** 2 + FALL / jnp.maximum(squared_distance, 1.0))
    reach = jnp.where(
        (separation < 0.5 * math.pi) & (sine < 1.0), jnp.arcsin(jnp.minimum(sine, 1.0)) - separation, math.pi
    )
    # Exponents are relative to that at the maximum, so that no probability underflows.
    offset = 0.5 * squared_distance * jnp.where(separation < 0.5 * math.pi, jnp.sin(separation) ** 2, 1.0)
    total: Any = 0.0
    for end in (jnp.zeros_like(opening), opening):
        length = jnp.minimum(jnp.abs(end - maximum), reach)
        step = (jnp.sign(end - maximum) * length)[..., None]
        b = -distance[..., None] * jnp.cos((maximum - origin)[..., None] + step * (0.5 * (1.0 + NODES)))
        integral = _radial_integral(b, (offset - 0.5 * squared_distance)[..., None])
        total = total + 0.5 * length * (integral @ WEIGHTS)
    return jnp.log(total) - offset - LOG_2PI


def _radial_integral(b, log_factor):
    """Return the integral of r exp(-r^2 / 2 - b r) over positive r, 1 - b M(b), times the exponential of a factor."""
    clipped = jnp.minimum(b, FAR)
    mills = math.sqrt(0.5 * math.pi) * erfc(clipped * math.sqrt(0.5))  # Mills' ratio times exp(-b^2 / 2)
    product = clipped * mills * jnp.exp(log_factor + 0.5 * clipped**2)
    inverse_square = 1.0 / jnp.maximum(b, FAR) ** 2
    factor = jnp.exp(log_factor)
    return jnp.where(b > FAR, factor * inverse_square * jnp.polyval(TERMS[::-1], inverse_square), factor - product)


@log_bivariate_ndtr.defjvp
def _derivative(primals, tangents):
    """Return the log probability and its directional derivative.

    Each term is the density on the boundary of the region, divided by the probability.
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
