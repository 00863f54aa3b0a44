"""Photon spectra to expected counts by few energies: product integration between absorption edges.

An absorbed spectrum is smooth but at the edges of its absorbers, and a response is rough but known. So the band is cut
into panels at the edges; in each, the spectrum is the polynomial through its values at a few Gauss nodes, and the
integral of that polynomial over every energy bin of the response is done beforehand. What is left is one small matrix
from values at the nodes to expected counts in groups of channels.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.absorption.transmission import edges_of_ions, edges_of_neutral_matter

Floats = NDArray[np.float64]
WIDTH = 0.05  # of a panel in ln E, at most
STEEPNESS = 10.0  # d ln N / d ln E of spectra whose nodes are counted: 3 optical depths of cold matter
MAX_NODES = 8
GAP = 0.006  # in ln E, between a kink and the nearest cut: nearer ones share a panel


class Fold(NamedTuple):
    """Linear map from a photon spectrum at nodes to expected counts.

    Attributes
    ----------
    energy : (num_nodes,)
        Where the spectrum is to be evaluated [keV].
    matrix : (num_groups, num_nodes)
        Counts per second for 1 photon/cm^2/s/keV at a node.
    """

    energy: Floats
    matrix: Floats


def panel_edges(
    low: float,
    high: float,
    jumps: ArrayLike = (),
    kinks: ArrayLike = (),
    *,
    width: float = WIDTH,
    gap: ArrayLike = GAP,
) -> Floats:
    """Cut a band of energies where a spectrum is not smooth.

    Parameters
    ----------
    low, high : float
        The band [keV].
    jumps : (num_jumps,)
        Energies at which the spectrum jumps [keV]; each is a cut.
    kinks : (num_kinks,)
        Energies at which it bends; those nearer than ``gap`` to a cut are left out.
    width : float
        Largest width of a panel in ln E.
    gap : float or (num_kinks,)
        Smallest distance of each kink in ln E; kinks with a small one are cut first.

    Returns
    -------
    (num_panels + 1,)
        Increasing.
    """
    jumps, kinks = np.asarray(jumps, float), np.asarray(kinks, float)
    cuts = list(np.unique(np.concatenate([[low, high], jumps[(jumps > low) & (jumps < high)]])))
    gaps = np.broadcast_to(np.asarray(gap, float), kinks.shape)
    for index in np.lexsort((kinks, gaps)):
        kink, place = kinks[index], int(np.searchsorted(cuts, kinks[index]))
        if low < kink < high and min(np.log(kink / cuts[place - 1]), np.log(cuts[place] / kink)) > gaps[index]:
            cuts.insert(place, float(kink))
    edges = [np.array([low])]
    for start, end in itertools.pairwise(cuts):
        edges.append(np.geomspace(start, end, int(np.ceil(np.log(end / start) / width)) + 1)[1:])
    return np.concatenate(edges)


def num_nodes_of(panels: ArrayLike, error: float) -> NDArray[np.int64]:
    """Fewest Gauss nodes in each panel, so that narrow panels take one or two.

    Parameters
    ----------
    panels : (num_panels + 1,)
        From `panel_edges`.
    error : float
        Of the integral over ln E of a panel, by the remainder of Gauss's rule for exp(s ln E), s = ``STEEPNESS``.

    Returns
    -------
    (num_panels,) int
        1 to 8.
    """
    width = np.diff(np.log(np.asarray(panels, float)))
    found = np.full(len(width), MAX_NODES)
    for n in range(MAX_NODES - 1, 0, -1):
        remainder = math.factorial(n) ** 4 / ((2 * n + 1) * math.factorial(2 * n) ** 3)
        found[remainder * (STEEPNESS * width) ** (2 * n) * width <= error] = n
    return found


def fold_of(energy: ArrayLike, matrix: ArrayLike, panels: ArrayLike, num_nodes: ArrayLike = 3) -> Fold:
    """Integrate the polynomials through the nodes of every panel against a response.

    Parameters
    ----------
    energy : (num_energies + 1,)
        Edges of the response's energy bins [keV].
    matrix : (num_energies, num_groups)
        Response in each bin to photons of any energy within it.
    panels : (num_panels + 1,)
        From `panel_edges`, over the same band.
    num_nodes : int or (num_panels,) int
        Gauss nodes of a panel.

    Returns
    -------
    Fold

    Examples
    --------
    >>> fold = fold_of([1.0, 2.0, 3.0], np.eye(2), [1.0, 1.5, 3.0])
    >>> (fold.matrix @ fold.energy**2).round(4).tolist()  # the integrals of E^2 from 1 to 2 and from 2 to 3
    [2.3333, 6.3333]
    """
    nodes, integrals = integrals_of(energy, panels, num_nodes)
    return Fold(nodes, np.ascontiguousarray((integrals.T @ np.asarray(matrix, float)).T))


def integrals_of(energy: ArrayLike, panels: ArrayLike, num_nodes: ArrayLike = 3) -> tuple[Floats, sparse.csr_matrix]:
    """Nodes and what takes values there to integrals over bins: `fold_of` without a response.

    Parameters
    ----------
    energy, panels, num_nodes
        As in `fold_of`.

    Returns
    -------
    (num_nodes,), sparse (num_energies, num_nodes)
    """
    energy, panels = np.asarray(energy, float), np.asarray(panels, float)
    width = np.diff(panels)
    each = np.broadcast_to(np.asarray(num_nodes, int), len(width))
    first = np.append(0, np.cumsum(each))
    # Every piece lies in one bin and in one panel.
    cuts = np.union1d(energy, panels)
    cuts = cuts[(cuts >= energy[0]) & (cuts <= energy[-1])]
    middle, half = 0.5 * (cuts[1:] + cuts[:-1]), 0.5 * np.diff(cuts)
    in_bin = np.searchsorted(energy, middle) - 1
    in_panel = np.clip(np.searchsorted(panels, middle) - 1, 0, len(width) - 1)
    nodes = np.empty(first[-1])
    weights, rows, columns = [], [], []
    for n in np.unique(each):
        x, w = legendre.leggauss(n)
        some = np.flatnonzero(each == n)
        nodes[first[some, None] + np.arange(n)] = panels[some, None] + 0.5 * width[some, None] * (1.0 + x)
        pieces = np.flatnonzero(each[in_panel] == n)
        of, part = in_panel[pieces, None], half[pieces, None]
        place = 2.0 * ((middle[pieces, None] + part * x) - panels[of]) / width[of] - 1.0
        lagrange = legendre.legvander(place, n - 1) @ np.linalg.inv(legendre.legvander(x, n - 1))
        weights.append(np.einsum("pq,pqn->pn", part * w, lagrange).ravel())
        rows.append(np.repeat(in_bin[pieces], n))
        columns.append((first[of] + np.arange(n)).ravel())
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    return nodes, sparse.csr_matrix(entries, shape=(len(energy) - 1, nodes.size))


def absorption_edges(low: float, high: float, redshifts: ArrayLike = (0.0,)) -> Floats:
    """Observed energies [keV] at which cold absorbers at the redshifts have edges, in order."""
    found = [edges_of_neutral_matter(low * (1 + z), high * (1 + z)) / (1 + z) for z in np.atleast_1d(redshifts)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0)


def whim_edges(low: float, high: float, z: float) -> Floats:
    """Observed energies [keV] at which the intergalactic medium's optical depth bends, in order."""
    return np.unique(np.concatenate([edges_of_ions(low * (1 + q), high * (1 + q)) / (1 + q) for q in (0.0, z)]))
