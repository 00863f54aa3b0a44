"""The marginal statistic: Poisson counts whose background is integrated over what its own counts leave open.

Given the counts of the background region, the background b of a channel has a Gamma distribution of shape a and rate r
(`background_posterior`). The S counts of the source region are then of source or of background,

    P(S | mu) = sum over k of Poisson(S - k | mu) NegativeBinomial(k | a, r),

that is mu^S exp(-mu) times a polynomial in 1 / mu, whose coefficients are all positive and are worked out once
(`background_series`). For channels with hundreds of counts of background there is a quadrature instead.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from scipy.special import gammaln
from scipy.special import logsumexp as logsumexp_of
from scipy.stats import nbinom

from hbm_jax.spectra.statistics.kernels import floating

SHAPES = np.geomspace(0.3, 100.0, 30)  # among which `prior_shape` chooses
MIN_DEGREE = 24  # so also for data that are simulated from spectra with next to no counts
MAX_DEGREE = 400  # coefficients of more powers than that leave the range of numbers
NEGLIGIBLE = 1e-9  # share of P(S | mu) that higher powers may have wherever ...
NEAR = 100.0  # ... the deviance is within this of the best one's
BLOCK = 8  # powers of one round of Horner's rule; the rounds are independent of each other


class BackgroundSeries(NamedTuple):
    """P(S | mu) as a polynomial in pivot / mu, of degree D = min(S, K), for G channels.

    Attributes
    ----------
    down, up : (..., K + 1 or more, G)
        Coefficients of (pivot / mu)^k, for mu above the pivot, and of (mu / pivot)^k, below: the same in reverse.
    pivot : (..., G)
        Expected counts of the source at which the first and the last term are equal.
    counts, left : (..., G)
        S, and S - D.
    log_factor, log_below : (..., G)
        Logarithms of what the sum is multiplied by, above and below the pivot.
    """

    down: Any
    up: Any
    pivot: Any
    counts: Any
    left: Any
    log_factor: Any
    log_below: Any


class BackgroundQuadrature(NamedTuple):
    """Nodes and weights of a rule for the integral over b, both (..., G, Q); counts S, (..., G)."""

    nodes: Any
    log_weights: Any
    counts: Any


def marginal_background(expected: ArrayLike, background: BackgroundSeries | BackgroundQuadrature) -> jax.Array:
    """Deviance of Poisson counts with the background integrated over what it may be.

    Parameters
    ----------
    expected : (..., G)
        Expected counts of the source alone, 0 or more; NaN where less.
    background : BackgroundSeries or BackgroundQuadrature
        Of `background_integral`.

    Returns
    -------
    (..., G)
        Twice ln P(S | S) less the logarithm of the integral of P(S | mu + b) p(b | B) over b. It is never 0: the best
        a channel with background can do is to know that background no better than B tells.

    Notes
    -----
    The series costs two products for each power and two logarithms, and its gradient two products more; the
    quadrature a logarithm and an exponential for each node.
    """
    expected = floating(expected)
    background = jax.tree.map(lambda x: jnp.asarray(x, expected.dtype), background)
    counts = background.counts
    # Relative to S^S, so that no large numbers cancel.
    if isinstance(background, BackgroundSeries):
        log_integral = _log_series(jnp.where(expected < 0, 0.0, expected), background)
    else:
        per_count = (expected[..., None] + background.nodes) / jnp.maximum(counts, 1.0)[..., None]
        log_integral = logsumexp(background.log_weights + counts[..., None] * jnp.log(per_count), axis=-1)
    return jnp.where(expected >= 0, 2.0 * (expected - counts - log_integral), jnp.nan)


@jax.custom_jvp
def _log_series(mu, series: BackgroundSeries):
    """Logarithm of the integral of ((mu + b) / S)^S exp(-b) p(b) over b."""
    return _series_and_slope(mu, series)[0]


@_log_series.defjvp
def _log_series_jvp(primals, tangents):
    value, slope = _series_and_slope(*primals)
    return value, slope * tangents[0]


def _series_and_slope(mu, series: BackgroundSeries):
    down, up, pivot, counts, left, log_factor, log_below = series
    above = mu > pivot
    larger = jnp.maximum(mu, pivot)
    ratio = jnp.minimum(mu, pivot) / larger
    value, slope = _polynomial(down, up, above, ratio)
    power, log_slope = jnp.where(above, counts, left), slope / value
    mu = jnp.where(power > 0, jnp.maximum(mu, jnp.finfo(mu.dtype).tiny), 1.0)
    log_power = jnp.where(power > 0, power * jnp.log(mu / jnp.maximum(counts, 1.0)), 0.0)
    log_value = log_power + jnp.where(above, log_factor, log_below) + jnp.log(value)
    return log_value, power / mu + jnp.where(above, -ratio * log_slope, log_slope) / larger


def _polynomial(down, up, above, ratio):
    """Value and slope of either polynomial, by Horner's rule for `BLOCK` powers at a time, all blocks at once."""
    down, up = (x.reshape(*x.shape[:-2], -1, BLOCK, x.shape[-1]) for x in (down, up))
    one, of_down = ratio[..., None, :], above[..., None, :]
    values = slopes = jnp.zeros((), ratio.dtype)
    for k in reversed(range(BLOCK)):
        slopes = slopes * one + values
        values = values * one + jnp.where(of_down, down[..., k, :], up[..., k, :])
    before = ratio ** (BLOCK - 1)
    step = before * ratio
    value, slope = values[..., -1, :], slopes[..., -1, :]
    for j in reversed(range(values.shape[-2] - 1)):
        slope = slopes[..., j, :] + BLOCK * before * value + step * slope
        value = values[..., j, :] + step * value
    return value, slope


def background_integral(
    counts: ArrayLike, shape: ArrayLike, rate: ArrayLike
) -> BackgroundSeries | BackgroundQuadrature:
    """Work out what `marginal_background` needs of the data.

    Parameters
    ----------
    counts : (..., G)
        Counts of the source region, whole numbers.
    shape, rate : (..., G)
        Gamma distribution of the background in the source region, see `background_posterior`.

    Returns
    -------
    BackgroundSeries
        With as many powers as there are counts, or as make up all but 1e-9 of P(S | mu) at every mu at which the
        deviance is within 100 of the best one's. At lower mu than that P comes out too small.
    BackgroundQuadrature
        Where that were more than 400 powers. Legendre's rule in sqrt(b) has some 3.5 sqrt(S) + 25 nodes and holds for
        every mu.

    Notes
    -----
    Log likelihoods are within 1e-7 of the truth near the best fit, up to 10^4 counts
    (``tests/spectra/test_marginal.py``).
    """
    counts, shape, rate = np.broadcast_arrays(*(np.asarray(x, float) for x in (counts, shape, rate)))
    degree = _degree(*np.unique(np.stack([x.ravel() for x in (counts, shape, rate)]), axis=1))
    if degree is not None:
        return background_series(counts, shape, rate, degree)
    # There are far fewer different shapes than channels.
    shapes, place = np.unique(shape, return_inverse=True)
    most = 2.0 * np.ceil(counts + 3.0 * np.sqrt(counts)).max(initial=0.0) // 2.0
    x, log_weights = _legendre(most, shapes)
    place = place.reshape(shape.shape)
    outside = shape * (np.log(rate) - np.log1p(rate))
    return BackgroundQuadrature(x[place] / (1.0 + rate)[..., None], log_weights[place] + outside[..., None], counts)


def background_series(counts: Any, shape: Any, rate: Any, degree: int) -> BackgroundSeries:
    """Coefficients of the series, in NumPy or, for counts that are traced, in JAX.

    Parameters
    ----------
    counts, shape, rate : (..., G)
        As in `background_integral`.
    degree : int
        Largest power K, at least 1; rounded up so that whole blocks are filled.
    """
    xp = jnp if isinstance(counts, jax.Array) else np
    K = -(-(degree + 1) // BLOCK) * BLOCK - 1
    D = xp.minimum(counts, float(K))
    steps = np.arange(float(K))[:, None]
    S, a, r, of = (x[..., None, :] for x in (counts, shape, rate, D))

    def log_ratios(k):
        """Logarithm of the coefficient of mu^-(k + 1) relative to that of mu^-k."""
        inside = xp.maximum(S - k, 1.0) * (a + xp.maximum(k, 0.0))
        return xp.log(inside / (xp.maximum(k + 1.0, 1.0) * (1.0 + r)))

    log_pivot = xp.sum(xp.where(steps < of, log_ratios(steps), 0.0), axis=-2) / xp.maximum(D, 1.0)

    def coefficients(log_steps):
        log = xp.cumsum(xp.where(steps < of, log_steps, 0.0), axis=-2)
        first = xp.ones_like(log[..., :1, :])
        return xp.concatenate([first, xp.where(steps < of, xp.exp(log), 0.0)], axis=-2)

    down = coefficients(log_ratios(steps) - log_pivot[..., None, :])
    up = coefficients(log_pivot[..., None, :] - log_ratios(of - 1.0 - steps))
    log_factor = shape * (xp.log(rate) - xp.log1p(rate))
    log_below = log_factor + D * (log_pivot - xp.log(xp.maximum(counts, 1.0)))
    return BackgroundSeries(down, up, xp.exp(log_pivot), counts, counts - D, log_factor, log_below)


def _degree(counts, shape, rate) -> int | None:
    """Powers that matter near the best fit of any channel, all (n,); None if too many."""
    trial = np.concatenate([np.linspace(0.0, 1.0, 9) ** 2, np.linspace(1.2, 4.0, 8)])[:, None]
    degree = float(min(counts.max(initial=1.0), MIN_DEGREE))
    several = np.flatnonzero(counts > degree)
    for i in several[np.argsort(-counts[several])]:
        S, a, r = counts[i], shape[i], rate[i]
        if degree >= S:
            break
        k = np.arange(min(S, 2.0 * MAX_DEGREE) + 1.0)
        log = gammaln(S + 1.0) - gammaln(S - k + 1.0) - gammaln(k + 1.0) + gammaln(a + k) - gammaln(a) - k * np.log1p(r)
        terms = log + np.where(k < S, (S - k) * np.log(np.maximum(S * trial, 1e-300)), 0.0)
        log_p = logsumexp_of(terms, axis=1) - S * trial[:, 0]
        near = 2.0 * (log_p.max() - log_p) < NEAR
        near[:-1] |= near[1:]  # the last one that is not, too
        beyond = np.cumsum(np.exp(terms[near] - terms[near].max(axis=1, keepdims=True))[:, ::-1], axis=1)[:, ::-1]
        needed = (beyond > NEGLIGIBLE * beyond[:, :1]).sum(axis=1).max() - 1.0
        degree = max(degree, needed)
        if degree > MAX_DEGREE:
            return None
    return int(degree)


def neighbouring_mean(background: ArrayLike, enough: float = 25.0) -> np.ndarray:
    """Mean background counts of the channels around each one, as many as hold enough counts; positive.

    Parameters
    ----------
    background : (G,)
        Counts of single channels, in the order of energy. For groups, which differ in width, sum the means of their
        channels.
    enough : float
        Counts that a neighbourhood is to hold; all channels where there are fewer.

    Returns
    -------
    (G,)
        One count spread over all channels where there are none at all.
    """
    background = np.asarray(background, float)
    num = len(background)
    total = np.append(0.0, np.cumsum(background))
    place = np.arange(num)
    mean = np.full(num, max(total[-1], 1.0) / max(num, 1))
    waiting = np.ones(num, bool)
    for half in range(num):
        low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, num)
        held = total[high] - total[low]
        full = waiting & (held >= enough)
        mean[full] = (held / (high - low))[full]
        waiting &= ~full
        if not waiting.any():
            break
    return mean


def background_posterior(
    background: ArrayLike, ratio: ArrayLike, *, prior_mean: ArrayLike | None = None, shape: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gamma posterior of the background of each channel in the source region, of B counts in the background region.

    Parameters
    ----------
    background : (G,)
        Counts B.
    ratio : (G,) or number
        As in `profiled_background`.
    prior_mean : (G,) or number, optional
        Mean of the Gamma prior, in counts of the background region. By default `neighbouring_mean`.
    shape : number, optional
        Its shape, mean squared over variance: how closely a channel is like its neighbours. By default `prior_shape`.

    Returns
    -------
    shape, rate : (G,)
        B plus that of the prior, and ratio (1 + shape / prior_mean).

    Notes
    -----
    The mean of this posterior, averaged over B, is the true background where the prior has the right mean. A flat or
    Jeffreys prior adds 1 or 1/2 count to each channel instead, and the best background (W) takes some away. Neighbours
    lend a channel what they know, as if each were told anew: the total of a smooth background is known a little less
    well than this says. In 50 channels with 0.3 counts of source and 0.5 of background each, the error of the source is
    8 per cent too small at a ratio of 5, and 19 per cent at a ratio of 1.
    """
    background = np.asarray(background, float)
    mean = np.asarray(neighbouring_mean(background) if prior_mean is None else prior_mean, float)
    shape = prior_shape(background, mean) if shape is None else shape
    return background + shape, np.broadcast_to(ratio * (1.0 + shape / mean), background.shape)


def prior_shape(background: ArrayLike, prior_mean: ArrayLike) -> float:
    """How closely the background of channels is like its means: the most likely shape of a Gamma distribution.

    Parameters
    ----------
    background, prior_mean : (G,)
        Counts B, and their means by the prior.

    Returns
    -------
    float
        From 0.3, for lines that stand out, to 100. Given B, counts in excess of Poisson's scatter make it small. Were
        it small for a background that is smooth, every channel would have to learn its own from its few counts, and a
        source of 0.3 counts per channel over 0.5 would come out 20 per cent too bright.
    """
    background, mean = np.asarray(background, float)[:, None], np.asarray(prior_mean, float)[:, None]
    return float(SHAPES[np.argmax(nbinom.logpmf(background, SHAPES, SHAPES / (SHAPES + mean)).sum(axis=0))])


def _legendre(most: float, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rule for the same density: in v = sqrt(x) each power of x up to `most` is a bump of standard deviation 1/2."""
    margin = 3.5
    low, high = np.maximum(np.sqrt(shape) - margin, 0.0), np.sqrt(most + shape) + margin
    # Nodes are pi / 2 times as far from each other in the middle as on average; 0.45 there is enough for 1e-10.
    num = math.ceil(0.5 * math.pi * np.max(high - low) / 0.45) + 4
    t, w = np.polynomial.legendre.leggauss(num)
    half = 0.5 * (high - low)[:, None]
    v = low[:, None] + half * (1.0 + t)
    power = 2.0 * shape[:, None] - 1.0
    return v * v, np.log(2.0 * half * w) + power * np.log(v) - v * v - gammaln(shape)[:, None]
