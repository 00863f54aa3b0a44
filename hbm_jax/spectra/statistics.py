"""Kernels of the statistics of counts: the background known, profiled or integrated out.

They broadcast, and return for each channel the deviance D, twice the distance from a model that passes through every
datum, which is what XSPEC prints as C, W and PG-statistic. The normalised log likelihood is that of the datum itself
less D / 2; the first part is data, so a gradient evaluates no gamma function: see `hbm_jax.spectra.likelihood`.

S counts are observed where the source alone is expected to give mu, and the background b.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from scipy.special import gammaln
from scipy.special import logsumexp as logsumexp_of
from scipy.stats import nbinom

MIN_NODES = 8  # exact up to 15 counts, so also for data that are simulated from spectra with next to no counts
FEWER_NODES = (8, 10, 12, 16, 20, 24, 32, 48)
MAX_EXACT = 100  # counts; above, Legendre's rule needs fewer nodes than Laguerre's
SHAPES = np.geomspace(0.3, 100.0, 30)  # among which `prior_shape` chooses


def cash(counts: ArrayLike, expected: ArrayLike) -> jax.Array:
    """Deviance of Poisson counts, Cash's C.

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more; need not be whole.
    expected : (...)
        Expected counts, source and known background together.

    Returns
    -------
    (...)
        2 (mu - S + S ln(S / mu)); 2 mu where S = 0; inf where nothing is expected and something observed; NaN where
        less than nothing is expected.

    References
    ----------
    Cash 1979, ApJ 228, 939; XSPEC manual, appendix B.

    Examples
    --------
    >>> float(cash(0, 2.5))
    5.0
    """
    expected = floating(expected)
    counts = jnp.asarray(counts, expected.dtype)
    some = counts > 0
    # Where there are no counts mu may be zero, and its logarithm must not reach the gradient.
    quotient = jnp.where(some, expected, 1.0) / jnp.where(some, counts, 1.0)
    value = 2.0 * (expected - counts - jnp.where(some, counts * jnp.log(quotient), 0.0))
    return jnp.where(expected >= 0, value, jnp.nan)


def profiled_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, ratio: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Deviance of source and background region at the best background of each channel: XSPEC's W.

    Parameters
    ----------
    counts, background : (...)
        Counts of the source region S and of the background region B, 0 or more.
    expected : (...)
        Expected counts of the source alone in the source region, 0 or more; NaN where less.
    ratio : (...)
        Expected counts of the background region for each one that the background gives in the source region: the ratio
        of exposure x BACKSCAL x AREASCAL of the two. Positive.

    Returns
    -------
    deviance, best : (...)
        C(S | mu + b) + C(B | ratio b) at its minimum in b, and that b.

    Notes
    -----
    b is the positive root of a quadratic, written so that no digits cancel. It is B / (1 + ratio) where S = 0; where
    B = 0, S / (1 + ratio) - mu, or 0 if the source explains that much. Where B = 0 the best background is too low, and
    a source fitted with W too bright: group to some background counts, or integrate over it (`marginal_background`).

    References
    ----------
    Wachter, Leach & Kellogg 1979, ApJ 230, 274; XSPEC manual, appendix B, "Poisson data with Poisson background".

    Examples
    --------
    >>> deviance, best = profiled_background(0, 2.0, 3, 0.5)
    >>> round(float(best), 3)
    2.0
    """
    expected = floating(expected)
    counts, background, ratio = (jnp.asarray(x, expected.dtype) for x in (counts, background, ratio))
    whole = 1.0 + ratio
    q = counts + background - whole * expected
    under = q * q + 4.0 * whole * background * expected
    # Zero only where another branch is taken.
    root = jnp.sqrt(jnp.where(under > 0, under, 1.0))
    negative = q < 0
    conjugate = 2.0 * background * expected / jnp.where(negative, root - q, 1.0)
    general = jnp.where(negative, conjugate, (q + root) / (2.0 * whole))
    nothing_behind = jnp.maximum(counts / whole - expected, 0.0)
    best = jnp.where(counts > 0, jnp.where(background > 0, general, nothing_behind), background / whole)
    value = cash(counts, expected + best) + cash(background, ratio * best)
    return jnp.where(expected >= 0, value, jnp.nan), best


def gaussian_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, error: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Deviance of Poisson counts on a background with a Gaussian error, at its best value: XSPEC's PG-statistic.

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more.
    expected : (...)
        Expected counts of the source alone, 0 or more; NaN where less.
    background, error : (...)
        Background expected in the source region, and its standard deviation, 0 or more; 0 holds it there.

    Returns
    -------
    deviance, best : (...)
        C(S | mu + b) + (background - b)^2 / error^2 at its minimum in b, and that b.

    Notes
    -----
    b may be negative, as the Gaussian allows, as long as mu + b is not: where S = 0, it is background - error^2, or -mu
    where that is larger. There XSPEC goes on below zero. Where the error is 0 and mu + background negative: NaN.

    References
    ----------
    XSPEC manual, appendix B, "Poisson data with Gaussian background".

    Examples
    --------
    >>> deviance, best = gaussian_background(4, 2.0, 2.0, 1.0)
    >>> float(best)
    2.0
    """
    expected = floating(expected)
    counts, background, error = (jnp.asarray(x, expected.dtype) for x in (counts, background, error))
    variance = error * error
    # t = mu + b solves t^2 - p t - variance S = 0.
    p = expected + background - variance
    under = p * p + 4.0 * variance * counts
    root = jnp.where(under > 0, jnp.sqrt(jnp.where(under > 0, under, 1.0)), 0.0)
    negative = p < 0
    conjugate = 2.0 * variance * counts / jnp.where(negative, root - p, 1.0)
    total = jnp.where(error > 0, jnp.where(negative, conjugate, 0.5 * (p + root)), expected + background)
    best = total - expected
    pull = jnp.where(error > 0, (background - best) / jnp.where(error > 0, error, 1.0), 0.0)
    return jnp.where(expected >= 0, cash(counts, total) + pull * pull, jnp.nan), best


def marginal_background(counts: ArrayLike, expected: ArrayLike, nodes: ArrayLike, log_weights: ArrayLike) -> jax.Array:
    """Deviance of Poisson counts with the background integrated over what it may be.

    Parameters
    ----------
    counts : (...)
        Counts of the source region S.
    expected : (...)
        Expected counts of the source alone, 0 or more; NaN where less.
    nodes, log_weights : (..., Q)
        Of `background_quadrature`.

    Returns
    -------
    (...)
        Twice ln P(S | S) less the logarithm of the integral of P(S | mu + b) p(b | B) over b. It is never 0: the best
        a channel with background can do is to know that background no better than B tells.

    Notes
    -----
    Costs a logarithm and an exponential for each node; see `background_quadrature` for how many and how exact.
    """
    expected = floating(expected)
    counts, nodes, log_weights = (jnp.asarray(x, expected.dtype) for x in (counts, nodes, log_weights))
    # Relative to the counts, so that no large numbers cancel.
    per_count = (expected[..., None] + nodes) / jnp.where(counts > 0, counts, 1.0)[..., None]
    value = expected - counts - logsumexp(log_weights + counts[..., None] * jnp.log(per_count), axis=-1)
    return jnp.where(expected >= 0, 2.0 * value, jnp.nan)


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


def background_quadrature(counts: ArrayLike, shape: ArrayLike, rate: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for `marginal_background`.

    Parameters
    ----------
    counts : (...)
        Counts of the source region, whole numbers.
    shape, rate : (...)
        Gamma distribution of the background in the source region.

    Returns
    -------
    nodes, log_weights : (..., Q)
        The same number for all channels.

    Notes
    -----
    The integrand is a polynomial of degree S in b under the weight b^(shape - 1) exp(-(1 + rate) b). Up to 100 counts
    it is integrated exactly by Gauss and Laguerre's rule, with half as many nodes as the largest S, at least 8. For
    more counts Legendre's rule in sqrt(b) has some 3.5 sqrt(S) + 25 nodes. Both hold for every mu; log likelihoods are
    within 1e-9 of the truth up to 10^4 counts (``tests/spectra/test_statistics.py``). Where fewer nodes do, fewer are
    taken: as many as change no deviance by more than 1e-8 at any mu within 100 of the best one's deviance.
    """
    counts, shape, rate = np.broadcast_arrays(*(np.asarray(x, float) for x in (counts, shape, rate)))
    # Room for data that are simulated from these.
    most = 2.0 * np.ceil(counts + 3.0 * np.sqrt(counts)).max(initial=0.0) // 2.0
    # There are far fewer different shapes than channels.
    shapes, place = np.unique(shape, return_inverse=True)
    place = place.reshape(shape.shape)
    outside = shape * (np.log(rate) - np.log1p(rate))

    def spread(rule):
        x, log_weights = rule
        return x[place] / (1.0 + rate)[..., None], log_weights[place] + outside[..., None]

    exact = spread(_laguerre(most, shapes) if most <= MAX_EXACT else _legendre(most, shapes))
    for num in FEWER_NODES:
        if num >= exact[0].shape[-1]:
            break
        fewer = spread(_laguerre(2.0 * num - 2.0, shapes))
        if _agree(counts, exact, fewer):
            return fewer
    return exact


def _agree(counts, exact, fewer) -> bool:
    """Whether two rules give the same deviance wherever it matters."""
    trial = np.concatenate([np.linspace(0.0, 1.0, 9) ** 2, np.linspace(1.2, 4.0, 8)])
    for part in np.array_split(np.arange(counts.size), max(counts.size // 512, 1)):
        n = counts.ravel()[part]
        mu = np.maximum(n, 1.0)[:, None] * trial
        values = []
        for nodes, log_weights in (exact, fewer):
            b, w = (a.reshape(counts.size, -1)[part][:, None, :] for a in (nodes, log_weights))
            log = np.where(
                n[:, None, None] > 0,
                n[:, None, None] * np.log((mu[..., None] + b) / np.maximum(n, 1.0)[:, None, None]),
                0.0,
            )
            values.append(2.0 * (mu - n[:, None] - logsumexp_of(w + log, axis=-1)))
        near = values[0] < values[0].min(axis=1, keepdims=True) + 100.0
        if not (np.abs(values[1] - values[0])[near] < 1e-8).all():
            return False
    return True


def _laguerre(most: float, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss's rule for the density x^(shape - 1) e^-x / Gamma(shape), exact for powers up to `most`."""
    num = max(int(most // 2) + 1, MIN_NODES)
    k = np.arange(num)
    diagonal = 2.0 * k + shape[:, None]
    beside = np.sqrt(k[1:] * (k[1:] + shape[:, None] - 1.0))
    jacobi = np.zeros((len(shape), num, num))
    jacobi[:, k, k] = diagonal
    jacobi[:, k[1:], k[:-1]] = jacobi[:, k[:-1], k[1:]] = beside
    x = np.linalg.eigvalsh(jacobi)
    # 1 / weight is the sum of the squared orthonormal polynomials. Eigenvectors would lose the small weights, 1e-80,
    # which multiply the largest powers.
    before, now = np.zeros_like(x), np.ones_like(x)
    total = np.ones_like(x)
    for i in range(1, num):
        back = beside[:, i - 2, None] * before if i > 1 else 0.0
        before, now = now, ((x - diagonal[:, i - 1, None]) * now - back) / beside[:, i - 1, None]
        total += now * now
    return x, -np.log(total)


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


def floating(values: ArrayLike) -> jax.Array:
    """Return numbers as an array of floating point."""
    values = jnp.asarray(values)
    return (
        values.astype(jnp.result_type(float, values.dtype))
        if not jnp.issubdtype(values.dtype, jnp.floating)
        else values
    )
