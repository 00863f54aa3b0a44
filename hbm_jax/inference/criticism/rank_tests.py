"""Tests of the uniformity of ranks, and the smallest errors of posteriors that they detect.

Three tests share the significance level. The mean and the mean square of the normal scores of the ranks are the most
powerful tests for normal posteriors that are shifted or have the wrong width: a z-test and the chi-square test of
standardised errors, in a form whose distribution does not depend on that of the parameters. The empirical distribution
function (ECDF) is for all other shapes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import gammaln

LEVEL = 0.01  # probability that a correct program fails, over all its parameters together
RANKS = 100  # number of possible ranks: 99 draws of each posterior are kept
SIMULATIONS = 100_000  # simulated sets of uniform ranks, for the bands
LOCATION_SHARE, WIDTH_SHARE, ECDF_SHARE = 0.4, 0.4, 0.2  # of the level of a quantity, for each of its tests
POWER = 0.9  # probability with which `detectable_errors` are found
POWER_SIMULATIONS = 1000  # simulated sets of ranks for each error tried; the power is known to 1 %
NODES = 500  # true values, of equal probability, at which probabilities of ranks are averaged
LARGEST_ERROR = 3.0  # in posterior standard deviations or e-foldings of the width

# Normal scores of the ranks, and moments of their squares under uniform ranks.
SCORES = stats.norm.ppf((np.arange(RANKS) + 0.5) / RANKS)
MEAN_SQUARE = float((SCORES**2).mean())
SD_OF_SQUARE = float((SCORES**2).std())
SKEWNESS_OF_SQUARE = float(stats.skew(SCORES**2))


class Detectable(NamedTuple):
    """Smallest errors of the posterior of one quantity that a calibration detects with a probability of 90 %.

    Attributes
    ----------
    bias : float
        Displacement of the posterior, in posterior standard deviations.
    narrow, wide : float
        Ratio of the width of the posterior to the right one, below and above 1.
    """

    bias: float
    narrow: float
    wide: float

    def __str__(self):
        """Describe the errors."""
        narrow, wide = 100 * (1 - self.narrow), 100 * (self.wide - 1)
        return (
            f"a bias of {self.bias:.2g} posterior standard deviations, or a width {narrow:.0f} % too small or "
            f"{wide:.0f} % too large"
        )


def judge_ranks(ranks: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Test whether ranks are uniform.

    Parameters
    ----------
    ranks : DataFrame
        Ranks from 0 to 99, (replicate, parameter).
    seed : int
        Seed of the simulated uniform ranks.

    Returns
    -------
    pandas.DataFrame
        As `hbm_jax.inference.Calibration.table`.
    """
    histograms = np.stack([np.bincount(column, minlength=RANKS) for _, column in ranks.items()])
    p, location_z, _ = p_values(histograms, seed)
    # The variance is about the mean, because scores of shifted posteriors are also far from 0.
    bias = -(histograms @ SCORES) / len(ranks)
    variance = histograms @ SCORES**2 / len(ranks) - bias**2
    width_z = (variance - MEAN_SQUARE) / (SD_OF_SQUARE / np.sqrt(len(ranks)))
    table = pd.DataFrame(
        {
            "p": p,
            "bias": bias,
            "width": np.sqrt(MEAN_SQUARE / np.maximum(variance, 1e-12)),
            "verdict": [_describe(*row) for row in zip(p, location_z, width_z, strict=True)],
        },
        index=list(ranks),
    )
    table.loc[table["p"] >= LEVEL / len(table), "verdict"] = "uniform"
    return table


def p_values(histograms: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test histograms of ranks (set, rank), all of the same number of ranks.

    Returns
    -------
    p : (set,)
        Combined p-values, conservative like those of Bonferroni.
    location_z, width_z : (set,)
        Normal deviates of the mean and of the mean square of the normal scores.
    """
    p, location_z, width_z = _score_tests(histograms)
    reference = band_statistics(int(histograms[0].sum()), seed)
    p_ecdf = (1 + np.searchsorted(reference, _unevenness(histograms), side="right")) / (1 + len(reference))
    return np.minimum(p, p_ecdf / ECDF_SHARE), location_z, width_z


def _score_tests(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the results of `p_values` without the ECDF: each p-value is divided by its share of the level."""
    num_replicates = int(histograms[0].sum())
    location_z = histograms @ SCORES / np.sqrt(num_replicates * MEAN_SQUARE)
    excess = (histograms @ SCORES**2 / num_replicates - MEAN_SQUARE) / (SD_OF_SQUARE / np.sqrt(num_replicates))
    # A gamma distribution with the first three moments of the mean square.
    gamma = stats.pearson3(SKEWNESS_OF_SQUARE / np.sqrt(num_replicates))
    width_z = np.where(excess > 0, stats.norm.isf(gamma.sf(excess)), stats.norm.ppf(gamma.cdf(excess)))
    p_location, p_width = (2.0 * stats.norm.sf(np.abs(z)) for z in (location_z, width_z))
    return np.minimum(1.0, np.minimum(p_location / LOCATION_SHARE, p_width / WIDTH_SHARE)), location_z, width_z


def _describe(p, location_z, width_z) -> str:
    """Describe the error of a posterior that fails."""
    if abs(location_z) > 3 and abs(location_z) > abs(width_z):
        return "biased: posteriors lie too " + ("low" if location_z > 0 else "high")
    if width_z > 3:
        return "overconfident: posteriors are too narrow"
    if width_z < -3:
        return "underconfident: posteriors are too wide"
    return f"uneven (p = {p:.1g})"


@functools.lru_cache(maxsize=8)
def detectable_errors(num_replicates: int, num_quantities: int, seed: int = 0) -> Detectable:
    """Compute the smallest errors in one of several quantities that `judge_ranks` detects with 90 % probability.

    Simulated ranks are those of normal posteriors that are shifted, too narrow or too wide. The test of the ECDF is
    left out, because it detects hardly any more of these errors.

    Parameters
    ----------
    num_replicates, num_quantities : int
        Number of simulated data sets, and of quantities that share the level.
    seed : int
        Seed of the simulation.
    """

    def smallest(probabilities: Callable[[float], np.ndarray]) -> float:
        def power_deficit(error):
            rng = np.random.default_rng(seed)
            histograms = rng.multinomial(num_replicates, probabilities(error), POWER_SIMULATIONS)
            return POWER - (_score_tests(histograms)[0] < LEVEL / num_quantities).mean()

        if power_deficit(LARGEST_ERROR) > 0:
            return np.inf
        return float(brentq(power_deficit, 0.0, LARGEST_ERROR, xtol=1e-3))

    return Detectable(
        bias=smallest(lambda shift: rank_probabilities(shift, 1.0)),
        narrow=float(np.exp(-smallest(lambda log_ratio: rank_probabilities(0.0, np.exp(-log_ratio))))),
        wide=float(np.exp(smallest(lambda log_ratio: rank_probabilities(0.0, np.exp(log_ratio))))),
    )


def rank_probabilities(shift: float, width: float) -> np.ndarray:
    """Return the probability of each rank for a normal posterior with an error of its location or width.

    Parameters
    ----------
    shift : float
        Displacement in standard deviations of the right posterior.
    width : float
        Ratio of the standard deviation to that of the right posterior.
    """
    nodes = (np.arange(NODES) + 0.5) / NODES
    below = np.clip(stats.norm.cdf((stats.norm.ppf(nodes) - shift) / width), 1e-12, 1 - 1e-12)[:, None]
    rank = np.arange(RANKS)
    log_binomial = gammaln(RANKS) - gammaln(rank + 1) - gammaln(RANKS - rank)
    probabilities = np.exp(log_binomial + rank * np.log(below) + (RANKS - 1 - rank) * np.log1p(-below)).mean(axis=0)
    return probabilities / probabilities.sum()


@functools.lru_cache(maxsize=8)
def band_statistics(num_replicates: int, seed: int = 0) -> np.ndarray:
    """Simulate the test statistic of the ECDF for uniform ranks; return its values in ascending order.

    The quantile at ``1 - coverage`` is the pointwise level of a band that contains the whole ECDF with that coverage
    (Sailynoja, Burkner & Vehtari 2022, Statistics and Computing 32, 32).
    """
    rng = np.random.default_rng(seed)
    probabilities = np.full(RANKS, 1.0 / RANKS)
    return np.sort(
        np.concatenate(
            [_unevenness(rng.multinomial(num_replicates, probabilities, 1000)) for _ in range(SIMULATIONS // 1000)]
        )
    )


def _unevenness(histograms):
    """Return the smallest two-sided binomial p-value of the ECDF over all ranks, (set, rank) -> (set,)."""
    num_replicates = int(histograms[0].sum())
    counts = histograms.cumsum(axis=1)[:, :-1]
    cdf = _binomial_cdf(num_replicates)
    rank = np.arange(RANKS - 1)
    lower_tail = cdf[rank, counts]
    upper_tail = 1.0 - np.where(counts > 0, cdf[rank, np.maximum(counts - 1, 0)], 0.0)
    return (2.0 * np.minimum(lower_tail, upper_tail)).min(axis=1)


@functools.lru_cache(maxsize=8)
def _binomial_cdf(num_replicates):
    """Return the CDF of the number of ranks below each rank, (rank, count)."""
    fractions = np.arange(1, RANKS) / RANKS
    return stats.binom.cdf(np.arange(num_replicates + 1), num_replicates, fractions[:, None])


def band(num_replicates: int, coverage: float = 0.95, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the simultaneous band of the ECDF of uniform ranks.

    Returns
    -------
    fractions, lower, upper : (99,)
        Expected ECDF at each rank, and bounds of the difference between the ECDF and its expectation.
    """
    level = np.quantile(band_statistics(num_replicates, seed), 1.0 - coverage)
    fractions = np.arange(1, RANKS) / RANKS
    lower = stats.binom.ppf(level / 2, num_replicates, fractions) / num_replicates
    upper = stats.binom.ppf(1 - level / 2, num_replicates, fractions) / num_replicates
    return fractions, lower - fractions, upper - fractions
