"""Photons of emission lines in energy bins, exact for lines of any width."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpy.typing import NDArray

from hbm_jax.spectra.model.composition import Line

Floats = NDArray[np.float64]
_NODES = 2  # Gauss-Legendre nodes for the mean of a factor over a part of a bin
_WIDTH = 0.02  # of the parts of a bin in ln E; exceeded in the widest tenth of the bins
_MOST = 16  # parts of a bin


def line_photons(line: Line, low: Floats, high: Floats) -> Callable:
    """Return a function that computes the photons of a line in energy bins.

    Parameters
    ----------
    line : Line
        From `hbm_jax.spectra.model.composition.separated`.
    low, high : (..., num_bins)
        Limits of the bins [keV].

    Returns
    -------
    callable
        Takes parameter values as `Component.on` describes; returns photons/cm^2/s in each bin, (..., num_bins). It is a
        pytree.

    Notes
    -----
    The photons of the line without its factors have a closed form. The factors are averaged over each bin, because a
    response does not resolve energies within a bin; where more than a tenth of the bins are wider than 2 %, over up to
    16 parts of each bin.
    """
    low, high = (np.asarray(energy, float) for energy in (low, high))
    num_parts = 1
    if line.factor is not None:
        num_parts = int(np.clip(np.ceil(np.quantile(np.log(high / low), 0.9) / _WIDTH), 1, _MOST))
        low, high = _cut(low, high, num_parts)
    logs = [np.log(energy / line.light.pivot) for energy in (low, high)]
    unabsorbed = Partial(line.light._in_bins, (0.5 * (logs[0] + logs[1]), logs[1] - logs[0]))
    if line.factor is None:
        return unabsorbed
    x, _ = np.polynomial.legendre.leggauss(_NODES)
    nodes = 0.5 * (low + high)[..., None] + 0.5 * (high - low)[..., None] * x
    return Partial(_Absorbed(num_parts), unabsorbed, line.factor.on(nodes.reshape(*low.shape[:-1], -1)))


def _cut(low: Floats, high: Floats, num: int) -> tuple[Floats, Floats]:
    """Divide bins into equal parts, (..., num_bins) to (..., num_bins * num)."""
    fraction = np.linspace(0.0, 1.0, num + 1)
    edges = low[..., None] + (high - low)[..., None] * fraction
    return tuple(ends.reshape(*low.shape[:-1], -1) for ends in (edges[..., :-1], edges[..., 1:]))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Absorbed:
    """Photons of a line times the mean of its factors, summed over the parts of each bin."""

    num_parts: int

    def __call__(self, unabsorbed, factor, values):
        photons, at_nodes = unabsorbed(values), factor(values)
        mean = jnp.mean(at_nodes.reshape(*at_nodes.shape[:-1], -1, _NODES), axis=-1)
        absorbed = photons * mean
        return jnp.sum(absorbed.reshape(*absorbed.shape[:-1], -1, self.num_parts), axis=-1)
