"""Log likelihoods of counts in the channels of a spectrum, with backgrounds known, measured or integrated out.

Every function takes arrays of channels (or groups of channels), broadcasts, and returns the log likelihood of each
channel, normalised, so that models and statistics can be compared by their absolute values. `deviance` turns one into
the statistic that XSPEC prints (C, W, PG-statistic), twice the distance from a model that passes through every datum.

S counts are observed where the source is expected to give mu, and the background b, per channel.
"""

import math
from dataclasses import InitVar, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from jax.typing import ArrayLike

MAX_NODES = 64


def poisson(counts: ArrayLike, expected: ArrayLike) -> jax.Array:
    """Poisson log likelihood, of which Cash's C is the deviance.

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more; need not be whole.
    expected : (...)
        Expected counts, source and known background together.

    Returns
    -------
    (...)
        S ln(mu) - mu - ln S!; -mu where S = 0; -inf where nothing is expected and something observed; NaN where
        less than nothing is expected.

    References
    ----------
    Cash 1979, ApJ 228, 939.

    Examples
    --------
    >>> float(poisson(0, 2.5))
    -2.5
    """
    counts, expected = jnp.asarray(counts, float), jnp.asarray(expected, float)
    some = counts > 0
    # Where there are no counts mu may be zero, and its logarithm must not reach the gradient.
    log = jnp.log(jnp.where(some, expected, 1.0))
    value = jnp.where(some, counts * log - gammaln(counts + 1.0), 0.0) - expected
    return jnp.where(expected >= 0, value, jnp.nan)


def profiled_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, ratio: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Poisson log likelihood of source and background region, at the best background of each channel: XSPEC's W.

    Parameters
    ----------
    counts, background : (...)
        Counts of the source region S and of the background region B, 0 or more.
    expected : (...)
        Expected counts of the source alone in the source region, 0 or more.
    ratio : (...)
        Expected counts of the background region for each one that the background gives in the source region: the ratio
        of exposure x BACKSCAL x AREASCAL of the two. Positive.

    Returns
    -------
    log_likelihood, best : (...)
        ln P(S | mu + b) + ln P(B | ratio b) at its maximum in b, and that b.

    Notes
    -----
    b is the positive root of a quadratic, written so that no digits cancel; 0 where B = 0 and the source explains all
    that is observed, S / (1 + ratio) - mu where it does not, and B / (1 + ratio) where S = 0. In a channel of few
    background counts the best background is too low, and a source fitted with W too bright: group to at least one
    background count, or use `MarginalBackground`.

    References
    ----------
    Wachter, Leach & Kellogg 1979, ApJ 230, 274; XSPEC manual, appendix B, "Poisson data with Poisson background".

    Examples
    --------
    >>> log_likelihood, best = profiled_background(0, 2.0, 3, 0.5)
    >>> round(float(best), 3)
    2.0
    """
    counts, expected = jnp.asarray(counts, float), jnp.asarray(expected, float)
    background, ratio = jnp.asarray(background, float), jnp.asarray(ratio, float)
    whole = 1.0 + ratio
    q = counts + background - whole * expected
    under = q * q + 4.0 * whole * background * expected
    # The root has a corner where both terms vanish: its gradient is that of the branch B = 0 below.
    root = jnp.where(under > 0, jnp.sqrt(jnp.where(under > 0, under, 1.0)), 0.0)
    negative = q < 0
    conjugate = 2.0 * background * expected / jnp.where(negative, root - q, 1.0)
    general = jnp.where(negative, conjugate, (q + root) / (2.0 * whole))
    nothing_behind = jnp.maximum(counts / whole - expected, 0.0)
    best = jnp.where(background > 0, jnp.where(counts > 0, general, background / whole), nothing_behind)
    return poisson(counts, expected + best) + poisson(background, ratio * best), best


def gaussian_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, background_error: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Poisson counts on a background that is known with a Gaussian error, at its best value: XSPEC's PG-statistic.

    Parameters
    ----------
    counts : (...)
        Observed counts S.
    expected : (...)
        Expected counts of the source alone.
    background, background_error : (...)
        Background expected in the source region, and its standard deviation, 0 or more; 0 holds it there.

    Returns
    -------
    log_likelihood, best : (...)
        ln P(S | mu + b) + ln N(background | b, error^2) at its maximum in b, and that b. Where the error is 0 the
        second term is left out.

    Notes
    -----
    b may be negative, as the Gaussian allows, as long as mu + b is not: where S = 0, it is background - error^2, or -mu
    where that is larger.

    References
    ----------
    XSPEC manual, appendix B, "Poisson data with Gaussian background".

    Examples
    --------
    >>> log_likelihood, best = gaussian_background(4, 2.0, 2.0, 1.0)
    >>> float(best)
    2.0
    """
    counts, expected = jnp.asarray(counts, float), jnp.asarray(expected, float)
    background, error = jnp.asarray(background, float), jnp.asarray(background_error, float)
    variance = error * error
    # t = mu + b solves t^2 - p t - variance S = 0.
    p = expected + background - variance
    under = p * p + 4.0 * variance * counts
    root = jnp.where(under > 0, jnp.sqrt(jnp.where(under > 0, under, 1.0)), 0.0)
    negative = p < 0
    conjugate = 2.0 * variance * counts / jnp.where(negative, root - p, 1.0)
    total = jnp.where(error > 0, jnp.where(negative, conjugate, 0.5 * (p + root)), expected + background)
    best = total - expected
    scale = jnp.where(error > 0, error, 1.0)
    normal = -0.5 * ((background - best) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2.0 * math.pi)
    return poisson(counts, total) + jnp.where(error > 0, normal, 0.0), best


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MarginalBackground:
    """Poisson counts on a background measured in B counts elsewhere, integrated over what that background may be.

    The background of a channel has a Gamma prior, B counts turn it into a Gamma posterior, and the likelihood of the S
    counts is the integral of their Poisson probability over it. Gauss and Laguerre's quadrature is exact for it: the
    integrand is a polynomial of degree S.

    Parameters
    ----------
    counts, background : (N,)
        Counts of source and background region; whole numbers, N channels in the order of energy.
    ratio : (N,) or number
        As in `profiled_background`.
    prior_mean : (N,) or number, optional
        Mean of the prior in counts of the background region. By default that of the neighbouring channels, as many
        of them as hold 25 counts between them, so that the background has the right mean in every part of the spectrum.
    prior_shape : number
        Shape of the prior, its mean squared over its variance: how closely a channel is like its neighbours.

    Raises
    ------
    ValueError
        For counts that are negative or not whole, or a shape, mean or ratio that is not positive.

    Notes
    -----
    Neither the best background of each channel (W) nor a flat or Jeffreys prior is right on average where channels have
    few background counts: the first is too low where B = 0, the others add 1 or 1/2 count to each channel. A channel
    costs half as many exponentials as the largest S, at most 64; with more counts the quadrature is not exact, but
    better than 1e-8 (``tests/spectra/test_statistics.py``).

    Examples
    --------
    >>> data = MarginalBackground(np.array([3, 0]), np.array([2, 0]), 10.0)
    >>> data.log_likelihood(np.array([1.0, 0.5])).shape
    (2,)
    """

    counts: Any
    background: InitVar[Any] = None
    ratio: InitVar[Any] = None
    prior_mean: InitVar[Any] = None
    prior_shape: InitVar[float] = 1.0
    nodes: Any = field(default=None, repr=False)
    log_weights: Any = field(default=None, repr=False)

    def __post_init__(self, background, ratio, prior_mean, prior_shape):
        # JAX rebuilds the object from its parts; only a new one is worked out.
        if self.nodes is not None or background is None:
            return
        counts, background = np.asarray(self.counts, float), np.asarray(background, float)
        for name, value in (("counts", counts), ("background", background)):
            if value.shape != counts.shape or counts.ndim != 1 or not ((value >= 0) & (value % 1 == 0)).all():
                raise ValueError(
                    f"MarginalBackground: {name}: expected whole numbers, 0 or more, one for each channel; found others."
                )
        mean = neighbouring_mean(background) if prior_mean is None else np.broadcast_to(prior_mean, counts.shape)
        ratio = np.broadcast_to(np.asarray(ratio, float), counts.shape)
        for name, value in (("ratio", ratio), ("prior_mean", mean), ("prior_shape", np.asarray(prior_shape))):
            if not ((value > 0) & np.isfinite(value)).all():
                raise ValueError(f"MarginalBackground: {name}: expected positive numbers; found {np.min(value):g}.")
        shape, rate = background + prior_shape, ratio * (1.0 + prior_shape / mean)
        num = int(min(counts.max(initial=0.0) // 2 + 1, MAX_NODES))
        # Golub and Welsch: nodes and weights of x^(shape - 1) e^-x / Gamma(shape) from its three-term recurrence.
        k = np.arange(num)
        jacobi = np.zeros((len(counts), num, num))
        jacobi[:, k, k] = 2 * k + shape[:, None]
        beside = np.sqrt(k[1:] * (k[1:] + shape[:, None] - 1.0))
        jacobi[:, k[1:], k[:-1]] = jacobi[:, k[:-1], k[1:]] = beside
        x, vectors = np.linalg.eigh(jacobi)
        with np.errstate(divide="ignore"):
            log_weights = 2.0 * np.log(np.abs(vectors[:, 0, :])) + (shape * np.log(rate / (1.0 + rate)))[:, None]
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "nodes", x / (1.0 + rate)[:, None])
        object.__setattr__(self, "log_weights", log_weights)

    def log_likelihood(self, expected: ArrayLike) -> jax.Array:
        """Log likelihood of each channel.

        Parameters
        ----------
        expected : (..., N)
            Expected counts of the source alone, 0 or more.

        Returns
        -------
        (..., N)
            ln of the integral of P(S | mu + b) over b; NaN where less than nothing is expected.
        """
        expected = jnp.asarray(expected, float)
        counts = jnp.asarray(self.counts, expected.dtype)
        total = expected[..., None] + jnp.asarray(self.nodes, expected.dtype)
        terms = jnp.asarray(self.log_weights, expected.dtype) + counts[:, None] * jnp.log(total)
        value = logsumexp(terms, axis=-1) - gammaln(counts + 1.0) - expected
        return jnp.where(expected >= 0, value, jnp.nan)


def neighbouring_mean(background: np.ndarray, enough: float = 25.0) -> np.ndarray:
    """Mean counts of the channels around each one, as many as hold enough counts; positive.

    Parameters
    ----------
    background : (N,)
        Counts of the channels, in the order of energy.
    enough : float
        Counts that a neighbourhood is to hold; all channels where there are fewer.
    """
    background = np.asarray(background, float)
    num = len(background)
    total = np.append(0.0, np.cumsum(background))
    place = np.arange(num)
    mean = np.full(num, max(total[-1], 1.0) / num)
    open_ = np.ones(num, bool)
    for half in range(num):
        low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, num)
        held = total[high] - total[low]
        full = open_ & (held >= enough)
        mean[full] = (held / (high - low))[full]
        open_ &= ~full
        if not open_.any():
            break
    return mean


def chi_square_error(
    counts: ArrayLike, kind: str = "gehrels", *, background: ArrayLike = 0.0, ratio: ArrayLike = 1.0
) -> np.ndarray:
    """Standard deviation of source counts with the background subtracted, from the data.

    Parameters
    ----------
    counts, background, ratio : (...)
        As in `profiled_background`.
    kind : str
        ``"data"``: the square root of the counts, at least 1 in the source region. ``"gehrels"``: 1 + sqrt(S + 0.75).

    Returns
    -------
    (...)
        Errors of S - B / ratio.

    Raises
    ------
    ValueError
        For another kind; errors from the model depend on it: give `gaussian` the square root of what is expected.

    References
    ----------
    Gehrels 1986, ApJ 303, 336.
    """
    counts, background = np.asarray(counts, float), np.asarray(background, float)
    if kind == "data":
        source, behind = np.maximum(counts, 1.0), background
    elif kind == "gehrels":
        source = (1.0 + np.sqrt(counts + 0.75)) ** 2
        behind = np.where(background > 0, (1.0 + np.sqrt(background + 0.75)) ** 2, 0.0)
    else:
        raise ValueError(f"unknown error of chi-square {kind!r}: expected one of data, gehrels.")
    return np.sqrt(source + behind / np.asarray(ratio, float) ** 2)


def gaussian(counts: ArrayLike, expected: ArrayLike, error: ArrayLike) -> jax.Array:
    """Gaussian log likelihood, of which chi-square is the deviance.

    Parameters
    ----------
    counts, expected, error : (...)
        Observed (or background-subtracted) and expected counts, and the standard deviation.
    """
    counts, expected, error = (jnp.asarray(x, float) for x in (counts, expected, error))
    return -0.5 * ((counts - expected) / error) ** 2 - jnp.log(error) - 0.5 * math.log(2.0 * math.pi)
