"""Fewer nodes still: a family of spectra with few parameters is known everywhere from its values at a few energies.

Values of absorbed power laws at a hundred well chosen energies say what they are at all others, since whatever bends
them is the same few things: two columns, one medium. So nodes are picked at which the family differs most, and the fold
is the linear map from values there to counts that is best over many spectra of the family. (Empirical interpolation:
Barrault et al. 2004, C. R. Math. 339, 667; points by pivoted QR: Drmac & Gugercin 2016, SIAM J. Sci. Comput. 38, A631.)
"""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lstsq, qr

from hbm_jax.spectra.folding.panels import Fold

Floats = NDArray[np.float64]
NUM_MIXTURES = 400  # of the spectra, by which nodes are picked
FLOOR = 1e-9  # share of the largest counts in a block below which a spectrum is not fitted more closely
NUM_BLOCKS = 16  # of groups, each of which sees photons above some energy only


def interpolated(fold: Fold, spectra: Floats, resolution: float) -> Fold:
    """Fold by fewer of the nodes, as well as a family of spectra allows.

    Parameters
    ----------
    fold : Fold
        Nodes and matrix.
    spectra : (num_spectra, num_nodes)
        The family at the nodes, more of them than nodes are to be left, each scaled to the same counts in all.
    resolution : float
        What a direction may contribute to the counts of a block, relative to the largest, and still be left out.

    Returns
    -------
    Fold
        No group takes nodes at energies below which it took none before. Weights may be negative.
    """
    counts = spectra @ fold.matrix.T
    # Mixtures of the spectra at random span what they do, and are fewer.
    directions = np.random.default_rng(0).normal(size=(NUM_MIXTURES, len(spectra))) @ spectra
    ends = np.unique(np.linspace(0, len(fold.matrix), NUM_BLOCKS + 1).astype(int))
    blocks = []
    chosen = np.zeros(len(fold.energy), bool)
    for low, high in itertools.pairwise(ends):
        weight = np.abs(fold.matrix[low:high]).sum(axis=0)
        first = int(np.argmax(weight > 0))
        blocks.append((slice(low, high), first))
        R, order = qr(directions[:, first:] * weight[first:], mode="r", pivoting=True, check_finite=False)
        size = np.abs(np.diag(R))
        chosen[first + order[: np.count_nonzero(size > resolution * size[0])]] = True
    nodes = np.flatnonzero(chosen)
    matrix = np.zeros((len(fold.matrix), len(nodes)))
    for rows, first in blocks:
        used = np.flatnonzero(nodes >= first)
        share = counts[:, rows].sum(axis=1, keepdims=True)
        if used.size and share.max() > 0:  # else the block counts nothing
            weight = 1.0 / np.maximum(share, FLOOR * share.max())
            both = weight * spectra[:, nodes[used]], weight * counts[:, rows]
            matrix[rows, used] = lstsq(*both, cond=1e-13, lapack_driver="gelsy", check_finite=False)[0].T
    return Fold(fold.energy[nodes], matrix)
