"""Vectorised R-hat and effective sample sizes of many quantities.

The definitions are those of `hbm_jax.inference.verdict.diagnose` (a test compares them), without a Python loop over
quantities: one sort gives ranks and tail indicators, and real FFTs give the autocovariances.
"""

from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.special import ndtri

from hbm_jax.inference.sampler.ensemble.statistics import TAIL
from hbm_jax.inference.verdict import resolution


class ManyDiagnostics(NamedTuple):
    """Diagnostics of many quantities, arrays of the shape of the quantities."""

    r_hat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray


def diagnose_many(draws: np.ndarray) -> ManyDiagnostics:
    """Compute R-hat and effective sample sizes of many quantities.

    Parameters
    ----------
    draws : (..., chain, draw)
        Draws of quantities of any shape. With an odd number of draws the middle one is not used.

    Returns
    -------
    ManyDiagnostics
        Rank-normalised split R-hat, bulk and tail effective sample sizes (Vehtari et al. 2021, Bayesian Analysis 16,
        667). NaN for a quantity that is constant or not finite. For any other quantity, R-hat is infinite and an ESS 0
        if it cannot be computed.
    """
    *shape, num_chains, num_draws = draws.shape
    half = num_draws // 2
    flat = draws.reshape(-1, num_chains, num_draws)
    split_draws = np.concatenate([flat[..., :half], flat[..., num_draws - half :]], axis=1).reshape(len(flat), -1)
    valid = np.isfinite(split_draws).all(1) & (split_draws.max(axis=1) > split_draws.min(axis=1))
    r_hat, ess_bulk, ess_tail = (np.full(len(flat), np.nan) for _ in range(3))
    if valid.any():
        valid_draws, num_total = split_draws[valid], split_draws.shape[1]
        chain_shape = (-1, 2 * num_chains, half)
        ranks, ordered = _ranks(valid_draws)
        # Normal scores depend on the rank alone: one table for all quantities.
        scores = ndtri((np.arange(1, num_total + 1) - 0.375) / (num_total + 0.25))
        z = scores[ranks].reshape(chain_shape)
        median = 0.5 * (ordered[:, (num_total - 1) // 2] + ordered[:, num_total // 2])
        folded = scores[_ranks(np.abs(valid_draws - median[:, None]))[0]].reshape(chain_shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            r_hat[valid] = np.maximum(_r_hat(z), _r_hat(folded))
            ess_bulk[valid] = _ess(z)
            tail_ranks = [int(np.floor(q * (num_total - 1))) for q in TAIL]
            ess_tail[valid] = np.minimum(
                *(_ess((ranks <= tail_rank).astype(float).reshape(chain_shape)) for tail_rank in tail_ranks)
            )
        for values, fallback in ((r_hat, np.inf), (ess_bulk, 0.0), (ess_tail, 0.0)):
            values[valid & np.isnan(values)] = fallback
    return ManyDiagnostics(*(values.reshape(shape) for values in (r_hat, ess_bulk, ess_tail)))


def _ranks(values):
    """Return ranks from 0 along the last axis, and the sorted values."""
    order = np.argsort(values, axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(values.shape[1]), values.shape), axis=1)
    return ranks, np.take_along_axis(values, order, axis=1)


def _r_hat(draws):
    """Return R-hat of (..., chain, draw), for split chains."""
    num_draws = draws.shape[-1]
    within = draws.var(axis=-1, ddof=1).mean(-1)
    between = draws.mean(axis=-1).var(axis=-1, ddof=1)
    return np.sqrt((num_draws - 1) / num_draws + between / within)


def _ess(draws):
    """Return the ESS of (quantity, chain, draw), for split chains, by Geyer's initial monotone sequence as in Stan."""
    num_chains, num_draws = draws.shape[1:]
    num_total = num_chains * num_draws
    padded = fft.next_fast_len(2 * num_draws, real=True)
    spectrum = fft.rfft(draws - draws.mean(axis=-1, keepdims=True), padded)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    covariance = fft.irfft(power, padded)[..., :num_draws] / num_draws
    within = covariance[:, 0] * num_draws / (num_draws - 1.0)
    variance = covariance[:, 0] + (draws.mean(axis=-1).var(axis=-1, ddof=1) if num_chains > 1 else 0.0)
    rho = 1.0 - (within[:, None] - covariance) / variance[:, None]
    rho[:, 0] = 1.0
    even = num_draws - num_draws % 2
    pairs = rho[:, 0:even:2] + rho[:, 1:even:2]
    # Initial positive sequence of sums of neighbours, made monotone.
    positive = np.logical_and.accumulate(pairs > 0, axis=1)
    num_positive = positive.sum(axis=1)
    monotone = np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=1)
    next_rho = np.take_along_axis(rho, np.minimum(2 * num_positive, num_draws - 1)[:, None], axis=1)[:, 0]
    autocorrelation_time = -1.0 + 2.0 * monotone.sum(axis=1) + np.where(next_rho > 0, next_rho, 0.0)
    ess = num_total / np.maximum(autocorrelation_time, 1.0 / np.log10(num_total))
    return np.where(np.ptp(draws, axis=(1, 2)) == 0, num_total, ess)


def unresolved(positions: np.ndarray, sites: dict[str, np.ndarray], labels: np.ndarray) -> list[str]:
    """Return the sampled parameters of each slot that never move or are limited by floating-point resolution.

    Parameters
    ----------
    positions : (slot, draw, chain, size)
        Unconstrained draws.
    sites : dict of str to array (slot, draw, chain, ...)
        Draws of sites.
    labels : (size,) of str
        Site of each component of the positions.

    Returns
    -------
    list of str
        A text for each slot; empty where all parameters move and are resolved.
    """
    num_slots = len(positions)
    names = dict.fromkeys(labels)
    draws = {name: positions[..., labels == name] for name in names}
    # Constrained values of the same size are checked as well: a transform may lose the resolution of the position.
    same_size = [name for name in names if name in sites and sites[name][0, 0, 0].size == (labels == name).sum()]
    texts: list[list[str]] = [[] for _ in range(num_slots)]
    for name, values in (*draws.items(), *((name, sites[name]) for name in same_size)):
        stuck, coarse = resolution(values.reshape(num_slots, -1, (labels == name).sum()))
        for slot in range(num_slots):
            for applies, text in ((stuck[slot].any(), "never moved"), (coarse[slot].any(), "moved in coarse steps")):
                if applies:
                    texts[slot].append(f"{name} {text}")
    return [", ".join(dict.fromkeys(slot_texts)) for slot_texts in texts]
