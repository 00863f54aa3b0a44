"""Folding with a spectrum known on quadrature nodes: product integration between absorption edges.

An absorbed spectrum is smooth except at absorption edges, whereas the response is irregular but fixed. The energy range
is therefore divided at the edges into panels. In each panel the spectrum is interpolated by a polynomial through its
values at a few Gauss-Legendre nodes, and the integrals of the polynomials over the energy bins of the response are
precomputed. Together with the response they form a small matrix from the values at the nodes to expected counts.
"""

import bisect
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.validation import Floats

WIDTH = 0.05  # largest width of a panel in ln E
STEEPNESS = 10.0  # d ln N / d ln E assumed for the number of nodes: that of cold matter with an optical depth of 3
MAX_NODES = 8
GAP = 0.006  # smallest distance in ln E between a discontinuity in slope and the nearest panel edge


class Fold(NamedTuple):
    """Response on quadrature nodes: linear map from a photon spectrum at nodes to expected counts.

    Attributes
    ----------
    energy : (num_nodes,)
        Energies of the nodes [keV].
    matrix : (num_groups, num_nodes)
        Counts per second for 1 photon/cm^2/s/keV at a node.
    """

    energy: Floats
    matrix: Floats


def panel_edges(
    low: float,
    high: float,
    discontinuities: ArrayLike = (),
    slope_discontinuities: ArrayLike = (),
    *,
    width: float = WIDTH,
    gap: ArrayLike = GAP,
) -> Floats:
    """Return the edges [keV] of panels, (num_panels + 1,), that divide a band where a spectrum is not smooth.

    Parameters
    ----------
    low, high : float
        Limits of the band [keV].
    discontinuities : (num,)
        Energies at which the spectrum is discontinuous [keV]; each becomes a panel edge.
    slope_discontinuities : (num,)
        Energies at which its slope is discontinuous [keV]; each becomes a panel edge unless it is closer than `gap` to
        another one.
    width : float
        Largest width of a panel in ln E.
    gap : float or (num,)
        Smallest distance in ln E from each discontinuity in slope to other panel edges. Discontinuities with a smaller
        gap take precedence.
    """
    energies, slope_energies = np.asarray(discontinuities, float), np.asarray(slope_discontinuities, float)
    cuts = np.unique(np.concatenate([[low, high], energies[(energies > low) & (energies < high)]])).tolist()
    gaps = np.broadcast_to(np.asarray(gap, float), slope_energies.shape)
    order = np.lexsort((slope_energies, gaps))
    for energy, smallest in zip(slope_energies[order].tolist(), gaps[order].tolist(), strict=True):
        i = bisect.bisect_left(cuts, energy)
        if low < energy < high and min(math.log(energy / cuts[i - 1]), math.log(cuts[i] / energy)) > smallest:
            cuts.insert(i, energy)
    edges = [cuts[:1]]
    for start, end in itertools.pairwise(cuts):
        num = math.ceil(math.log(end / start) / width)
        edges.append([end] if num == 1 else np.geomspace(start, end, num + 1)[1:])
    return np.concatenate(edges)


def num_nodes_of(panels: ArrayLike, error: float) -> NDArray[np.int64]:
    """Return the smallest sufficient number of Gauss-Legendre nodes in each panel, from 1 to ``MAX_NODES``.

    The error is that of the integral over ln E of a panel: the remainder of Gauss-Legendre quadrature of exp(s ln E)
    with s = ``STEEPNESS``. The result is (num_panels,) for panel edges (num_panels + 1,).
    """
    width = np.diff(np.log(np.asarray(panels, float)))
    num_nodes = np.full(len(width), MAX_NODES)
    for n in range(MAX_NODES - 1, 0, -1):
        remainder = math.factorial(n) ** 4 / ((2 * n + 1) * math.factorial(2 * n) ** 3)
        num_nodes[remainder * (STEEPNESS * width) ** (2 * n) * width <= error] = n
    return num_nodes


def dense(matrix: Any) -> Floats:
    """Return a matrix, which may be sparse, as an array."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix, float)


def integrals_of(energy: ArrayLike, panels: ArrayLike, num_nodes: ArrayLike = 3) -> tuple[Floats, sparse.csr_matrix]:
    """Return the nodes [keV], (num_nodes,), and the matrix from values at the nodes to integrals over energy bins.

    The matrix [keV] is sparse, (num_energies, num_nodes).

    Parameters
    ----------
    energy : (num_energies + 1,)
        Edges of the energy bins of the response [keV].
    panels : (num_panels + 1,)
        Panel edges over the same band, from `panel_edges`.
    num_nodes : int or (num_panels,) int
        Gauss-Legendre nodes per panel.

    Examples
    --------
    >>> nodes, integrals = integrals_of([1.0, 2.0, 3.0], [1.0, 1.5, 3.0])
    >>> (integrals @ nodes**2).round(4).tolist()  # the integrals of E^2 from 1 to 2 and from 2 to 3
    [2.3333, 6.3333]
    """
    energy, panels = np.asarray(energy, float), np.asarray(panels, float)
    width = np.diff(panels)
    nodes_per_panel = np.broadcast_to(np.asarray(num_nodes, int), len(width))
    first = np.append(0, np.cumsum(nodes_per_panel))
    # Pieces that lie in a single bin and a single panel.
    cuts = np.union1d(energy, panels)
    cuts = cuts[(cuts >= energy[0]) & (cuts <= energy[-1])]
    middle, half = 0.5 * (cuts[1:] + cuts[:-1]), 0.5 * np.diff(cuts)
    in_bin = np.searchsorted(energy, middle) - 1
    in_panel = np.clip(np.searchsorted(panels, middle) - 1, 0, len(width) - 1)
    nodes = np.empty(first[-1])
    weights, rows, columns = [], [], []
    for num in np.unique(nodes_per_panel):
        x, w = legendre.leggauss(num)
        same_num = np.flatnonzero(nodes_per_panel == num)
        nodes[first[same_num, None] + np.arange(num)] = panels[same_num, None] + 0.5 * width[same_num, None] * (1.0 + x)
        pieces = np.flatnonzero(nodes_per_panel[in_panel] == num)
        panel, piece_half = in_panel[pieces, None], half[pieces, None]
        # Lagrange polynomials of the nodes at the Gauss-Legendre points of each piece.
        panel_coordinate = 2.0 * ((middle[pieces, None] + piece_half * x) - panels[panel]) / width[panel] - 1.0
        lagrange = legendre.legvander(panel_coordinate, num - 1) @ np.linalg.inv(legendre.legvander(x, num - 1))
        weights.append(np.einsum("pq,pqn->pn", piece_half * w, lagrange).ravel())
        rows.append(np.repeat(in_bin[pieces], num))
        columns.append((first[panel] + np.arange(num)).ravel())
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    return nodes, sparse.csr_matrix(entries, shape=(len(energy) - 1, nodes.size))
