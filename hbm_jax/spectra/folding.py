"""Photon spectra to expected counts by few energies: product integration between absorption edges.

An absorbed spectrum is smooth but at the edges of its absorbers, and a response is rough but known. So the band is cut
into panels at the edges; in each, the spectrum is the polynomial through its values at a few Gauss nodes, and the
integral of that polynomial over every energy bin of the response is done beforehand. What is left is one small matrix
from values at the nodes to expected counts in groups of channels.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.absorption.transmission import edges_of_ions, edges_of_neutral_matter

Floats = NDArray[np.float64]
WIDTH = 0.05  # of a panel in ln E, at most
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
    gap: float = GAP,
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
    width, gap : float
        Largest width of a panel, and smallest distance of a kink, in ln E.

    Returns
    -------
    (num_panels + 1,)
        Increasing.
    """
    inside = [np.asarray(c, float)[(np.asarray(c) > low) & (np.asarray(c) < high)] for c in (jumps, kinks)]
    cuts = list(np.unique(np.concatenate([[low, high], inside[0]])))
    for kink in np.unique(inside[1]):
        place = int(np.searchsorted(cuts, kink))
        if np.log(kink / cuts[place - 1]) > gap and np.log(cuts[place] / kink) > gap:
            cuts.insert(place, float(kink))
    edges = [np.array([low])]
    for start, end in itertools.pairwise(cuts):
        edges.append(np.geomspace(start, end, int(np.ceil(np.log(end / start) / width)) + 1)[1:])
    return np.concatenate(edges)


def fold_of(energy: ArrayLike, matrix: ArrayLike, panels: ArrayLike, num_nodes: int = 3) -> Fold:
    """Integrate the polynomials through the nodes of every panel against a response.

    Parameters
    ----------
    energy : (num_energies + 1,)
        Edges of the response's energy bins [keV].
    matrix : (num_energies, num_groups)
        Response in each bin to photons of any energy within it.
    panels : (num_panels + 1,)
        From `panel_edges`, over the same band.
    num_nodes : int
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


def integrals_of(energy: ArrayLike, panels: ArrayLike, num_nodes: int = 3) -> tuple[Floats, sparse.csr_matrix]:
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
    x, w = legendre.leggauss(num_nodes)
    nodes = 0.5 * (panels[1:] + panels[:-1])[:, None] + 0.5 * np.diff(panels)[:, None] * x
    # Every piece lies in one bin and in one panel.
    cuts = np.union1d(energy, panels)
    cuts = cuts[(cuts >= energy[0]) & (cuts <= energy[-1])]
    middle, half = 0.5 * (cuts[1:] + cuts[:-1]), 0.5 * np.diff(cuts)
    in_bin = np.searchsorted(energy, middle) - 1
    in_panel = np.clip(np.searchsorted(panels, middle) - 1, 0, len(panels) - 2)
    start, width = panels[in_panel], np.diff(panels)[in_panel]
    place = 2.0 * ((middle[:, None] + half[:, None] * x) - start[:, None]) / width[:, None] - 1.0
    lagrange = legendre.legvander(place, num_nodes - 1) @ np.linalg.inv(legendre.legvander(x, num_nodes - 1))
    weights = np.einsum("pq,pqn->pn", half[:, None] * w, lagrange)
    columns = in_panel[:, None] * num_nodes + np.arange(num_nodes)
    rows = np.repeat(in_bin, num_nodes)
    shape = (len(energy) - 1, nodes.size)
    return nodes.ravel(), sparse.csr_matrix((weights.ravel(), (rows, columns.ravel())), shape=shape)


def absorption_edges(low: float, high: float, redshifts: ArrayLike = (0.0,)) -> Floats:
    """Observed energies [keV] at which cold absorbers at the redshifts have edges, in order."""
    found = [edges_of_neutral_matter(low * (1 + z), high * (1 + z)) / (1 + z) for z in np.atleast_1d(redshifts)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0)


def whim_edges(low: float, high: float, z: float) -> Floats:
    """Observed energies [keV] at which the intergalactic medium's optical depth bends, in order."""
    return np.unique(np.concatenate([edges_of_ions(low * (1 + q), high * (1 + q)) / (1 + q) for q in (0.0, z)]))
