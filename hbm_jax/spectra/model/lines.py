"""Photons of one line in given energy bins, for folds that keep lines and bins themselves."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from hbm_jax.spectra.model.composition import Line
from hbm_jax.spectra.model.quadrature import integrals, padded_edges


def line_photons(line: Line, low: ArrayLike, high: ArrayLike) -> Callable:
    """Return a function that computes the photons of a line in energy bins, a pytree.

    Parameters
    ----------
    line : Line
        From `hbm_jax.spectra.model.composition.separated`.
    low, high : (..., num_bins)
        Limits of adjacent bins [keV]. Repetitions of the last bin are padding and contain no photons.

    Returns
    -------
    callable
        Takes parameter values as in `Component.on`; returns photons/cm^2/s, (..., num_bins). Absorbers are interpolated
        within each bin, also across an absorption edge there; `hbm_jax.spectra.photons` divides such bins.
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    num = low.shape[-1]
    rows = zip(low.reshape(-1, num), high.reshape(-1, num), strict=True)
    edges = padded_edges([*(np.unique(np.append(lowest, highest[-1])) for lowest, highest in rows), np.ones(num + 1)])
    return integrals(None, (line,), edges[:-1].reshape(*low.shape[:-1], num + 1))
