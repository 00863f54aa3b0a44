"""Statistics of whole spectra; everything that depends only on the data is precomputed by `prepare`.

A `Statistic` gives log likelihoods, deviances and simulated data, with the kernels of
`hbm_jax.spectra.statistics.kernels`. S counts are observed in the source region, where mu counts are expected from the
source and b from the background.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from hbm_jax.names import did_you_mean, listed
from hbm_jax.precomputation import TRACED, elementwise
from hbm_jax.spectra.statistics.gaussian_marginal import draw_truncated, gaussian_background_integral
from hbm_jax.spectra.statistics.kernels import cash, floating, gaussian_background, profiled_background
from hbm_jax.spectra.statistics.marginal import (
    BackgroundSeries,
    background_integral,
    background_posterior,
    background_series,
    marginal_background,
    neighbouring_mean,
)

STATISTICS = ("cstat", "wstat", "pgstat", "marginal", "chi2", "chi2_gehrels", "chi2_data", "chi2_model")
PROFILED = ("wstat", "pgstat")  # likelihoods with the most likely background


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Statistic:
    """Statistic with its data: a pytree of arrays, built by `prepare`.

    Attributes
    ----------
    name : str
        One of `STATISTICS`.
    counts : (..., G)
        Counts of the source region; for chi-square, the scaled background is subtracted.
    used : (..., G)
        False for padding, where log likelihood, deviance and gradients are 0 for any expected counts.
    saturated : (..., G)
        Log likelihood of the saturated model, whose expected counts are the data.
    background, ratio, background_error : (..., G)
        Background data, ratio of the regions and error of the background; for pgstat, background and error are scaled
        to the source region, as for marginal with Gaussian errors.
    variance : (..., G)
        Variance of the counts for chi-square; for ``chi2_model`` that of the background only.
    shape, rate : (..., G)
        Gamma posterior of a marginal background with Poisson counts; None if its errors are Gaussian.
    integral : BackgroundSeries or BackgroundQuadrature
        Precomputed integral over a marginal background.
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

    def log_likelihood(self, expected: ArrayLike) -> jax.Array:
        """Return the normalised log likelihood of each channel for expected counts of the source, both (..., G).

        It is -inf where the observed counts are impossible, and NaN where the expected counts are negative. For wstat
        it is the likelihood of source and background counts with the most likely background. For ``chi2_model`` it
        contains the logarithm of the variance, which depends on mu, so its maximum is not the minimum of chi-square.
        """
        expected, saturated = self._without_padding(expected), self.saturated
        if self.name == "chi2_model":
            saturated = -0.5 * jnp.log(2.0 * math.pi * self._variance(expected))
        saturated = jnp.asarray(saturated, expected.dtype)
        return jnp.where(self.used, saturated - 0.5 * self._deviance(expected)[0], 0.0)

    def deviance(self, expected: ArrayLike) -> jax.Array:
        """Return the statistic of each channel as XSPEC prints it, for expected counts of the source, both (..., G)."""
        return jnp.where(self.used, self._deviance(self._without_padding(expected))[0], 0.0)

    def background_moments(self) -> tuple[Any, Any]:
        """Return the background estimate in the source region, 0 or more, and its variance, (..., G) each."""
        if self.background is None:
            zero = jnp.zeros_like(jnp.asarray(self.counts))
            return zero, zero
        if self.ratio is None:
            return jnp.maximum(self.background, 0.0), self.background_error**2
        mean = jnp.maximum(self.background / self.ratio, 0.0)
        return mean, mean / self.ratio

    def draw(self, key: jax.Array, expected: ArrayLike) -> "Statistic":
        """Simulate data of source and background region.

        Parameters
        ----------
        key : PRNG key
            Random number key.
        expected : (..., G)
            Expected counts of the source without background. For wstat and pgstat both regions are drawn, with the
            background that is most likely given ``expected`` and the observed data. For marginal the background is
            drawn from its posterior, and the background counts are kept. For chi-square the data are Gaussian, with the
            variance of the statistic.
        """
        expected = self._without_padding(expected)
        source_key, background_key = jax.random.split(key)
        if self.name.startswith("chi2"):
            normal = jax.random.normal(source_key, expected.shape, expected.dtype)
            counts = expected + jnp.sqrt(self._variance(expected)) * normal
            return dataclasses.replace(self, counts=jnp.where(self.used, counts, 0.0))
        # Expected background in the source region, and data of the background region.
        _, in_source = self._deviance(expected)
        background = self.background
        if self.name == "wstat":
            background = jax.random.poisson(background_key, self.ratio * in_source).astype(expected.dtype)
        elif self.name == "pgstat":
            normal = jax.random.normal(background_key, expected.shape, expected.dtype)
            background = in_source + self.background_error * normal
        elif self.name == "marginal":
            in_source = self._draw_background(background_key, expected)
        counts = jax.random.poisson(source_key, jnp.where(self.used, expected + in_source, 0.0)).astype(expected.dtype)
        return dataclasses.replace(self, counts=counts, background=background)._recomputed()

    def draw_counts(self, key: jax.Array, expected: ArrayLike) -> jax.Array:
        """Simulate counts of the source region, given the data of the background region, (..., G).

        The counts of the data have no influence, unlike in `draw`. The background is drawn given the background region:
        for marginal from its posterior; for wstat from a Gamma distribution with the mean B / ratio and the variance
        B / ratio^2, which is 0 where B = 0; for pgstat from the normal distribution of its errors, where the sum of
        source and background is at least 0. The parameters are those of `draw`.
        """
        if self.name not in PROFILED:
            return self.draw(key, expected).counts
        expected = self._without_padding(expected)
        source_key, background_key = jax.random.split(key)
        mean = jnp.maximum(expected + self._draw_background(background_key, expected), 0.0)
        return jax.random.poisson(source_key, jnp.where(self.used, mean, 0.0)).astype(expected.dtype)

    def _draw_background(self, key, expected) -> jax.Array:
        """Draw the background in the source region given the background region, of the shape of ``expected``."""
        if self.name == "wstat":
            shape = jnp.broadcast_to(jnp.asarray(self.background, expected.dtype), expected.shape)
            positive = shape > 0
            return jnp.where(positive, jax.random.gamma(key, jnp.where(positive, shape, 1.0)), 0.0) / self.ratio
        if self.name == "pgstat":
            return self.background + self.background_error * jax.random.normal(key, expected.shape, expected.dtype)
        if self.shape is None:
            background, error = (
                jnp.broadcast_to(jnp.asarray(x, expected.dtype), expected.shape)
                for x in (self.background, self.background_error)
            )
            return draw_truncated(key, background, error)
        return jax.random.gamma(key, self.shape) / self.rate

    def displacement_by_profile(self) -> float:
        """Return an estimate of the displacement of a posterior by a profiled background, in standard deviations.

        It is for an amplitude common to all channels, relative to the posterior with the background integrated out.
        That integral multiplies the likelihood of each channel by the standard deviation of b given the counts, whose
        logarithm has a slope in mu of about f / S, with f the share of the background in the variance of the net
        counts. The slopes add up to a displacement of sqrt(sum of f^2 / S). It is 0 for other statistics, and inf for
        traced data; ``background_statistics.txt`` among the results of the benchmarks has measured ones.
        """
        if self.name not in PROFILED:
            return 0.0
        try:
            variance, counts, used = (np.asarray(x) for x in (self.background_moments()[1], self.counts, self.used))
        except TRACED:
            return math.inf
        variance, counts = np.where(used, variance, 0.0), np.where(used, np.maximum(counts, 1.0), 1.0)
        return float(np.sqrt(np.sum((variance / (variance + counts)) ** 2 / counts)))

    def with_counts(self, counts: ArrayLike) -> "Statistic":
        """Return the statistic of other counts in the source region, (..., G), which may be traced.

        The integral over a marginal background keeps its number of powers or nodes, which are sufficient for counts
        simulated from the background and any source (``tests/spectra/test_marginal.py``).
        """
        statistic = dataclasses.replace(self, counts=jnp.where(self.used, floating(counts), 0.0))
        return statistic if self.name.startswith("chi2") else statistic._recomputed()

    def most_likely_background(self, expected: ArrayLike) -> jax.Array:
        """Return the most likely background in the source region for wstat and pgstat, for source counts (..., G)."""
        return self._deviance(self._without_padding(expected))[1]

    def with_data(self, counts: ArrayLike, background: ArrayLike | None = None) -> "Statistic":
        """Return the statistic of other counts, and of other background data if given, which may be traced."""
        statistic = self if background is None else dataclasses.replace(self, background=background)
        return statistic.with_counts(counts)

    def _recomputed(self) -> "Statistic":
        """Recompute everything that depends on the counts, which may be traced."""
        integral, counts = self.integral, self.counts
        if isinstance(integral, BackgroundSeries):
            shape, rate = (jnp.asarray(x, counts.dtype) for x in (self.shape, self.rate))
            integral = background_series(counts, shape, rate, integral.down.shape[-2] - 1)
        elif integral is not None:
            integral = integral._replace(counts=counts)
        return dataclasses.replace(self, saturated=_saturated(self.name, *self._data), integral=integral)

    @property
    def _data(self) -> tuple[Any, ...]:
        """Arrays on which the saturated model depends."""
        if self.name == "wstat":
            return self.counts, self.background
        return (self.counts, self.background_error) if self.name == "pgstat" else (self.counts,)

    def _without_padding(self, expected) -> jax.Array:
        """Replace expected counts in the padding by 1, so that a NaN there does not propagate."""
        return jnp.where(self.used, floating(expected), 1.0)

    def _variance(self, expected) -> jax.Array:
        """Return the variance of the counts for chi-square, given expected counts of the source."""
        variance = jnp.asarray(self.variance, expected.dtype)
        return variance + expected if self.name == "chi2_model" else variance

    def _deviance(self, expected) -> tuple[jax.Array, Any]:
        """Return the deviance, and the most likely background if the statistic has one."""
        if self.name == "cstat":
            return cash(self.counts, expected), 0.0
        if self.name == "wstat":
            return profiled_background(self.counts, expected, self.background, self.ratio)
        if self.name == "pgstat":
            return gaussian_background(self.counts, expected, self.background, self.background_error)
        if self.name == "marginal":
            return marginal_background(expected, self.integral), None
        residual = jnp.asarray(self.counts, expected.dtype) - expected
        return residual * residual / self._variance(expected), None


def prepare(
    name: str,
    counts: ArrayLike,
    background: ArrayLike | None = None,
    ratio: ArrayLike | None = None,
    background_error: ArrayLike | None = None,
    *,
    used: ArrayLike | None = None,
    prior_mean: ArrayLike | None = None,
    error: ArrayLike | None = None,
) -> Statistic:
    """Check the data of a statistic and precompute everything that depends only on them.

    Raises ValueError for an unknown name, missing or superfluous data, inconsistent shapes, and values outside their
    domain.

    Parameters
    ----------
    name : str
        ``cstat``: Poisson counts without background. ``wstat``: Poisson background counts, with the most likely
        background. ``marginal``: the background integrated out. For 0.8 Poisson counts per channel its best-fit
        normalisation is 2 % low, whereas that of ``wstat`` is 6 % high (``tests/spectra/test_marginal.py``); with
        ``background_error`` the errors are Gaussian, and the background is 0 or more with a flat prior. ``pgstat``:
        background with Gaussian errors, and the most likely background. ``chi2``: Gaussian counts
        with given errors, such as background-subtracted rates. ``chi2_gehrels``, ``chi2_data``, ``chi2_model``:
        Gaussian, background subtracted, with variance (1 + sqrt(S + 0.75))^2, max(S, 1), or that of the model, which
        needs several expected counts in every channel.
    counts : (..., G)
        Counts of the source region, of one spectrum or of a padded population.
    background : (..., G), optional
        Counts of the background region.
    ratio : (..., G), optional
        As in `profiled_background`; 1 by default.
    background_error : (..., G), optional
        Standard deviation of ``background``, for pgstat, and for marginal if the errors are Gaussian.
    used : (..., G), optional
        False for padding, whose values are ignored.
    prior_mean : (..., G), optional
        As in `background_posterior`, for marginal with Poisson counts only; needed for groups of different widths.
    error : (..., G), optional
        Standard deviation of the counts for chi2; for the other chi-square statistics a systematic error, whose square
        is added to their variance.

    Notes
    -----
    The counts of a group are sums over its channels. The ratio of a group is a single number, which is an approximation
    if the ratio varies within the group: `SpectrumStack.statistic` refuses W and marginal for a group whose ratios
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
    _check_options(name, background, ratio, background_error, prior_mean, error)
    if name == "chi2":
        S = _checked(name, "counts", counts, used, padding=0.0, low=-np.inf)
        variance = _checked(name, "error", error, used, padding=1.0, positive=True) ** 2
        return Statistic(name, S, used, -0.5 * np.log(2.0 * math.pi * variance), variance=variance)
    S = _checked(name, "counts", counts, used, padding=0.0, whole=name == "marginal")
    statistic = Statistic(name, S, used, None)
    if name == "cstat":
        return _with_saturated(statistic)
    r = _checked(name, "ratio", 1.0 if ratio is None else ratio, used, padding=1.0, positive=True)
    if background_error is not None:
        b = _checked(name, "background", background, used, padding=0.0, low=-np.inf) / r
        s = _checked(name, "background_error", background_error, used, padding=0.0) / r
        statistic = dataclasses.replace(statistic, background=b, background_error=s)
        if name == "marginal":
            _checked(name, "background", np.where(s > 0, 0.0, b), used, padding=0.0)  # known ones are 0 or more
            statistic = dataclasses.replace(statistic, integral=gaussian_background_integral(S, b, s))
        return _with_saturated(statistic)
    B = _checked(name, "background", 0.0 if background is None else background, used, padding=0.0)
    if name.startswith("chi2"):
        systematic = _checked(name, "error", 0.0 if error is None else error, used, padding=0.0)
        variance = np.where(used, _variance_of(name, S, B, r) + systematic**2, 1.0)
        saturated = -0.5 * np.log(2.0 * math.pi * variance) if variance.all() else None
        return dataclasses.replace(statistic, counts=S - B / r, variance=variance, saturated=saturated)
    statistic = dataclasses.replace(statistic, background=B, ratio=r)
    if name == "marginal":
        if prior_mean is not None:
            prior_mean = _checked(name, "prior_mean", prior_mean, used, padding=1.0, positive=True)
        shape, rate = np.ones(size), np.ones(size)
        for row in np.ndindex(size[:-1]):
            mask = used[row]
            mean = neighbouring_mean(B[row][mask]) if prior_mean is None else prior_mean[row][mask]
            shape[row][mask], rate[row][mask] = background_posterior(B[row][mask], r[row][mask], prior_mean=mean)
        integral = background_integral(S, shape, rate)
        statistic = dataclasses.replace(statistic, shape=shape, rate=rate, integral=integral)
    return _with_saturated(statistic)


def _check_options(name, background, ratio, background_error, prior_mean, error) -> None:
    """Raise ValueError for data that the statistic lacks or does not use."""
    if name == "chi2" and (error is None or background is not None or ratio is not None):
        raise ValueError(
            "chi2: expected the error of each channel, and counts from which a background is subtracted already; found "
            f"{'no error' if error is None else 'a background'}."
        )
    if error is not None and not name.startswith("chi2"):
        raise ValueError(f"{name}: error: expected none, because the counts are Poisson; found one. Use chi2.")
    with_background = ("wstat", "marginal", "pgstat")
    missing = {"background": name in with_background and background is None}
    missing["background_error"] = name == "pgstat" and background_error is None
    for quantity, is_missing in missing.items():
        if is_missing:
            raise ValueError(f"{name}: {quantity}: expected one number for each channel; found none.")
    if name == "cstat" and not (background is None and ratio is None):
        raise ValueError(
            "cstat: background: expected none; found one. Use wstat or marginal, or add a known background to the "
            "expected counts."
        )
    if name not in ("pgstat", "marginal") and background_error is not None:
        raise ValueError(f"{name}: background_error: expected none; found one. Use pgstat or marginal.")
    if prior_mean is not None and name != "marginal":
        raise ValueError(f"{name}: prior_mean: expected none; found one. Use marginal.")
    if prior_mean is not None and background_error is not None:
        raise ValueError(f"{name}: prior_mean: expected none for a background with Gaussian errors; found one.")


def _checked(name, quantity, values, used, *, padding, low=0.0, positive=False, whole=False) -> np.ndarray:
    """Return valid values of the channels as an array of the shape of ``used``, with `padding` where not used."""
    try:
        values = np.broadcast_to(np.asarray(values, float), used.shape)
    except ValueError:
        raise ValueError(
            f"{name}: {quantity}: expected the shape of the counts, {used.shape}; found {np.shape(values)}."
        ) from None
    valid = np.isfinite(values) & ((values > 0) if positive else (values >= low)) & ((values % 1 == 0) | (not whole))
    if (used & ~valid).any():
        index = tuple(int(i) for i in np.argwhere(used & ~valid)[0])
        kind = "positive numbers" if positive else "numbers of 0 or more" if low == 0.0 else "finite numbers"
        kind = "whole " + kind if whole else kind
        raise ValueError(f"{name}: {quantity}{list(index)}: expected {kind}; found {values[index]:g}.")
    return np.where(used, values, padding)


def _variance_of(name: str, S: np.ndarray, B: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Return the variance of S - B / ratio; for chi2_model without that of the source counts, mu."""
    if name == "chi2_gehrels":  # Gehrels 1986, ApJ 303, 336
        background_variance = np.where(B > 0, (1.0 + np.sqrt(B + 0.75)) ** 2, 0.0)
        return (1.0 + np.sqrt(S + 0.75)) ** 2 + background_variance / ratio**2
    # The variance of S is S, or mu + B / ratio in the model; the variance of B / ratio is B / ratio^2.
    source_variance = np.maximum(S, 1.0) if name == "chi2_data" else B / ratio
    return source_variance + B / ratio**2


def _with_saturated(statistic: Statistic) -> Statistic:
    """Return a statistic with the log likelihood of its saturated model."""
    saturated = elementwise(functools.partial(_saturated, statistic.name), *statistic._data)
    return dataclasses.replace(statistic, saturated=saturated)


@functools.partial(jax.jit, static_argnums=0)
def _saturated(name: str, counts, background=None):
    """Return the log likelihood of the saturated model.

    ``background`` is the background counts for wstat, and the error of the background for pgstat.
    """

    def poisson(n):
        return n * jnp.log(jnp.where(n > 0, n, 1.0)) - n - gammaln(n + 1.0)

    if name == "wstat":
        return poisson(counts) + poisson(background)
    if name == "pgstat":
        is_positive = background > 0
        log_density = jnp.log(math.sqrt(2.0 * math.pi) * jnp.where(is_positive, background, 1.0))
        return poisson(counts) - jnp.where(is_positive, log_density, 0.0)
    return poisson(counts)
