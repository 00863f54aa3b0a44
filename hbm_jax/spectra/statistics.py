"""Statistics of counts in the channels of a spectrum, with the background subtracted, profiled or integrated out.

`prepare` does once what depends on the data only and returns a `Statistic`: log likelihoods, deviances, simulated data.
The plain functions are its kernels. They broadcast, and return for each channel the deviance D, twice the distance
from a model that passes through every datum, which is what XSPEC prints as C, W and PG-statistic. The normalised log
likelihood is that of the datum itself less D / 2; the first part is data, so a gradient evaluates no gamma function.

S counts are observed where the source alone is expected to give mu, and the background b.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from scipy.special import gammaln

from hbm_jax.validation import did_you_mean, listed

STATISTICS = ("cstat", "wstat", "pgstat", "marginal", "chi2_gehrels", "chi2_data", "chi2_model")
MIN_NODES = 8  # exact up to 15 counts, so also for data that are simulated from spectra with next to no counts
MAX_EXACT = 100  # counts; above, Legendre's rule needs fewer nodes than Laguerre's


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
    expected = _floating(expected)
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
    expected = _floating(expected)
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
    expected = _floating(expected)
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


def marginal_background(
    counts: ArrayLike, expected: ArrayLike, nodes: ArrayLike, log_weights: ArrayLike
) -> jax.Array:
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
    expected = _floating(expected)
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
    background: ArrayLike, ratio: ArrayLike, *, prior_mean: ArrayLike | None = None, prior_shape: float = 1.0
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
    prior_shape : number
        Its shape, mean squared over variance: how closely a channel is like its neighbours.

    Returns
    -------
    shape, rate : (G,)
        B + prior_shape, and ratio (1 + prior_shape / prior_mean).

    Notes
    -----
    The mean of this posterior, averaged over B, is the true background where the prior has the right mean. A flat or
    Jeffreys prior adds 1 or 1/2 count to each channel instead, and the best background (W) takes some away.
    """
    background = np.asarray(background, float)
    mean = np.asarray(neighbouring_mean(background) if prior_mean is None else prior_mean, float)
    return background + prior_shape, np.broadcast_to(ratio * (1.0 + prior_shape / mean), background.shape)


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
    more counts Legendre's rule in sqrt(b) has some 3.5 sqrt(S) + 25 nodes. Both hold for every mu, not only near the
    best one; log likelihoods are within 1e-9 of the truth up to 10^4 counts (``tests/spectra/test_statistics.py``).
    """
    counts, shape, rate = np.broadcast_arrays(*(np.asarray(x, float) for x in (counts, shape, rate)))
    most = counts.max(initial=0.0)
    # There are far fewer different shapes than channels.
    shapes, place = np.unique(shape, return_inverse=True)
    x, log_weights = _laguerre(most, shapes) if most <= MAX_EXACT else _legendre(most, shapes)
    place = place.reshape(shape.shape)
    outside = shape * (np.log(rate) - np.log1p(rate))
    return x[place] / (1.0 + rate)[..., None], log_weights[place] + outside[..., None]


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Statistic:
    """A statistic with its data: a pytree of arrays, built by `prepare`.

    Attributes
    ----------
    name : str
        One of `STATISTICS`.
    counts : (..., G)
        Counts of the source region; those less the scaled background for chi-square.
    used : (..., G)
        False for padding: there everything is 0 and so are gradients, whatever is expected.
    saturated : (..., G)
        Log likelihood of a model that passes through every datum.
    background, ratio, background_error : (..., G)
        Of W; the first and last in counts of the source region for PG-statistic.
    variance : (..., G)
        Of chi-square; of its background alone for ``chi2_model``.
    shape, rate : (..., G)
        Gamma distribution of a marginal background.
    nodes, log_weights : (..., G, Q)
        The quadrature over it.
    """

    name: str = field(metadata={"static": True})
    counts: Any
    used: Any
    saturated: Any
    background: Any = None
    ratio: Any = None
    background_error: Any = None
    variance: Any = None
    shape: Any = None
    rate: Any = None
    nodes: Any = None
    log_weights: Any = None

    def __repr__(self) -> str:
        return f"Statistic({self.name}, {np.shape(self.counts)})"

    @property
    def collapsible(self) -> bool:
        """Whether channels without counts in the source region may be added up before they are folded.

        True for cstat, wstat and marginal: where S = 0, the log likelihood is a constant less mu, so that the sum over
        such channels needs the sum of their mu only. The other statistics are not linear in mu there.
        """
        return self.name in ("cstat", "wstat", "marginal")

    def log_likelihood(self, expected: ArrayLike) -> jax.Array:
        """Normalised log likelihood of each channel at its expected counts of the source alone, both (..., G).

        -inf where something is observed that cannot be; NaN where less than nothing is expected.

        That of W is of source and background counts, at the best background. That of ``chi2_model`` has the
        logarithm of its variance, which depends on mu too, so its maximum is not the minimum of chi-square.
        """
        expected, saturated = self._inside(expected), self.saturated
        if self.name == "chi2_model":
            saturated = -0.5 * jnp.log(2.0 * math.pi * self._variance(expected))
        saturated = jnp.asarray(saturated, expected.dtype)
        return jnp.where(self.used, saturated - 0.5 * self._deviance(expected)[0], 0.0)

    def deviance(self, expected: ArrayLike) -> jax.Array:
        """Statistic of each channel as XSPEC prints it, at its expected counts of the source alone, both (..., G)."""
        return jnp.where(self.used, self._deviance(self._inside(expected))[0], 0.0)

    def draw(self, key: jax.Array, expected: ArrayLike) -> "Statistic":
        """Simulate the data, of source and background region.

        Parameters
        ----------
        key : PRNG key
            Random number key.
        expected : (..., G)
            Expected counts of the source alone.

        Returns
        -------
        Statistic
            Of other data. W and PG-statistic draw both regions, with the background that is best at ``expected`` for
            the data at hand. A marginal background is drawn from its posterior, its own counts are kept. Chi-square
            draws Gaussian data with its own variance.
        """
        expected = self._inside(expected)
        of_source, of_background = jax.random.split(key)
        if self.name.startswith("chi2"):
            normal = jax.random.normal(of_source, expected.shape, expected.dtype)
            counts = expected + jnp.sqrt(self._variance(expected)) * normal
            return dataclasses.replace(self, counts=jnp.where(self.used, counts, 0.0))
        best, background = self._deviance(expected)[1], self.background
        if self.name == "wstat":
            background = jax.random.poisson(of_background, self.ratio * best).astype(expected.dtype)
        elif self.name == "pgstat":
            normal = jax.random.normal(of_background, expected.shape, expected.dtype)
            background = best + self.background_error * normal
        elif self.name == "marginal":
            best = jax.random.gamma(of_background, self.shape) / self.rate
        counts = jax.random.poisson(of_source, jnp.where(self.used, expected + best, 0.0)).astype(expected.dtype)
        drawn = dataclasses.replace(self, counts=counts, background=background)
        return dataclasses.replace(drawn, saturated=_saturated(drawn, jnp, jax.scipy.special.gammaln))

    def _inside(self, expected) -> jax.Array:
        """Something harmless in the padding, so that not even a NaN gets out of it."""
        return jnp.where(self.used, _floating(expected), 1.0)

    def _variance(self, expected) -> jax.Array:
        variance = jnp.asarray(self.variance, expected.dtype)
        return variance + expected if self.name == "chi2_model" else variance

    def _deviance(self, expected) -> tuple[jax.Array, Any]:
        """Deviance and best background."""
        if self.name == "cstat":
            return cash(self.counts, expected), 0.0
        if self.name == "wstat":
            return profiled_background(self.counts, expected, self.background, self.ratio)
        if self.name == "pgstat":
            return gaussian_background(self.counts, expected, self.background, self.background_error)
        if self.name == "marginal":
            return marginal_background(self.counts, expected, self.nodes, self.log_weights), None
        distance = jnp.asarray(self.counts, expected.dtype) - expected
        return distance * distance / self._variance(expected), None


def prepare(
    name: str,
    counts: ArrayLike,
    background: ArrayLike | None = None,
    ratio: ArrayLike | None = None,
    background_error: ArrayLike | None = None,
    *,
    used: ArrayLike | None = None,
    prior_mean: ArrayLike | None = None,
) -> Statistic:
    """Work out what a statistic needs of the data.

    Parameters
    ----------
    name : str
        ``cstat``: Poisson, no background. ``wstat``: Poisson background counts, at their best. ``marginal``: the same
        integrated out; unbiased for few counts. ``pgstat``: background with Gaussian errors. ``chi2_gehrels``,
        ``chi2_data``, ``chi2_model``: Gaussian, background subtracted; variance 1 + sqrt(S + 0.75) squared, S or at
        least 1, or that expected by the model, which needs several counts in every channel.
    counts : (..., G)
        Counts of the source region, one spectrum or a padded population.
    background : (..., G), optional
        Counts of the background region.
    ratio : (..., G), optional
        As in `profiled_background`; 1 by default.
    background_error : (..., G), optional
        Standard deviation of ``background``, for pgstat only.
    used : (..., G), optional
        False for padding, whose numbers may be anything.
    prior_mean : (..., G), optional
        As in `background_posterior`, for marginal only. Give it for groups of different widths.

    Returns
    -------
    Statistic

    Raises
    ------
    ValueError
        For an unknown name, data the statistic lacks or has no place for, other shapes, and values out of range.

    Notes
    -----
    Counts of a group are sums over its channels. Its ratio has to be one number: where the ratio varies within a group,
    any of its means is an approximation.

    Examples
    --------
    >>> statistic = prepare("wstat", [3, 0, 1], [2, 0, 5], ratio=10.0)
    >>> statistic.log_likelihood([1.0, 0.5, 0.5]).shape
    (3,)
    """
    if name not in STATISTICS:
        raise ValueError(
            f"unknown statistic {name!r}{did_you_mean(str(name), STATISTICS)}: expected one of {listed(STATISTICS)}."
        )
    size = np.shape(counts)
    used = np.ones(size, bool) if used is None else np.asarray(used, bool)
    if used.shape != size or not size:
        raise ValueError(f"{name}: used: expected the shape of the counts, {size}; found {used.shape}.")
    _complain(name, background, ratio, background_error, prior_mean)
    S = _checked(name, "counts", counts, used, padding=0.0, whole=name == "marginal")
    one = Statistic(name, S, used, None)
    if name == "cstat":
        return dataclasses.replace(one, saturated=_saturated(one, np, gammaln))
    r = _checked(name, "ratio", 1.0 if ratio is None else ratio, used, padding=1.0, positive=True)
    if name == "pgstat":
        b = _checked(name, "background", background, used, padding=0.0, low=-np.inf) / r
        error = _checked(name, "background_error", background_error, used, padding=0.0) / r
        one = dataclasses.replace(one, background=b, background_error=error)
        return dataclasses.replace(one, saturated=_saturated(one, np, gammaln))
    B = _checked(name, "background", 0.0 if background is None else background, used, padding=0.0)
    if name.startswith("chi2"):
        variance = np.where(used, _variance_of(name, S, B, r), 1.0)
        one = dataclasses.replace(one, counts=S - B / r, variance=variance)
        return dataclasses.replace(one, saturated=-0.5 * np.log(2.0 * math.pi * variance) if variance.all() else None)
    one = dataclasses.replace(one, background=B, ratio=r)
    if name == "marginal":
        if prior_mean is None:
            mean = np.ones(size)
            for row in np.ndindex(size[:-1]):
                mean[row][used[row]] = neighbouring_mean(B[row][used[row]])
        else:
            mean = _checked(name, "prior_mean", prior_mean, used, padding=1.0, positive=True)
        shape, rate = background_posterior(B, r, prior_mean=mean)
        nodes, log_weights = background_quadrature(S, shape, rate)
        one = dataclasses.replace(one, shape=shape, rate=rate, nodes=nodes, log_weights=log_weights)
    return dataclasses.replace(one, saturated=_saturated(one, np, gammaln))


def _complain(name, background, ratio, background_error, prior_mean) -> None:
    """Refuse data that a statistic has no place for, or lacks."""
    measured = ("wstat", "marginal", "pgstat")
    lacks = {"background": name in measured and background is None}
    lacks["background_error"] = name == "pgstat" and background_error is None
    for what, lacking in lacks.items():
        if lacking:
            raise ValueError(f"{name}: {what}: expected one number for each channel; found none.")
    if name == "cstat" and not (background is None and ratio is None):
        raise ValueError("cstat: background: expected none; found one. Use wstat or marginal, or add what is known of it.")
    if name != "pgstat" and background_error is not None:
        raise ValueError(f"{name}: background_error: expected none; found one. Use pgstat.")
    if name != "marginal" and prior_mean is not None:
        raise ValueError(f"{name}: prior_mean: expected none; found one. Use marginal.")


def _checked(name, what, values, used, *, padding, low=0.0, positive=False, whole=False) -> np.ndarray:
    """Values of the channels as an array, with the padding replaced."""
    try:
        values = np.broadcast_to(np.asarray(values, float), used.shape)
    except ValueError:
        raise ValueError(
            f"{name}: {what}: expected the shape of the counts, {used.shape}; found {np.shape(values)}."
        ) from None
    good = np.isfinite(values) & ((values > 0) if positive else (values >= low)) & ((values % 1 == 0) | (not whole))
    if (used & ~good).any():
        place = tuple(int(i) for i in np.argwhere(used & ~good)[0])
        kind = "positive numbers" if positive else "numbers of 0 or more" if low == 0.0 else "finite numbers"
        kind = "whole " + kind if whole else kind
        raise ValueError(f"{name}: {what}{list(place)}: expected {kind}; found {values[place]:g}.")
    return np.where(used, values, padding)


def _variance_of(name: str, S: np.ndarray, B: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Variance of S - B / ratio; without that of the source for chi2_model. (Gehrels 1986, ApJ 303, 336.)"""
    if name == "chi2_gehrels":
        behind = np.where(B > 0, (1.0 + np.sqrt(B + 0.75)) ** 2, 0.0)
        return (1.0 + np.sqrt(S + 0.75)) ** 2 + behind / ratio**2
    return (np.maximum(S, 1.0) if name == "chi2_data" else B / ratio) + B / ratio**2


def _saturated(one: Statistic, xp, lgamma):
    """Log likelihood of the data at themselves, in NumPy or in JAX."""

    def poisson(n):
        return n * xp.log(xp.where(n > 0, n, 1.0)) - n - lgamma(n + 1.0)

    value = poisson(one.counts)
    if one.name == "wstat":
        value = value + poisson(one.background)
    if one.name == "pgstat":
        known = one.background_error > 0
        value = value - xp.where(known, xp.log(math.sqrt(2.0 * math.pi) * xp.where(known, one.background_error, 1.0)), 0.0)
    return value


def _floating(values: ArrayLike) -> jax.Array:
    values = jnp.asarray(values)
    return values.astype(jnp.result_type(float, values.dtype)) if not jnp.issubdtype(values.dtype, jnp.floating) else values
