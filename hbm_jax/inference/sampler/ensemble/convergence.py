"""Rank-normalised R-hat, effective sample sizes and Monte Carlo errors of many quantities at once.

Definitions and numbers are those of ArviZ (Vehtari et al. 2021, Bayesian Analysis 16, 667), which tests compare. ArviZ
loops over quantities and lags in Python, and its import takes as long as that of JAX.
"""

from collections.abc import Callable
from functools import wraps

import numpy as np
from scipy import fft
from scipy.special import ndtri

TAIL = (0.05, 0.95)
CHUNK = 10**6  # draws of all quantities that are handled at once, to limit the memory
FEWEST_DRAWS = 4  # per chain; with fewer, every result is NaN


def _in_chunks(fn: Callable) -> Callable:
    """Apply a function of draws (n, chain, draw) that returns arrays (n,) to few quantities at a time."""

    @wraps(fn)
    def chunked(draws):
        step = max(1, CHUNK // max(1, draws[:1].size))
        parts = [fn(draws[first : first + step]) for first in range(0, max(1, len(draws)), step)]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    return chunked


@_in_chunks
def r_hat_and_ess(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rank-normalised split R-hat, and bulk and tail effective sample sizes.

    Parameters
    ----------
    draws : (n, chain, draw)
        Draws of n quantities. With an odd number of draws, the split chains do not have the middle one.

    Returns
    -------
    three (n,) arrays
        NaN where a quantity has a NaN or cannot be judged; R-hat is NaN with one chain.
    """
    if draws.shape[-1] < FEWEST_DRAWS:
        return tuple(np.full(len(draws), np.nan) for _ in range(3))  # type: ignore[return-value]
    halves = split(draws)
    scores = normal_scores(halves)
    folded = normal_scores(np.abs(halves - np.median(halves, axis=(1, 2), keepdims=True)))
    levels = np.quantile(draws, TAIL, axis=(1, 2))[..., None, None]
    tails = [effective_size(split((draws <= level).astype(float))) for level in levels]
    r_hat = np.maximum(_r_hat(scores), _r_hat(folded))
    valid = ~np.isnan(draws).any(axis=(1, 2))
    results = (r_hat if draws.shape[1] > 1 else np.nan, effective_size(scores), np.minimum(*tails))
    return tuple(np.where(valid, values, np.nan) for values in results)  # type: ignore[return-value]


@_in_chunks
def monte_carlo_errors(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Monte Carlo errors of mean and standard deviation of (n, chain, draw), two (n,) arrays."""
    if draws.shape[-1] < FEWEST_DRAWS:
        return np.full(len(draws), np.nan), np.full(len(draws), np.nan)
    size = effective_size(split(draws))
    squares = (draws - draws.mean(axis=(1, 2), keepdims=True)) ** 2
    variance = squares.mean(axis=(1, 2))
    variance_of_squares = ((squares**2).mean(axis=(1, 2)) - variance**2) / size
    return draws.std(axis=(1, 2), ddof=1) / np.sqrt(size), np.sqrt(variance_of_squares / variance / 4.0)


def split(draws: np.ndarray) -> np.ndarray:
    """Return the first halves of all chains followed by the last halves, of (n, chain, draw)."""
    half = draws.shape[-1] // 2
    return np.concatenate([draws[..., :half], draws[..., draws.shape[-1] - half :]], axis=1)


def normal_scores(draws: np.ndarray) -> np.ndarray:
    """Return normal scores of the ranks of (n, chain, draw) among all draws of a quantity; equal draws share one."""
    positions = ranks(draws.reshape(len(draws), -1))
    num = positions.shape[1]
    # A table of half ranks, which are fewer than draws; NaN at 0, for quantities with a NaN.
    table = ndtri((0.5 * np.arange(2 * num + 1) - 0.375) / (num + 0.25))
    return table[np.nan_to_num(2.0 * positions).astype(int)].reshape(draws.shape)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks from 1 within each row of (n, num); equal values share their mean rank.

    All are NaN in a row with a NaN. `scipy.stats.rankdata` does the same, but its import takes as long as that of JAX.
    """
    num = values.shape[1]
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    new = ordered[:, 1:] != ordered[:, :-1]
    positions = np.broadcast_to(np.arange(1.0, num + 1.0), values.shape)
    if not new.all():
        edge = np.ones((len(values), 1), bool)
        first = np.maximum.accumulate(np.where(np.hstack([edge, new]), positions, 0.0), axis=1)
        last = np.minimum.accumulate(np.where(np.hstack([new, edge]), positions, np.inf)[:, ::-1], axis=1)[:, ::-1]
        positions = 0.5 * (first + last)
    result = np.empty(values.shape)
    np.put_along_axis(result, order, positions, axis=1)
    result[np.isnan(values).any(axis=1)] = np.nan
    return result


def _r_hat(draws):
    """Return R-hat of (n, chain, draw)."""
    num_draws = draws.shape[-1]
    within = draws.var(axis=-1, ddof=1).mean(axis=-1)
    between = num_draws * draws.mean(axis=-1).var(axis=-1, ddof=1)
    return np.sqrt((between / within + num_draws - 1) / num_draws)


def effective_size(draws: np.ndarray) -> np.ndarray:
    """Return effective sample sizes for the mean of (n, chain, draw), by Geyer's initial monotone sequence.

    The number of draws for a quantity that never varies.
    """
    num_chains, num_draws = draws.shape[1:]
    num_total = num_chains * num_draws
    if num_draws < 2:
        return np.full(len(draws), np.nan)
    padded = fft.next_fast_len(2 * num_draws, real=True)
    spectrum = fft.rfft(draws - draws.mean(axis=-1, keepdims=True), padded)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    covariance = fft.irfft(power, padded)[:, :num_draws] / num_draws
    within = covariance[:, :1] * num_draws / (num_draws - 1.0)
    variance = covariance[:, :1]
    if num_chains > 1:
        variance = variance + draws.mean(axis=-1).var(axis=-1, ddof=1)[:, None]
    rho = 1.0 - (within - covariance) / variance
    rho[:, 0] = 1.0
    even = num_draws - num_draws % 2
    pairs = rho[:, 0:even:2] + rho[:, 1:even:2]
    # The positive sequence ends before the first pair that is not positive, or close to the last lag.
    positive = np.logical_and.accumulate(pairs[:, : max((num_draws - 3) // 2, 0)] > 0.0, axis=1)
    num_positive = positive.sum(axis=1)[:, None]
    monotone = np.minimum.accumulate(pairs[:, : positive.shape[1]], axis=1)
    following = np.take_along_axis(rho, 2 * num_positive, axis=1)
    kept = (following > 0.0) | (np.take_along_axis(pairs, num_positive, axis=1) >= 0.0) | (num_positive == 0)
    time = -1.0 + 2.0 * np.where(positive, monotone, 0.0).sum(axis=1) + np.where(kept, following, 0.0)[:, 0]
    size = num_total / np.maximum(time, 1.0 / np.log10(num_total))
    size = np.where(np.isnan(rho[:, 1]), np.nan, size)
    return np.where(np.ptp(draws, axis=(1, 2)) == 0, num_total, size)
