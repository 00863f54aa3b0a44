"""R-hat and effective sample sizes of very many quantities at once.

The same definitions as `diagnostics.diagnose` (a test compares them), without a Python loop over quantities: one sort
gives ranks and tails, autocovariances come from real FFTs.
"""

from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.special import ndtri

from hbm_jax.inference.verdict import TAIL


class ManyDiagnostics(NamedTuple):
    """Diagnostics of quantities, each of the shape of the quantities."""

    r_hat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray


def diagnose_many(draws: np.ndarray) -> ManyDiagnostics:
    """Diagnose many quantities.

    Parameters
    ----------
    draws : (..., chain, draw)
        Draws of quantities of any shape; of an odd number the middle one is left out.

    Returns
    -------
    ManyDiagnostics
        Rank-normalised split R-hat, bulk and tail effective sample sizes (Vehtari et al. 2021, Bayesian Analysis 16,
        667); NaN for a quantity that does not vary or is not finite. What cannot be computed for another is an R-hat
        of infinity or an ESS of 0.
    """
    *shape, num_chains, num_draws = draws.shape
    half = num_draws // 2
    flat = draws.reshape(-1, num_chains, num_draws)
    split = np.concatenate([flat[..., :half], flat[..., num_draws - half :]], axis=1).reshape(len(flat), -1)
    good = np.isfinite(split).all(1) & (split.max(axis=1) > split.min(axis=1))
    r_hat, bulk, tail = (np.full(len(flat), np.nan) for _ in range(3))
    if good.any():
        x, total = split[good], split.shape[1]
        chains = (-1, 2 * num_chains, half)
        ranks, ordered = _ranks(x)
        # The score depends on the rank alone.
        scores = ndtri((np.arange(1, total + 1) - 0.375) / (total + 0.25))
        z = scores[ranks].reshape(chains)
        middle = 0.5 * (ordered[:, (total - 1) // 2] + ordered[:, total // 2])
        folded = scores[_ranks(np.abs(x - middle[:, None]))[0]].reshape(chains)
        with np.errstate(divide="ignore", invalid="ignore"):
            r_hat[good] = np.maximum(_r_hat(z), _r_hat(folded))
            bulk[good] = _ess(z)
            cuts = [int(np.floor(q * (total - 1))) for q in TAIL]
            tail[good] = np.minimum(*(_ess((ranks <= cut).astype(float).reshape(chains)) for cut in cuts))
        for values, worst in ((r_hat, np.inf), (bulk, 0.0), (tail, 0.0)):
            values[good & np.isnan(values)] = worst
    return ManyDiagnostics(*(values.reshape(shape) for values in (r_hat, bulk, tail)))


def _ranks(x):
    """Ranks from 0 along the last axis, and the values in order."""
    order = np.argsort(x, axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(x.shape[1]), x.shape), axis=1)
    return ranks, np.take_along_axis(x, order, axis=1)


def _r_hat(x):
    """Of (..., chain, draw), chains split already."""
    num = x.shape[-1]
    within = x.var(axis=-1, ddof=1).mean(-1)
    between = x.mean(axis=-1).var(axis=-1, ddof=1)
    return np.sqrt((num - 1) / num + between / within)


def _ess(x):
    """Of (quantity, chain, draw), chains split already: Geyer's initial monotone sequence, as in Stan."""
    num_chains, num = x.shape[1:]
    total = num_chains * num
    padded = fft.next_fast_len(2 * num, real=True)
    spectrum = fft.rfft(x - x.mean(axis=-1, keepdims=True), padded)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    covariance = fft.irfft(power, padded)[..., :num] / num
    within = covariance[:, 0] * num / (num - 1.0)
    variance = covariance[:, 0] + (x.mean(axis=-1).var(axis=-1, ddof=1) if num_chains > 1 else 0.0)
    rho = 1.0 - (within[:, None] - covariance) / variance[:, None]
    rho[:, 0] = 1.0
    even = num - num % 2
    pairs = rho[:, 0:even:2] + rho[:, 1:even:2]
    # Sums of neighbours, as long as they are positive, and never rising.
    positive = np.logical_and.accumulate(pairs > 0, axis=1)
    last = positive.sum(axis=1)
    falling = np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=1)
    beyond = np.take_along_axis(rho, np.minimum(2 * last, num - 1)[:, None], axis=1)[:, 0]
    time = -1.0 + 2.0 * falling.sum(axis=1) + np.where(beyond > 0, beyond, 0.0)
    ess = total / np.maximum(time, 1.0 / np.log10(total))
    return np.where(np.ptp(x, axis=(1, 2)) == 0, total, ess)
