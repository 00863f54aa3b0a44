"""R-hat and effective sample sizes of many fits, and parameters that never move."""

from typing import NamedTuple

import numpy as np

from hbm_jax.inference.sampler.ensemble.convergence import r_hat_and_ess
from hbm_jax.inference.sampler.ensemble.statistics import WORST
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
    flat = draws.reshape(-1, *draws.shape[-2:])
    valid = np.isfinite(flat).all(axis=(1, 2)) & (np.ptp(flat, axis=(1, 2)) > 0)
    columns = np.full((3, len(flat)), np.nan)
    if valid.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            found = r_hat_and_ess(flat[valid])
        columns[:, valid] = [
            np.where(np.isnan(values), worst, values) for values, worst in zip(found, WORST[:3], strict=True)
        ]
    return ManyDiagnostics(*columns.reshape(3, *draws.shape[:-2]))


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
