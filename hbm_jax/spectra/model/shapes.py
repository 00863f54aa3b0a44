"""Shapes of photon spectra in logarithms: pure functions, safe at every point where a formula changes.

Throughout, x is the natural logarithm of an energy over a pivot energy, a shape is ln f(x), and ``power`` is 0 for the
integral of f over energy and 1 for that of f times energy, in units of the pivot: the integral of exp((power + 1) x) f
over a band in x. A band is its middle and its width, because two ends in single precision do not tell the width of a
narrow bin. Arguments broadcast; any floating type; NaN outside the domain.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

# Of Gauss and Legendre, over a whole band. Largest errors for cut-offs and temperatures down to 0.03 of its low end:
# bands of four decades 2e-13, of five 3e-11; 48 nodes would give 2e-10 and 6e-8.
NUM_NODES = 64
_SERIES = 0.5  # below, sinh(y)/y is its series: the quotient's slope would lose 1/y digits
_TERMS = 8  # of the series: 0.5^16 / 17! is 4e-20
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_FAR = 1e3  # in ln E: beyond every band


@functools.cache
def _rule(num: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(num)


def log_sinhc(y: jax.Array) -> jax.Array:
    """ln(sinh(y) / y), even, 0 at 0, without overflow; exact to rounding with all its derivatives."""
    small = jnp.abs(y) < _SERIES
    square = jnp.where(small, y, 0.0) ** 2
    series = jnp.ones_like(y)
    for k in range(_TERMS, 0, -1):
        series = 1.0 + series * square / (2.0 * k * (2.0 * k + 1.0))
    size = jnp.abs(jnp.where(small, 1.0, y))
    return jnp.where(small, jnp.log(series), size + jnp.log(-jnp.expm1(-2.0 * size) / (2.0 * size)))


def log_mean_power(slope: jax.Array, middle: ArrayLike, width: ArrayLike) -> jax.Array:
    """Logarithm of the mean of exp(slope x) over a band, at slope 0 too.

    (x1^s - x0^s) / s is 0/0 at s = 0: in single precision it is off by 2 % at s = 1e-6, and so is nothing here.
    """
    return slope * middle + log_sinhc(0.5 * slope * width)


def log_mean(shape: Callable[[jax.Array], jax.Array], middle: ArrayLike, width: ArrayLike) -> jax.Array:
    """Logarithm of the mean of exp(shape(x)) over a band, by `NUM_NODES` nodes."""
    nodes, weights = _rule(NUM_NODES)
    middle, half = jnp.expand_dims(middle, -1), 0.5 * jnp.expand_dims(width, -1)
    values = shape(middle + half * nodes.astype(half.dtype))
    top = jax.lax.stop_gradient(jnp.max(values, axis=-1, keepdims=True))
    return top[..., 0] + jnp.log(jnp.sum(jnp.exp(values - top) * (0.5 * weights).astype(values.dtype), axis=-1))


def _cut_at(place: jax.Array, middle: ArrayLike, width: ArrayLike):
    """Middles and widths of the parts of a band below and above a place; a part may have no width."""
    half = 0.5 * width
    cut = jnp.clip(place - middle, -half, half)
    return (middle + 0.5 * (cut - half), half + cut), (middle + 0.5 * (cut + half), half - cut)


def log_total(lengths: Sequence[jax.Array], log_means: Sequence[jax.Array]) -> jax.Array:
    """Logarithm of the sum of lengths times exp(log_means); a length may be 0."""
    tops = [jnp.where(length > 0, mean, -jnp.inf) for length, mean in zip(lengths, log_means, strict=True)]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    # A part without length has any mean; 50 more than the largest is not met where its length has a slope.
    terms = (length * jnp.exp(jnp.minimum(mean - top, 50.0)) for length, mean in zip(lengths, log_means, strict=True))
    return top + jnp.log(sum(terms))


def power_law(x, photon_index):
    """Ln of E^-photon_index."""
    return -photon_index * x


def power_law_integral(middle, width, power, photon_index):
    """Ln of the integral, at every index: 1 and 2 are nothing special."""
    return jnp.log(width) + log_mean_power(power + 1.0 - photon_index, middle, width)


def broken_power_law(x, photon_index, photon_index_high, log_break):
    """Ln of E^-photon_index below a break at x = log_break, and of what goes on as E^-photon_index_high above."""
    return -photon_index * jnp.minimum(x, log_break) - photon_index_high * jnp.maximum(x - log_break, 0.0)


def broken_power_law_integral(middle, width, power, photon_index, photon_index_high, log_break):
    """Ln of the integral; its slope in the break is continuous."""
    below, beyond = _cut_at(log_break, middle, width)
    above = (photon_index_high - photon_index) * log_break
    means = (
        log_mean_power(power + 1.0 - photon_index, *below),
        above + log_mean_power(power + 1.0 - photon_index_high, *beyond),
    )
    return log_total((below[1], beyond[1]), means)


def cutoff_power_law(x, energy, photon_index, rate):
    """Ln of E^-photon_index exp(-rate E), energy = exp(x)."""
    return -photon_index * x - rate * energy


def cutoff_power_law_integral(middle, width, power, photon_index, rate):
    """Ln of the integral, by quadrature."""
    slope, rate = jnp.expand_dims(power + 1.0 - photon_index, -1), jnp.expand_dims(rate, -1)
    return jnp.log(width) + log_mean(lambda x: slope * x - rate * jnp.exp(x), middle, width)


def _band_parts(alpha, beta, e_peak):
    """Rate of the cut-off, ln of the break, and ln of the high-energy part over E^beta; whether it is in the domain."""
    inside = (alpha >= beta) & (alpha >= -2.0) & (e_peak > 0.0)
    curved, broken = alpha > -2.0, alpha > beta
    rate = (2.0 + alpha) / e_peak
    drop = jnp.where(broken, alpha - beta, 1.0)
    place = jnp.log(drop) + jnp.log(e_peak) - jnp.log(jnp.where(curved, 2.0 + alpha, 1.0))
    # alpha = -2 has no cut-off, alpha = beta has nothing below the break.
    log_break = jnp.where(broken, jnp.where(curved, place, _FAR), -_FAR)
    return rate, log_break, jnp.where(broken, drop * place - drop, 0.0), inside


def band(x, energy, alpha, beta, e_peak):
    """Ln of the function of Band et al. 1993: E^alpha exp(-(2 + alpha) E / e_peak), above its break E^beta."""
    rate, log_break, offset, inside = _band_parts(alpha, beta, e_peak)
    return jnp.where(inside, jnp.where(x < log_break, alpha * x - rate * energy, beta * x + offset), jnp.nan)


def band_integral(middle, width, power, alpha, beta, e_peak):
    """Ln of the integral: by quadrature below the break, closed above."""
    rate, log_break, offset, inside = _band_parts(alpha, beta, e_peak)
    below, beyond = _cut_at(log_break, middle, width)
    slope, fall = jnp.expand_dims(power + 1.0 + alpha, -1), jnp.expand_dims(rate, -1)
    means = (
        log_mean(lambda x: slope * x - fall * jnp.exp(x), *below),
        offset + log_mean_power(power + 1.0 + beta, *beyond),
    )
    return jnp.where(inside, log_total((below[1], beyond[1]), means), jnp.nan)


def black_body(x, energy, kT):
    """Ln of E^2 / (exp(E / kT) - 1), from E kT far below kT to exp(-E / kT) far above."""
    y = energy / kT
    return 2.0 * x - y - jnp.log(-jnp.expm1(-y))


def black_body_integral(middle, width, power, kT):
    """Ln of the integral, by quadrature."""
    kT = jnp.expand_dims(kT, -1)
    return jnp.log(width) + log_mean(lambda x: (power + 1.0) * x + black_body(x, jnp.exp(x), kT), middle, width)


def gaussian_line(energy, centre, sigma):
    """Ln of a normal density in energy."""
    return -0.5 * ((energy - centre) / sigma) ** 2 - jnp.log(sigma) - _HALF_LOG_2PI


def gaussian_line_integral(middle, width, power, centre, sigma):
    """Ln of the integral: of the line's share in the band, and of its mean energy there; in both tails too."""
    low = (jnp.exp(middle - 0.5 * width) - centre) / sigma
    high = low + 2.0 * jnp.exp(middle) * jnp.sinh(0.5 * width) / sigma
    # The half of the normal distribution that has the smaller tail: 1 - 1e-20 is 1.
    beyond = low > 0.0
    upper, lower = jnp.where(beyond, -low, high), jnp.where(beyond, -high, low)
    log_upper = log_ndtr(upper)
    share = log_upper + jnp.log(-jnp.expm1(log_ndtr(lower) - log_upper))
    if not power:
        return share
    ends = (jnp.exp(-0.5 * end**2 - _HALF_LOG_2PI - share) for end in (low, high))
    return share + jnp.log(centre + sigma * (next(ends) - next(ends)))
