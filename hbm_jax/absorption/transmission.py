"""Averages over energy bins of functions with absorption edges inside them."""

from dataclasses import InitVar, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption.abundances import ELEMENTS
from hbm_jax.absorption.cross_sections import fits_of
from hbm_jax.absorption.neutral import PHABS_ELEMENTS
from hbm_jax.absorption.rates import ABSORBING

_NODES = 3  # of Gauss and Legendre in a bin, or in a part of one between edges


def edges_of_neutral_matter(low: float, high: float) -> np.ndarray:
    """Energies [keV] between two at which the cross section of neutral matter jumps, in order."""
    places = [ELEMENTS.index(element) + 1 for element in PHABS_ELEMENTS]
    found = np.unique(np.concatenate(fits_of(tuple((Z, Z) for Z in places)).thresholds()))
    return found[(found > low) & (found < high)]


def edges_of_ions(low: float, high: float) -> np.ndarray:
    """Energies [keV] between two at which the cross section of some ion of the WHIM jumps, in order."""
    found = np.unique(np.concatenate(fits_of(ABSORBING).thresholds()))
    return found[(found > low) & (found < high)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class EnergyBins:
    """Energy bins, and nodes within them that respect absorption edges.

    A value at the centre of a bin that holds an edge is off by up to 35 %. Here a bin is cut at every edge in it, and
    an average costs three evaluations a part.

    Parameters
    ----------
    edges : (num_bins + 1,)
        Bin edges [keV], increasing.
    redshifts : sequence of float
        Redshifts of cold absorbers, whose edges to respect; 0 for the Milky Way.
    whim_redshifts : sequence of float
        Redshifts of sources behind the warm-hot intergalactic medium. Its optical depth bends at the edges of every
        ion, and at each of them divided by 1 + z.

    Attributes
    ----------
    energy : (num_nodes,)
        Where to evaluate, [keV].

    Raises
    ------
    ValueError
        For edges that do not increase or are not positive, or a redshift of -1 or less.

    Notes
    -----
    With bins of 20 to 50 eV a transmission is exact to 1e-4 for columns up to 1e23 cm^-2, and to 1e-5 behind the
    intergalactic medium where ``whim_redshifts`` says so; without, to 1e-3 (``tests/absorption/test_transmission.py``).

    Examples
    --------
    >>> bins = EnergyBins(np.linspace(0.3, 10.0, 195), redshifts=(0.0, 1.3))
    >>> bins.average(jnp.exp(-0.5 * bins.energy**-3.0)).shape
    (194,)
    """

    edges: Any
    redshifts: InitVar[tuple[float, ...]] = (0.0,)
    whim_redshifts: InitVar[tuple[float, ...]] = ()
    energy: Any = None
    whole: Any = None
    parts: Any = None

    def __post_init__(self, redshifts, whim_redshifts):
        # JAX rebuilds the object from its parts; only a new one is worked out.
        if self.energy is not None or self.edges is None:
            return
        edges = np.asarray(self.edges, dtype=float)
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all() or not edges[0] > 0:
            raise ValueError(
                f"EnergyBins: expected at least two positive edges [keV] that increase; found {edges.tolist()[:5]}."
            )
        redshifts, whim_redshifts = np.atleast_1d(redshifts).tolist(), np.atleast_1d(whim_redshifts).tolist()
        if not all(z > -1 for z in (*redshifts, *whim_redshifts)):
            raise ValueError(
                f"EnergyBins: expected redshifts above -1; found {list(redshifts)} and {list(whim_redshifts)}."
            )
        at = [(edges_of_neutral_matter, z) for z in redshifts]
        at += [(edges_of_ions, z) for z in sorted({0.0, *whim_redshifts})] if whim_redshifts else []
        cuts = [find(edges[0] * (1 + z), edges[-1] * (1 + z)) / (1 + z) for find, z in at]
        cut = np.unique(np.concatenate(cuts)) if cuts else np.zeros(0)
        bin_of_cut = np.searchsorted(edges, cut, side="right") - 1
        split = np.unique(bin_of_cut)
        x, w = np.polynomial.legendre.leggauss(_NODES)

        def nodes(low, high):
            half = 0.5 * (high - low)
            return low[..., None] + half[..., None] * (1.0 + x), half[..., None] * w

        plain, weights = nodes(edges[:-1], edges[1:])
        whole = weights / np.diff(edges)[:, None]
        whole[split] = 0.0
        most = 1 + max((int(np.sum(bin_of_cut == b)) for b in split), default=0)
        # The parts of each bin that is cut, padded with parts of no width.
        ends = np.repeat(edges[split + 1][:, None], most + 1, axis=1)
        for row, b in enumerate(split):
            own = cut[bin_of_cut == b]
            ends[row, : len(own) + 1] = np.append(edges[b], own)
        inside, weights = nodes(ends[:, :-1], ends[:, 1:])
        share = weights / (edges[split + 1] - edges[split])[:, None, None]
        # (bins, split bins): which bin each set of parts belongs to; a product with it needs no scatter.
        place = np.zeros((len(edges) - 1, len(split)))
        place[split, np.arange(len(split))] = 1.0
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "energy", np.concatenate([plain.ravel(), inside.ravel()]))
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "parts", (share.reshape(len(split), -1), place))

    def __repr__(self):
        return f"EnergyBins({len(self.whole)} bins, {len(self.energy)} energies)"

    def average(self, values: jax.Array) -> jax.Array:
        """Averages over the bins of a function, given at ``energy``.

        Parameters
        ----------
        values : (..., num_nodes)
            The function at ``energy``, for example a spectrum times exp(-tau).

        Returns
        -------
        (..., num_bins)
            Its mean over each bin.

        Raises
        ------
        ValueError
            If the last axis is not that of ``energy``.
        """
        values = jnp.asarray(values)
        if values.shape[-1:] != np.shape(self.energy):
            raise ValueError(
                f"EnergyBins.average: expected values at the {len(self.energy)} energies of the bins; found an array "
                f"of shape {values.shape}."
            )
        share, place = self.parts
        num_bins, dtype = len(self.whole), values.dtype
        plain = values[..., : num_bins * _NODES].reshape(*values.shape[:-1], num_bins, _NODES)
        inside = values[..., num_bins * _NODES :].reshape(*values.shape[:-1], *share.shape)
        averages = jnp.sum(plain * jnp.asarray(self.whole, dtype), axis=-1)
        of_parts = jnp.sum(inside * jnp.asarray(share, dtype), axis=-1)
        return averages + jnp.matmul(of_parts, jnp.asarray(place, dtype).T, precision=jax.lax.Precision.HIGHEST)


def transmission(bins: EnergyBins, optical_depth: jax.Array) -> jax.Array:
    """Mean of exp(-tau) over each bin.

    Parameters
    ----------
    bins : EnergyBins
        The bins.
    optical_depth : (..., num_nodes)
        tau at ``bins.energy``.

    Returns
    -------
    (..., num_bins)
        Between 0 and 1.

    Examples
    --------
    >>> bins = EnergyBins([0.5, 0.55, 0.6])
    >>> transmission(bins, 0.1 * bins.energy**-3.0)
    """
    return bins.average(jnp.exp(-optical_depth))
