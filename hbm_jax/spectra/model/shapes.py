"""Logarithms of spectral shapes and of their integrals over bands, as pure functions with finite gradients.

Throughout, x is the natural logarithm of energy over the pivot energy, and a shape is ln f(x). Integrals are of
energy^power f over energy in units of the pivot: the integral of exp((power + 1) x) f over a band in x, with ``power``
0 or 1. A band is given by its middle and width in x, because the difference of two limits in single precision is
inaccurate for a narrow bin. Arguments broadcast and may have any floating type. Results are NaN outside the domain.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc, log_ndtr
from jax.typing import ArrayLike

# Gauss-Legendre nodes over a whole band. Largest errors for cut-off energies and temperatures down to 0.03 times the
# lower limit: 2e-13 for bands of four decades, 3e-11 for five; 48 nodes would give 2e-10 and 6e-8.
NUM_NODES = 64
_SERIES = 0.5  # below, sinh(y)/y is summed as a series: the derivative of the quotient loses a factor 1/y in accuracy
_TERMS = 8  # terms of the series: 0.5^16 / 17! is 4e-20
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_WINDOW = 2048  # edges of the bins in which a line is evaluated, if there are many
MANY_EDGES = 2 * _WINDOW  # edges of bins above which a line is evaluated in a window
_NEGLIGIBLE = 38.6  # standard deviations beyond which normal densities and probabilities are 0 in double precision
# Width of a bin in standard deviations below which a density is integrated by its Taylor series: to 2e-9 within six
# standard deviations, and to 1e-16 of the line in every bin.
_FINE = 0.05
_FAR = 1e3  # in ln E: outside every band


@functools.cache
def _gauss_legendre(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of Gauss-Legendre quadrature on (-1, 1)."""
    return np.polynomial.legendre.leggauss(num)


def log_sinhc(y: jax.Array) -> jax.Array:
    """Return ln(sinh(y) / y), which is even and 0 at y = 0.

    It does not overflow; value and derivatives are exact to rounding.
    """
    small = jnp.abs(y) < _SERIES
    square = jnp.where(small, y, 0.0) ** 2
    series = jnp.ones_like(y)
    for k in range(_TERMS, 0, -1):
        series = 1.0 + series * square / (2.0 * k * (2.0 * k + 1.0))
    magnitude = jnp.abs(jnp.where(small, 1.0, y))
    return jnp.where(small, jnp.log(series), magnitude + jnp.log(-jnp.expm1(-2.0 * magnitude) / (2.0 * magnitude)))


def log_mean_power(slope: jax.Array, middle: ArrayLike, width: ArrayLike) -> jax.Array:
    """Return the logarithm of the mean of exp(slope x) over a band, for any slope including 0.

    The textbook form (x1^s - x0^s) / s is 0/0 at s = 0, and in single precision wrong by 2 % at s = 1e-6.
    """
    return slope * middle + log_sinhc(0.5 * slope * width)


def log_mean(shape: Callable[[jax.Array], jax.Array], middle: ArrayLike, width: ArrayLike) -> jax.Array:
    """Return the logarithm of the mean of exp(shape(x)) over a band, by quadrature with `NUM_NODES` nodes."""
    nodes, weights = _gauss_legendre(NUM_NODES)
    middle, half = jnp.expand_dims(middle, -1), 0.5 * jnp.expand_dims(width, -1)
    values = shape(middle + half * nodes.astype(half.dtype))
    largest = jax.lax.stop_gradient(jnp.max(values, axis=-1, keepdims=True))
    return largest[..., 0] + jnp.log(jnp.sum(jnp.exp(values - largest) * (0.5 * weights).astype(values.dtype), axis=-1))


def _split_at(log_energy: jax.Array, middle: ArrayLike, width: ArrayLike):
    """Return (middle, width) of the parts of a band below and above an energy; a part may have zero width."""
    half = 0.5 * width
    cut = jnp.clip(log_energy - middle, -half, half)
    return (middle + 0.5 * (cut - half), half + cut), (middle + 0.5 * (cut + half), half - cut)


def log_total(lengths: Sequence[jax.Array], log_means: Sequence[jax.Array]) -> jax.Array:
    """Return the logarithm of the sum of lengths times exp(log_means); a length may be 0."""
    of_nonempty = [jnp.where(length > 0, mean, -jnp.inf) for length, mean in zip(lengths, log_means, strict=True)]
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, of_nonempty))
    # The mean of a part of zero length is arbitrary. The limit of 50 above the largest prevents an overflow; it is not
    # reached where the derivative of the length is non-zero.
    terms = (
        length * jnp.exp(jnp.minimum(mean - largest, 50.0)) for length, mean in zip(lengths, log_means, strict=True)
    )
    return largest + jnp.log(sum(terms))


def log_broken_power_law_integral(middle, width, power, photon_index, photon_index_high, log_break):
    """Return ln of the integral of a broken power law; its derivative with respect to the break is continuous."""
    below, above = _split_at(log_break, middle, width)
    offset = (photon_index_high - photon_index) * log_break
    means = (
        log_mean_power(power + 1.0 - photon_index, *below),
        offset + log_mean_power(power + 1.0 - photon_index_high, *above),
    )
    return log_total((below[1], above[1]), means)


def _band_parts(alpha, beta, e_peak):
    """Return 1 / E_0, ln of the break energy, the offset ln(f / E^beta) above it, and the mask of valid parameters."""
    inside = (alpha >= beta) & (alpha >= -2.0) & (e_peak > 0.0)
    has_cutoff, has_break = alpha > -2.0, alpha > beta
    rate = (2.0 + alpha) / e_peak
    index_difference = jnp.where(has_break, alpha - beta, 1.0)
    finite_log_break = jnp.log(index_difference) + jnp.log(e_peak) - jnp.log(jnp.where(has_cutoff, 2.0 + alpha, 1.0))
    # The break is at infinity for alpha = -2, and at 0 for alpha = beta.
    log_break = jnp.where(has_break, jnp.where(has_cutoff, finite_log_break, _FAR), -_FAR)
    return rate, log_break, jnp.where(has_break, index_difference * finite_log_break - index_difference, 0.0), inside


def log_band(x, energy, alpha, beta, e_peak):
    """Return ln of the Band function, E^alpha exp(-(2 + alpha) E / e_peak) below the break and E^beta above it."""
    rate, log_break, offset, inside = _band_parts(alpha, beta, e_peak)
    return jnp.where(inside, jnp.where(x < log_break, alpha * x - rate * energy, beta * x + offset), jnp.nan)


def log_band_integral(middle, width, power, alpha, beta, e_peak):
    """Return ln of the integral of the Band function: by quadrature below the break, in closed form above."""
    rate, log_break, offset, inside = _band_parts(alpha, beta, e_peak)
    below, above = _split_at(log_break, middle, width)
    slope, rate_column = jnp.expand_dims(power + 1.0 + alpha, -1), jnp.expand_dims(rate, -1)
    means = (
        log_mean(lambda x: slope * x - rate_column * jnp.exp(x), *below),
        offset + log_mean_power(power + 1.0 + beta, *above),
    )
    return jnp.where(inside, log_total((below[1], above[1]), means), jnp.nan)


def log_black_body(x, energy, kT):
    """Return ln of E^2 / (exp(E / kT) - 1), accurate from E far below kT to E far above."""
    y = energy / kT
    return 2.0 * x - y - jnp.log(-jnp.expm1(-y))


def _resolved(centre, sigma):
    """Return the width of a line, or the rounding error of its energy if that is larger; NaN for a negative width."""
    smallest = jnp.finfo(jnp.result_type(float, sigma)).eps * jax.lax.stop_gradient(centre)
    return jnp.where(sigma > smallest, sigma, jnp.where(sigma >= 0.0, smallest, jnp.nan))


def log_gaussian_line(energy, centre, sigma):
    """Return ln of a normal density in energy."""
    sigma = _resolved(centre, sigma)
    return -0.5 * ((energy - centre) / sigma) ** 2 - jnp.log(sigma) - _HALF_LOG_2PI


def log_gaussian_line_integral(middle, width, power, centre, sigma):
    """Return ln of the integral of a Gaussian line, accurate in both tails.

    For power 0 it is the fraction of the line in the band; for power 1, that fraction times the mean energy there.
    """
    sigma = _resolved(centre, sigma)
    low = (jnp.exp(middle - 0.5 * width) - centre) / sigma
    high = low + 2.0 * jnp.exp(middle) * jnp.sinh(0.5 * width) / sigma
    # Evaluate in the lower tail by symmetry: a difference from 1 loses probabilities below the rounding error.
    above_centre = low > 0.0
    upper, lower = jnp.where(above_centre, -low, high), jnp.where(above_centre, -high, low)
    log_upper = log_ndtr(upper)
    log_fraction = log_upper + jnp.log(-jnp.expm1(log_ndtr(lower) - log_upper))
    if not power:
        return log_fraction
    densities = (jnp.exp(-0.5 * limit**2 - _HALF_LOG_2PI - log_fraction) for limit in (low, high))
    return log_fraction + jnp.log(centre + sigma * (next(densities) - next(densities)))


def gaussian_line_fractions(edges, centre, sigma):
    """Return the fractions of a line in bins between edges (..., K + 1), for any width including 0.

    Neighbouring bins share the probability beyond their edge, so that the fractions add up to rounding. One line in
    many bins is evaluated in a window of bins about its centre, unless it extends further.
    """
    sigma = _resolved(centre, sigma)
    num = edges.shape[-1]
    if num < MANY_EDGES or jnp.size(edges) != num or jnp.size(centre) != 1 or jnp.size(sigma) != 1:
        return _fractions((edges - centre) / sigma)
    shape = jnp.broadcast_shapes(edges.shape, jnp.shape(centre), jnp.shape(sigma))
    fractions = _fractions_in_window(edges.reshape(-1), jnp.reshape(centre, ()), jnp.reshape(sigma, ()))
    return fractions.reshape(*shape[:-1], num - 1)


def _fractions_in_window(edges, centre, sigma):
    """Return the fractions of a line in bins between edges (K + 1,), for centre and sigma ()."""
    start, window, contains_line = _window(edges, centre, sigma)

    def in_window():
        fractions = _fractions((window - centre) / sigma)
        return jax.lax.dynamic_update_slice(jnp.zeros(len(edges) - 1, fractions.dtype), fractions, (start,))

    step = jnp.max(jnp.diff(edges))
    return jax.lax.cond(contains_line, in_window, lambda: _fractions_in_all_bins(edges, step, centre, sigma))


def _fractions_in_all_bins(edges, step, centre, sigma):
    """Return the fractions of a line in bins between edges (K + 1,) whose largest width is step, for scalars."""
    return jax.lax.cond(step < _FINE * sigma, _fractions_in_fine_bins, _fractions, (edges - centre) / sigma)


def _window(edges, centre, sigma):
    """Return the index of the first edge of the window of a line, its edges, and whether the line ends within it."""
    last = len(edges) - _WINDOW
    start = jnp.clip(jnp.searchsorted(edges, jax.lax.stop_gradient(centre)) - _WINDOW // 2, 0, last)
    window = jax.lax.dynamic_slice(edges, (start,), (_WINDOW,))
    starts_below = (start == 0) | (centre - window[0] > _NEGLIGIBLE * sigma)
    ends_above = (start == last) | (window[-1] - centre > _NEGLIGIBLE * sigma)
    return start, window, starts_below & ends_above


def sum_of_gaussian_lines(edges, photons, centre, sigma):
    """Return the photons in at least `MANY_EDGES` bins between edges (K + 1,) of L lines, each argument (L,).

    Lines are evaluated together in their windows, with the fractions of `gaussian_line_fractions`. Those that extend
    further are evaluated in all bins, one by one.
    """
    sigma = _resolved(centre, sigma)
    start, windows, contain_line = jax.vmap(_window, (None, 0, 0))(edges, centre, sigma)
    fractions = _fractions((windows - centre[:, None]) / sigma[:, None])
    in_windows = jnp.where(contain_line, photons, 0.0)[:, None] * fractions
    dimensions = jax.lax.ScatterDimensionNumbers((1,), (), (0,))
    total = jax.lax.scatter_add(jnp.zeros(len(edges) - 1, edges.dtype), start[:, None], in_windows, dimensions)

    # Without the checkpoint, the gradient would store arrays of all bins for each line, also for lines in windows.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def in_all_bins(edges, step, contained, photons, centre, sigma):
        def evaluated():
            return photons * _fractions_in_all_bins(edges, step, centre, sigma)

        return jax.lax.cond(contained, lambda: jnp.zeros(len(edges) - 1, edges.dtype), evaluated)

    def with_wide_lines(total, edges, *lines):
        step = jnp.max(jnp.diff(edges))
        return jax.lax.scan(lambda total, line: (total + in_all_bins(edges, step, *line), None), total, lines)[0]

    arguments = total, edges, contain_line, photons, centre, sigma
    return jax.lax.cond(jnp.all(contain_line), lambda total, *_: total, with_wide_lines, *arguments)


@jax.custom_jvp
def _fractions(u):
    """Return the probabilities of a standard normal variable between limits, accurate in both tails."""
    tail = 0.5 * erfc(jnp.where(u > 0.0, u, -u) * math.sqrt(0.5))
    low, high, tail_low, tail_high = u[..., :-1], u[..., 1:], tail[..., :-1], tail[..., 1:]
    inner = jnp.where(high <= 0.0, tail_high - tail_low, 1.0 - tail_low - tail_high)
    return jnp.where(low > 0.0, tail_low - tail_high, inner)


@jax.custom_jvp
def _fractions_in_fine_bins(u):
    """Return the probabilities of a standard normal variable between limits that are close to each other.

    The density is integrated by its Taylor series about the middle of each bin, to the fourth order of the width. An
    exponential for each bin takes a fraction of the time of the error functions at its edges.
    """
    width = jnp.diff(u)
    u2, h2 = (0.5 * (u[1:] + u[:-1])) ** 2, width**2
    fourth = (u2 - 6.0) * u2 + 3.0
    return jnp.exp(-0.5 * u2 - _HALF_LOG_2PI) * width * (1.0 + h2 * ((u2 - 1.0) / 24.0 + h2 * fourth / 1920.0))


def _with_change(fractions, primals, tangents):
    """Return the probabilities and their changes with the limits, which are normal densities.

    Differentiated operation by operation, ten lines in 60 000 bins take about twice as long.
    """
    (u,), (change,) = primals, tangents
    return fractions(u), jnp.diff(jnp.exp(-0.5 * u**2 - _HALF_LOG_2PI) * change)


for _function in (_fractions, _fractions_in_fine_bins):
    _function.defjvp(functools.partial(_with_change, _function))


def gaussian_line_moments(edges, centre, sigma):
    """Return the fractions of a line in bins, and the means of t, t^2 and t^3 over its photons in each bin.

    t runs from -1 to 1 in a bin. Where there are no photons, the means are those of a uniform distribution.
    """
    sigma = _resolved(centre, sigma)
    low, high = edges[..., :-1], edges[..., 1:]
    half = jnp.where(high > low, 0.5 * (high - low), 1.0)
    u = (edges - centre) / sigma
    fraction = _fractions(u)
    # Second derivatives have the third power of the fraction in a denominator, which must not underflow.
    has_photons = fraction > jnp.finfo(fraction.dtype).tiny ** 0.3
    # Moments of the standardised energy u, from integration by parts; t = shift + scale u.
    density = jnp.exp(-0.5 * u**2 - _HALF_LOG_2PI)
    differences = (-jnp.diff(u**power * density) / jnp.where(has_photons, fraction, 1.0) for power in range(3))
    first = next(differences)
    second = 1.0 + next(differences)
    third = 2.0 * first + next(differences)
    shift, scale = (centre - 0.5 * (low + high)) / half, sigma / half
    means = (
        shift + scale * first,
        shift**2 + scale * (2.0 * shift * first + scale * second),
        shift**3 + scale * (3.0 * shift**2 * first + scale * (3.0 * shift * second + scale * third)),
    )
    # Clipped, because rounding errors may be large where the line is much wider than the bin.
    return fraction, [
        jnp.where(has_photons, jnp.clip(mean, -1.0, 1.0), uniform)
        for mean, uniform in zip(means, (0.0, 1.0 / 3.0, 0.0), strict=True)
    ]
