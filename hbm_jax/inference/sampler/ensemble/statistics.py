"""R-hat, effective sample sizes and Monte Carlo errors of draws, by chains or by superchains.

Hundreds of short chains have too few draws each for R-hat. Chains of one superchain share their start; nested R-hat
compares the means of superchains with the spread within them (Margossian et al. 2024, Bayesian Analysis,
doi:10.1214/24-BA1453). It is close to 1 only if the chains have forgotten their start, and if the mean of each
superchain is precise.
"""

from typing import Any

import numpy as np
import xarray as xr

from hbm_jax.inference.sampler.ensemble.convergence import TAIL, monte_carlo_errors, normal_scores, r_hat_and_ess

COLUMNS = ["r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_sd"]
WORST = [np.inf, 0.0, 0.0, np.inf, np.inf]  # values of the columns where a statistic cannot be computed


def statistics(elements: np.ndarray, num_superchains: int = 0) -> np.ndarray:
    """Return R-hat, bulk and tail ESS and the Monte Carlo errors of mean and standard deviation, (n, 5).

    Parameters
    ----------
    elements : (chain, draw, n)
        Draws of quantities that vary.
    num_superchains : int
        Number of superchains; chains of one follow each other. 0 if every chain has its own start.

    Returns
    -------
    (n, 5) array
        With superchains, R-hat is `nested_r_hat`, and sizes and errors are the worse of those from autocorrelations
        and from the scatter of the means of superchains.
    """
    quantities = np.moveaxis(elements, -1, 0)
    columns = [*r_hat_and_ess(quantities), *monte_carlo_errors(quantities)]
    if num_superchains:
        limits = _limits(elements, num_superchains)
        columns = [
            nested_r_hat(elements, num_superchains),
            *map(np.fmin, columns[1:3], limits[:2]),
            *map(np.fmax, columns[3:], limits[2:]),
        ]
    filled = [np.where(np.isnan(column), worst, column) for column, worst in zip(columns, WORST, strict=True)]
    if len(elements) == 1:
        filled[0] = np.full(elements.shape[-1], np.nan)
    return np.stack(filled, axis=-1)


def element_statistics(variable: xr.DataArray, num_superchains: int = 0) -> np.ndarray:
    """Return `statistics` of every element of a variable, (n, 5); NaN for elements that never vary."""
    values = variable.transpose("chain", "draw", ...).to_numpy().astype(float)
    elements = values.reshape(*values.shape[:2], -1)
    table = np.full((elements.shape[-1], len(COLUMNS)), np.nan)
    varies = elements.max(axis=(0, 1)) != elements.min(axis=(0, 1))
    if varies.any():
        # Chains stuck at different values have zero variance within chains, so their R-hat is infinite.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            table[varies] = statistics(elements[..., varies], num_superchains)
    return table


def nested_r_hat(draws: np.ndarray, num_superchains: int) -> np.ndarray:
    """Return rank-normalised nested R-hat, the larger of that of the draws and of their distances from the median.

    Parameters
    ----------
    draws : (chain, draw, n)
        Draws; chains of one superchain follow each other.
    num_superchains : int
        Number of superchains, which divides that of chains.

    Returns
    -------
    (n,) array
        sqrt(1 + B / W): B is the variance of the means of superchains, W the mean variance within superchains.
    """
    folded = np.abs(draws - np.median(draws, axis=(0, 1)))
    ratios = [_variance_ratio(_normal_scores(values), num_superchains)[0] for values in (draws, folded)]
    return np.sqrt(1.0 + np.maximum(*ratios))


def _variance_ratio(draws, num_superchains: int) -> tuple[np.ndarray, np.ndarray]:
    """Return B / W and B of draws (chain, draw, n)."""
    num_chains, num_draws = draws.shape[:2]
    nested = draws.reshape(num_superchains, num_chains // num_superchains, num_draws, -1)
    chain_means = nested.mean(axis=2)
    between = chain_means.mean(axis=1).var(axis=0, ddof=1)
    within = nested.var(axis=2, ddof=1).mean(axis=(0, 1))
    if chain_means.shape[1] > 1:
        within = within + chain_means.var(axis=1, ddof=1).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return between / within, between


def _normal_scores(draws):
    """Return normal scores of the ranks of draws (chain, draw, n) among all chains and draws; NaN if not finite."""
    scores = np.moveaxis(normal_scores(np.moveaxis(draws, -1, 0)), 0, -1)
    return np.where(np.isfinite(draws).all(axis=(0, 1)), scores, np.nan)


def _limits(draws, num_superchains: int) -> list[np.ndarray]:
    """Return upper limits of bulk and tail ESS, and lower limits of the errors, from means of (super)chains."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bulk = num_superchains / _variance_ratio(_normal_scores(draws), num_superchains)[0]
        below = [(draws <= np.quantile(draws, level, axis=(0, 1))).astype(float) for level in TAIL]
        tails = [num_superchains / _variance_ratio(values, num_superchains)[0] for values in below]
        squares = (draws - draws.mean(axis=(0, 1))) ** 2
        errors = [
            np.sqrt(np.maximum(*(_variance_ratio(values, num)[1] / num for num in (num_superchains, len(draws)))))
            for values in (draws, squares)
        ]
        return [bulk, np.fmin(*tails), errors[0], errors[1] / (2.0 * draws.std(axis=(0, 1)))]


def min_bfmi(sample_stats: xr.Dataset, num_superchains: int = 0) -> float:
    """Return the smallest E-BFMI over chains, or over superchains, whose short chains are pooled."""
    energy = sample_stats["energy"].transpose("chain", "draw").to_numpy()
    if "n_steps" in sample_stats:  # only trajectories have an energy, not independent proposals
        energy = energy[:, (sample_stats["n_steps"].transpose("chain", "draw").to_numpy() > 0).all(axis=0)]
    if not num_superchains:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.min((np.diff(energy) ** 2).mean(axis=1) / energy.var(axis=1, ddof=1)))
    nested = energy.reshape(num_superchains, -1, energy.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.min((np.diff(nested, axis=2) ** 2).mean(axis=(1, 2)) / nested.var(axis=(1, 2))))


def superchains_of(posterior: Any, num_superchains: int) -> Any:
    """Return draws by name, (chain, draw, ...), with the draws of each superchain as those of one chain."""
    if not num_superchains:
        return posterior
    merged = {}
    for name, variable in posterior.items():
        values = variable.transpose("chain", "draw", ...)
        array = values.to_numpy().reshape(num_superchains, -1, *values.shape[2:])
        merged[name] = xr.DataArray(array, {d: values[d] for d in values.dims[2:] if d in values.coords}, values.dims)
    return merged
