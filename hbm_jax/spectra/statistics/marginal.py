"""Marginal likelihood of Poisson counts, integrated over the background.

Given the counts of the background region, the background b of a channel has a Gamma distribution of shape a and rate r
(`background_posterior`). The S counts of the source region are the sum of source and background counts,

    P(S | mu) = sum over k of Poisson(S - k | mu) NegativeBinomial(k | a, r),

which is mu^S exp(-mu) times a polynomial in 1 / mu. Its coefficients are positive and are precomputed
(`background_series`). Channels with hundreds of background counts use a quadrature instead.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from scipy.special import gammaln, xlogy
from scipy.special import logsumexp as logsumexp_of

from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.statistics.kernels import floating
from hbm_jax.xla_options import QUICK

SHAPES = np.geomspace(0.3, 100.0, 30)  # candidates of `prior_shape`
MIN_DEGREE = 24  # also sufficient for data simulated from spectra with few counts
MAX_DEGREE = 400  # coefficients of higher powers overflow
# The powers that are omitted contribute at most a fraction NEGLIGIBLE of P(S | mu) at every mu at which the deviance
# exceeds its minimum by less than NEAR.
NEGLIGIBLE = 1e-9
NEAR = 100.0
MARGIN = 7.0  # standard deviations by which simulated counts may exceed the mean background
BLOCK = 8  # powers evaluated together by Horner's rule; the blocks are independent of each other


class BackgroundSeries(NamedTuple):
    """P(S | mu) as a polynomial in pivot / mu of degree D = min(S, K), for G channels.

    Attributes
    ----------
    down, up : (..., K + 1 or more, G)
        Coefficients of (pivot / mu)^k, used for mu above the pivot, and of (mu / pivot)^k, used below it. Apart from a
        factor, ``up`` is ``down`` in reverse order.
    pivot : (..., G)
        Expected counts of the source at which the first and the last term are equal.
    counts, lowest_power : (..., G)
        S, and S - D.
    log_factor, log_below : (..., G)
        Logarithms of the factors of the polynomials above and below the pivot.
    """

    down: Any
    up: Any
    pivot: Any
    counts: Any
    lowest_power: Any
    log_factor: Any
    log_below: Any


class BackgroundQuadrature(NamedTuple):
    """Quadrature nodes and log weights of the integral over b, (..., G, Q) each; counts S, (..., G)."""

    nodes: Any
    log_weights: Any
    counts: Any


def marginal_background(expected: ArrayLike, background: BackgroundSeries | BackgroundQuadrature) -> jax.Array:
    """Return the deviance of Poisson counts, integrated over the posterior of the background, (..., G).

    It is 2 ln P(S | S) - 2 ln of the integral of P(S | mu + b) p(b | B) over b, which is positive even at the best fit,
    because the background is uncertain there too. The series takes two multiplications for each power and two
    logarithms; its gradient takes two more multiplications for each power. The quadrature takes one logarithm and one
    exponential for each node.

    Parameters
    ----------
    expected : (..., G)
        Expected counts mu of the source without background, 0 or more; negative values give NaN.
    background : BackgroundSeries or BackgroundQuadrature
        From `background_integral`.
    """
    expected = floating(expected)
    background = jax.tree.map(lambda x: jnp.asarray(x, expected.dtype), background)
    counts = background.counts
    # Relative to S^S, which avoids the cancellation of large numbers.
    if isinstance(background, BackgroundSeries):
        log_integral = _log_series(jnp.where(expected < 0, 0.0, expected), background)
    else:
        per_count = (expected[..., None] + background.nodes) / jnp.maximum(counts, 1.0)[..., None]
        log_integral = logsumexp(background.log_weights + counts[..., None] * jnp.log(per_count), axis=-1)
    return jnp.where(expected >= 0, 2.0 * (expected - counts - log_integral), jnp.nan)


@jax.custom_jvp
def _log_series(mu, series: BackgroundSeries):
    """Return the logarithm of the integral of ((mu + b) / S)^S exp(-b) p(b) over b."""
    log_integral, _ = _series_and_derivative(mu, series)
    return log_integral


@_log_series.defjvp
def _log_series_jvp(primals, tangents):
    """Differentiate with respect to mu only; the data are constant."""
    value, derivative = _series_and_derivative(*primals)
    return value, derivative * tangents[0]


def _series_and_derivative(mu, series: BackgroundSeries):
    """Return the logarithm of the series and its derivative with respect to mu."""
    down, up, pivot, counts, lowest_power, log_factor, log_below = series
    above = mu > pivot
    larger = jnp.maximum(mu, pivot)
    ratio = jnp.minimum(mu, pivot) / larger
    value, derivative = _polynomial(down, up, above, ratio)
    power = jnp.where(above, counts, lowest_power)  # P(S | mu) is mu^power exp(-mu) times the polynomial
    log_derivative = derivative / value
    mu = jnp.where(power > 0, jnp.maximum(mu, jnp.finfo(mu.dtype).tiny), 1.0)
    log_power = jnp.where(power > 0, power * jnp.log(mu / jnp.maximum(counts, 1.0)), 0.0)
    log_value = log_power + jnp.where(above, log_factor, log_below) + jnp.log(value)
    # The ratio x is pivot / mu above the pivot, where dx / dmu = -x / mu, and mu / pivot below, where it is 1 / pivot.
    return log_value, power / mu + jnp.where(above, -ratio * log_derivative, log_derivative) / larger


def _polynomial(down, up, above, ratio):
    """Return value and derivative, with respect to the ratio, of the polynomial of each channel.

    Its coefficients are ``down`` where ``above`` is True and ``up`` elsewhere, as in `BackgroundSeries`. Horner's rule
    first evaluates all blocks of `BLOCK` powers together, and then the polynomial of the blocks in ratio^BLOCK.
    """
    down, up = (c.reshape(*c.shape[:-2], -1, BLOCK, c.shape[-1]) for c in (down, up))
    x, is_above = ratio[..., None, :], above[..., None, :]
    block_values = block_derivatives = jnp.zeros((), ratio.dtype)
    for k in reversed(range(BLOCK)):
        block_derivatives = block_derivatives * x + block_values
        block_values = block_values * x + jnp.where(is_above, down[..., k, :], up[..., k, :])
    previous_power = ratio ** (BLOCK - 1)
    power = previous_power * ratio
    value, derivative = block_values[..., -1, :], block_derivatives[..., -1, :]
    for j in reversed(range(block_values.shape[-2] - 1)):
        derivative = block_derivatives[..., j, :] + BLOCK * previous_power * value + power * derivative
        value = block_values[..., j, :] + power * value
    return value, derivative


def background_integral(
    counts: ArrayLike, shape: ArrayLike, rate: ArrayLike
) -> BackgroundSeries | BackgroundQuadrature:
    """Precompute the integral over the background for `marginal_background`.

    Log likelihoods are accurate to 1e-7 near the best fit, up to 10^4 counts (``tests/spectra/test_marginal.py``).

    Parameters
    ----------
    counts : (..., G)
        Counts of the source region, integers.
    shape, rate : (..., G)
        Gamma distribution of the background in the source region, see `background_posterior`.

    Returns
    -------
    BackgroundSeries
        If up to 400 powers suffice: as many powers as counts, or as many as are needed for all but 1e-9 of P(S | mu) at
        every mu whose deviance is within 100 of its minimum. At lower mu, the truncated P is too small. There are at
        least as many as counts of the background alone, up to 7 standard deviations above their mean, so that the
        integral is accurate for simulated counts too.
    BackgroundQuadrature
        Otherwise: Gauss-Legendre quadrature in sqrt(b), with about 3.5 sqrt(S) + 25 nodes, accurate at every mu.
    """
    counts, shape, rate = np.broadcast_arrays(*(np.asarray(x, float) for x in (counts, shape, rate)))
    degree = _degree(*np.unique(np.stack([x.ravel() for x in (counts, shape, rate)]), axis=1))
    if degree is not None:
        return precomputed(lambda: jax.tree.map(np.asarray, _compiled_series(counts, shape, rate, degree)))
    # There are far fewer distinct shapes than channels.
    shapes, index = np.unique(shape, return_inverse=True)
    largest = np.maximum(counts, _largest_background(shape, rate))
    max_power = 2.0 * np.ceil(largest + 3.0 * np.sqrt(largest)).max(initial=0.0) // 2.0
    x, log_weights = _gamma_quadrature(max_power, shapes)
    index = index.reshape(shape.shape)
    log_factor = shape * (np.log(rate) - np.log1p(rate))
    return BackgroundQuadrature(x[index] / (1.0 + rate)[..., None], log_weights[index] + log_factor[..., None], counts)


def background_series(counts: Any, shape: Any, rate: Any, degree: int) -> BackgroundSeries:
    """Compute the coefficients of the polynomial in 1 / mu to which P(S | mu) is proportional.

    Counts, shape and rate are those of `background_integral`; the degree, at least 1, is rounded up to whole blocks.
    """
    K = -(-(degree + 1) // BLOCK) * BLOCK - 1  # largest power, one less than a multiple of the block size
    D = jnp.minimum(counts, float(K))  # degree of each channel
    steps = np.arange(float(K))[:, None]
    S, a, r, num_powers = (x[..., None, :] for x in (counts, shape, rate, D))

    def log_ratios(k):
        """Return the logarithm of the coefficient of mu^-(k + 1) relative to that of mu^-k."""
        numerator = jnp.maximum(S - k, 1.0) * (a + jnp.maximum(k, 0.0))
        return jnp.log(numerator / (jnp.maximum(k + 1.0, 1.0) * (1.0 + r)))

    log_pivot = jnp.sum(jnp.where(steps < num_powers, log_ratios(steps), 0.0), axis=-2) / jnp.maximum(D, 1.0)

    def coefficients(log_steps):
        """Return the coefficients of all powers, (..., K + 1, G), from the log ratios of neighbours; the first is 1."""
        log = jnp.cumsum(jnp.where(steps < num_powers, log_steps, 0.0), axis=-2)
        first = jnp.ones_like(log[..., :1, :])
        return jnp.concatenate([first, jnp.where(steps < num_powers, jnp.exp(log), 0.0)], axis=-2)

    down = coefficients(log_ratios(steps) - log_pivot[..., None, :])
    up = coefficients(log_pivot[..., None, :] - log_ratios(num_powers - 1.0 - steps))
    log_factor = shape * (jnp.log(rate) - jnp.log1p(rate))
    log_below = log_factor + D * (log_pivot - jnp.log(jnp.maximum(counts, 1.0)))
    return BackgroundSeries(down, up, jnp.exp(log_pivot), counts, counts - D, log_factor, log_below)


_compiled_series = jax.jit(background_series, static_argnums=3, compiler_options=QUICK)


def _degree(counts, shape, rate) -> int | None:
    """Return the degree that the series of all channels need near their best fits; None above `MAX_DEGREE`.

    The arguments are (num_channels,).
    """
    trial = np.concatenate([np.linspace(0.0, 1.0, 9) ** 2, np.linspace(1.2, 4.0, 8)])[:, None]  # of mu / S
    degree = max(float(min(counts.max(initial=1.0), MIN_DEGREE)), _largest_background(shape, rate).max(initial=1.0))
    if degree > MAX_DEGREE:
        return None
    candidates = np.flatnonzero(counts > degree)
    for i in candidates[np.argsort(-counts[candidates])]:
        S, a, r = counts[i], shape[i], rate[i]
        if degree >= S:
            break
        k = np.arange(min(S, 2.0 * MAX_DEGREE) + 1.0)
        # Logarithms of binomial(S, k) Gamma(a + k) / Gamma(a) (1 + r)^-k, the coefficients of mu^(S - k).
        log = gammaln(S + 1.0) - gammaln(S - k + 1.0) - gammaln(k + 1.0) + gammaln(a + k) - gammaln(a) - k * np.log1p(r)
        terms = log + np.where(k < S, (S - k) * np.log(np.maximum(S * trial, 1e-300)), 0.0)
        log_p = logsumexp_of(terms, axis=1) - S * trial[:, 0]
        near = 2.0 * (log_p.max() - log_p) < NEAR
        near[:-1] |= near[1:]  # and the next lower trial
        tail = np.cumsum(np.exp(terms[near] - terms[near].max(axis=1, keepdims=True))[:, ::-1], axis=1)[:, ::-1]
        needed = (tail > NEGLIGIBLE * tail[:, :1]).sum(axis=1).max() - 1.0
        degree = max(degree, needed)
        if degree > MAX_DEGREE:
            return None
    return int(degree)


def _largest_background(shape, rate) -> np.ndarray:
    """Return the largest number of counts of the background alone that need be expected in each channel."""
    mean = shape / rate
    return np.ceil(mean + MARGIN * np.sqrt(mean + shape / rate**2))


def neighbouring_mean(background: ArrayLike, min_counts: float = 25.0) -> np.ndarray:
    """Return the mean background counts of the channels around each channel, (G,).

    The mean is positive: one count divided by the number of channels if there are no counts at all.

    Parameters
    ----------
    background : (G,)
        Counts of single channels, in the order of energy. For groups, which differ in width, sum the means of their
        channels.
    min_counts : float
        The neighbourhood is widened symmetrically until it has this number of counts, or contains all channels.
    """
    background = np.asarray(background, float)
    num = len(background)
    total = np.append(0.0, np.cumsum(background))
    channel = np.arange(num)
    mean = np.full(num, max(total[-1], 1.0) / max(num, 1))
    pending = np.ones(num, bool)
    for half_width in range(num):
        low, high = np.maximum(channel - half_width, 0), np.minimum(channel + half_width + 1, num)
        counts = total[high] - total[low]
        sufficient = pending & (counts >= min_counts)
        mean[sufficient] = (counts / (high - low))[sufficient]
        pending &= ~sufficient
        if not pending.any():
            break
    return mean


def background_posterior(
    background: ArrayLike, ratio: ArrayLike, *, prior_mean: ArrayLike | None = None, shape: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gamma posterior of the background in the source region, given the counts of the background region.

    The posterior mean, averaged over B, is the true background if the prior has the right mean. In contrast, a flat or
    Jeffreys prior adds 1 or 1/2 count to each channel, and the most likely background (W) is too low. The prior means
    of neighbouring channels share counts but are treated as independent, so the uncertainty of the total of a smooth
    background is underestimated: in 50 channels with 0.3 source and 0.5 background counts each, the error of the source
    is 8 % too small at a ratio of 5, and 19 % at a ratio of 1.

    Parameters
    ----------
    background : (G,)
        Counts B of the background region.
    ratio : (G,) or number
        As in `profiled_background`.
    prior_mean : (G,) or number, optional
        Mean of the Gamma prior, in counts of the background region. Default: `neighbouring_mean`.
    shape : number, optional
        Shape of the Gamma prior, mean^2 / variance: large if channels resemble their neighbours. Default:
        `prior_shape`.

    Returns
    -------
    shape, rate : (G,)
        B plus the shape of the prior, and ratio (1 + shape of the prior / prior_mean).
    """
    background = np.asarray(background, float)
    mean = np.asarray(neighbouring_mean(background) if prior_mean is None else prior_mean, float)
    shape = prior_shape(background, mean) if shape is None else shape
    return background + shape, np.broadcast_to(ratio * (1.0 + shape / mean), background.shape)


def prior_shape(background: ArrayLike, prior_mean: ArrayLike) -> float:
    """Return the shape of the Gamma prior of the background that maximises the marginal likelihood of the counts.

    Parameters
    ----------
    background, prior_mean : (G,)
        Counts B of the background region, and their prior means.

    Returns
    -------
    float
        From 0.3, for a background with strong lines, to 100, for a smooth one. It is small if the counts scatter more
        than Poisson counts. If it were small for a smooth background too, the background of each channel would be
        inferred from its few counts; a source of 0.3 counts per channel with a background of 0.5 would be 20 % too
        bright.
    """
    background, mean = np.asarray(background, float)[:, None], np.asarray(prior_mean, float)[:, None]
    # The negative binomial distribution, up to a factor; importing scipy.stats takes longer than all else here.
    log_likelihood = gammaln(background + SHAPES) - gammaln(SHAPES) - SHAPES * np.log1p(mean / SHAPES)
    log_likelihood += xlogy(background, mean / (mean + SHAPES))
    return float(SHAPES[np.argmax(log_likelihood.sum(axis=0))])


def _gamma_quadrature(max_power: float, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and log weights for integrals of powers of x, up to ``max_power``, over Gamma densities of x.

    The rule is Gauss-Legendre quadrature in v = sqrt(x), where each integrand is a peak of standard deviation 1/2.
    """
    margin = 3.5
    low, high = np.maximum(np.sqrt(shape) - margin, 0.0), np.sqrt(max_power + shape) + margin
    # Nodes are pi / 2 times farther apart in the middle than on average; a spacing of 0.45 there is accurate to 1e-10.
    num = math.ceil(0.5 * math.pi * np.max(high - low) / 0.45) + 4
    t, w = np.polynomial.legendre.leggauss(num)
    half = 0.5 * (high - low)[:, None]
    v = low[:, None] + half * (1.0 + t)
    power = 2.0 * shape[:, None] - 1.0
    return v * v, np.log(2.0 * half * w) + power * np.log(v) - v * v - gammaln(shape)[:, None]
