"""Empirical interpolation: a subset of the nodes of a fold that suffices for a family of spectra with few parameters.

Absorbed power laws depend on few parameters, so their values at about a hundred well-chosen energies determine those at
all other energies. The nodes are chosen by QR decomposition with column pivoting of many spectra of the family, and the
fold is the least-squares linear map from the values at these nodes to the counts.

References: Barrault et al. 2004, C. R. Math. 339, 667 (empirical interpolation); Drmac & Gugercin 2016, SIAM J. Sci.
Comput. 38, A631 (choice of points by pivoted QR).
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lstsq, qr

from hbm_jax.spectra.folding.panels import Fold
from hbm_jax.validation import Floats

NUM_MIXTURES = 320  # random linear combinations of the spectra, from which nodes are chosen
FLOOR = 1e-9  # of the largest counts in a block: spectra with fewer counts are fitted with the weight of this floor
NUM_BLOCKS = 16  # blocks of groups; the groups of a block respond only to photons above a common energy


def interpolated(fold: Fold, spectra: Floats, resolutions: Iterable[float]) -> Iterator[Fold]:
    """Yield the fold on a subset of its nodes, fitted to a family of spectra, for each resolution.

    Weights may be negative. A block of groups has no weights below its lowest node in the original fold.

    Parameters
    ----------
    fold : Fold
        Nodes and matrix.
    spectra : (num_spectra, num_nodes)
        Spectra of the family at the nodes, each scaled to the same total counts; more spectra than nodes that are kept.
    resolutions : iterable of float
        Smallest diagonal element of R in the pivoted QR decomposition, relative to the largest, of a node that is kept.
    """
    counts = spectra @ fold.matrix.T
    # Random linear combinations of the spectra span the same space, and are fewer.
    mixtures = np.random.default_rng(0).normal(size=(NUM_MIXTURES, len(spectra))) @ spectra
    ends = np.unique(np.linspace(0, len(fold.matrix), NUM_BLOCKS + 1).astype(int))
    blocks = []  # rows of the matrix, first node with weight, nodes in the order of pivoting, diagonal elements of R
    for low, high in itertools.pairwise(ends):
        weight = np.abs(fold.matrix[low:high]).sum(axis=0)
        first = int(np.argmax(weight > 0))
        R, order = qr(mixtures[:, first:] * weight[first:], mode="r", pivoting=True, check_finite=False)
        blocks.append((slice(low, high), first, first + order, np.abs(np.diag(R))))
    for resolution in resolutions:
        chosen = [order[: np.count_nonzero(pivots > resolution * pivots[0])] for _, _, order, pivots in blocks]
        yield _fitted(fold, spectra, counts, np.unique(np.concatenate(chosen)), blocks)


def _fitted(fold: Fold, spectra: Floats, counts: Floats, nodes: NDArray[np.int64], blocks) -> Fold:
    """Return the fold on the nodes, fitted by least squares to the counts of the family, block by block."""
    matrix, at_nodes = np.zeros((len(fold.matrix), len(nodes))), np.asfortranarray(spectra[:, nodes])
    for rows, first, *_ in blocks:
        used = slice(np.searchsorted(nodes, first), None)
        block_counts = counts[:, rows].sum(axis=1, keepdims=True)
        if nodes[used].size and block_counts.max() > 0:  # otherwise the block has no counts
            weight = 1.0 / np.maximum(block_counts, FLOOR * block_counts.max())
            system = weight * at_nodes[:, used], weight * counts[:, rows]
            solution = lstsq(*system, cond=1e-13, lapack_driver="gelsy", overwrite_a=True, check_finite=False)[0]
            matrix[rows, used] = solution.T
    return Fold(fold.energy[nodes], matrix)
