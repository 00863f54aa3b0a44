"""Statistics of whole spectra: what depends on the data only is worked out once, by `prepare`.

A `Statistic` gives log likelihoods, deviances and simulated data, by the kernels of
`hbm_jax.spectra.statistics.kernels`.

S counts are observed where the source alone is expected to give mu, and the background b.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.special import gammaln

from hbm_jax.names import did_you_mean, listed
from hbm_jax.spectra.statistics.kernels import cash, floating, gaussian_background, profiled_background
from hbm_jax.spectra.statistics.marginal import (
    BackgroundSeries,
    background_integral,
    background_posterior,
    background_series,
    marginal_background,
    neighbouring_mean,
)

STATISTICS = ("cstat", "wstat", "pgstat", "marginal", "chi2_gehrels", "chi2_data", "chi2_model")


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
    integral : BackgroundSeries or BackgroundQuadrature
        Over it.
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
    integral: Any = None

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

    def background_moments(self) -> tuple[Any, Any]:
        """Background counts in the source region, 0 or more, and the variance of that estimate, (..., G) each."""
        if self.background is None:
            nothing = jnp.zeros_like(jnp.asarray(self.counts))
            return nothing, nothing
        if self.ratio is None:
            return jnp.maximum(self.background, 0.0), self.background_error**2
        mean = jnp.maximum(self.background / self.ratio, 0.0)
        return mean, mean / self.ratio

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
        return drawn._completed()

    def with_counts(self, counts: ArrayLike) -> "Statistic":
        """Return the statistic of other counts in the source region, (..., G), which may be traced.

        The integral over a marginal background keeps the number of powers, or nodes, that the counts asked for that it
        was prepared with: exact near the best fit unless there is many times the background.
        """
        drawn = dataclasses.replace(self, counts=jnp.where(self.used, floating(counts), 0.0))
        return drawn if self.name.startswith("chi2") else drawn._completed()

    def _completed(self) -> "Statistic":
        """Return the same with what depends on the counts, which may be traced."""
        integral, counts = self.integral, self.counts
        if isinstance(integral, BackgroundSeries):
            shape, rate = (jnp.asarray(x, counts.dtype) for x in (self.shape, self.rate))
            integral = background_series(counts, shape, rate, integral.down.shape[-2] - 1)
        elif integral is not None:
            integral = integral._replace(counts=counts)
        saturated = _saturated(self, jnp, jax.scipy.special.gammaln)
        return dataclasses.replace(self, saturated=saturated, integral=integral)

    def _inside(self, expected) -> jax.Array:
        """Something harmless in the padding, so that not even a NaN gets out of it."""
        return jnp.where(self.used, floating(expected), 1.0)

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
            return marginal_background(expected, self.integral), None
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
        integrated out; of 0.8 counts a channel its best normalisation is 2 % low, where that of ``wstat`` is 6 % high
        (``tests/spectra/test_marginal.py``). ``pgstat``: background with Gaussian errors. ``chi2_gehrels``,
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
    any of its means is an approximation. `SpectrumStack.statistic` refuses W and marginal for a group whose ratios
    differ by more than 1 %.

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
        if prior_mean is not None:
            prior_mean = _checked(name, "prior_mean", prior_mean, used, padding=1.0, positive=True)
        shape, rate = np.ones(size), np.ones(size)
        for row in np.ndindex(size[:-1]):
            here = used[row]
            mean = neighbouring_mean(B[row][here]) if prior_mean is None else prior_mean[row][here]
            shape[row][here], rate[row][here] = background_posterior(B[row][here], r[row][here], prior_mean=mean)
        integral = background_integral(S, shape, rate)
        one = dataclasses.replace(one, shape=shape, rate=rate, integral=integral)
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
        raise ValueError(
            "cstat: background: expected none; found one. Use wstat or marginal, or add what is known of it."
        )
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
    """Variance of S - B / ratio, without that of the source for chi2_model (Gehrels 1986, ApJ 303, 336)."""
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
        value = value - xp.where(
            known, xp.log(math.sqrt(2.0 * math.pi) * xp.where(known, one.background_error, 1.0)), 0.0
        )
    return value
