"""Photons of emission lines in bins of energy: exact, however narrow the lines are."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpy.typing import NDArray

from hbm_jax.spectra.model.composition import Line

Floats = NDArray[np.float64]
_NODES = 2  # of Gauss and Legendre, for the mean of a factor over a part of a bin
_WIDTH, _MOST = 0.02, 16  # of the parts into which bins are cut for that in ln E, but for the widest; how many at most


def in_bins(line: Line, low: Floats, high: Floats) -> Callable:
    """Set up the photons of a line in bins of energy.

    Parameters
    ----------
    line : Line
        From `hbm_jax.spectra.model.composition.separated`.
    low, high : (..., num_bins)
        Ends of the bins [keV].

    Returns
    -------
    callable
        Takes values as those of `Component.on`; returns photons/cm^2/s in each bin, (..., num_bins). A pytree.

    Notes
    -----
    The line alone is a formula. Its factors are means over a bin, or over parts of it where most bins are wider than
    2 %, as where a model is evaluated bin by bin: a response knows no smaller difference of energy.
    """
    low, high = (np.asarray(end, float) for end in (low, high))
    num_parts = 1
    if line.factor is not None:
        num_parts = int(np.clip(np.ceil(np.quantile(np.log(high / low), 0.9) / _WIDTH), 1, _MOST))
        low, high = _cut(low, high, num_parts)
    ends = [np.log(end / line.light.pivot) for end in (low, high)]
    alone = Partial(line.light._in_bins, (0.5 * (ends[0] + ends[1]), ends[1] - ends[0]))
    if line.factor is None:
        return alone
    x, _ = np.polynomial.legendre.leggauss(_NODES)
    nodes = 0.5 * (low + high)[..., None] + 0.5 * (high - low)[..., None] * x
    return Partial(_Absorbed(num_parts), alone, line.factor.on(nodes.reshape(*low.shape[:-1], -1)))


def _cut(low: Floats, high: Floats, num: int) -> tuple[Floats, Floats]:
    """Cut bins into equal parts, (..., num_bins) to (..., num_bins * num)."""
    share = np.linspace(0.0, 1.0, num + 1)
    edges = low[..., None] + (high - low)[..., None] * share
    return tuple(e.reshape(*low.shape[:-1], -1) for e in (edges[..., :-1], edges[..., 1:]))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Absorbed:
    """Photons of a line times the means of its factors, summed over the parts of each bin."""

    num_parts: int

    def __call__(self, alone, factor, values):
        light, at_nodes = alone(values), factor(values)
        mean = jnp.mean(at_nodes.reshape(*at_nodes.shape[:-1], -1, _NODES), axis=-1)
        absorbed = light * mean
        return jnp.sum(absorbed.reshape(*absorbed.shape[:-1], -1, self.num_parts), axis=-1)
