"""Responses in blocks of groups, each with the energy bins to which it responds, for compiled programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

HEIGHTS = (8, 16, 32, 64, 128)  # groups in a block; the smallest storage is chosen
GROWTH = 2.0  # ratio of the widths to which blocks are padded, so that those of one width are one array
SMALL = 4_000_000  # elements of a response that is stored as one array, which is faster to compile and to multiply
OVERHEAD = 64  # elements of storage that the bookkeeping of a block counts for


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class BandedResponse:
    """Responses of N spectra with E energy bins to at most G groups; a pytree, called with photons.

    A row of a redistribution matrix is zero outside a range of channels, so the groups of a block respond only to a
    range of energies. A response of 60 000 energies to as many channels takes some 50 MB, instead of 29 GB.

    Attributes
    ----------
    blocks : tuple of (num_blocks, height, width) arrays
        Expected counts for 1 photon/cm^2/s in a bin, by block, group of the block and bin of its range. A small
        response is one array (N, G, E).
    first : tuple of (num_blocks,) int arrays
        First bin of the range of each block, among the N E bins of all spectra; empty for a small response.
    order : (N, G) int or None
        Index of each group among those of all blocks; None for a small response.
    """

    blocks: tuple[Any, ...]
    first: tuple[Any, ...]
    order: Any

    @classmethod
    def of(cls, matrices: Sequence[Any], num_bins: int, num_groups: int) -> "BandedResponse":
        """Divide sparse matrices (num_bins or fewer, num_groups or fewer) into blocks; the rest of each is padding."""
        if len(matrices) * num_bins * num_groups <= SMALL:
            block = np.zeros((len(matrices), num_groups, num_bins))
            for row, matrix in enumerate(matrices):
                block[row, : matrix.shape[1], : matrix.shape[0]] = matrix.toarray().T
            return cls((block,), (), None)
        columns = [sparse.csc_matrix(matrix) for matrix in matrices]
        ranges = np.full((2, len(columns), num_groups), -1)  # first and last bin to which each group responds
        ranges[0] = num_bins
        for row, matrix in enumerate(columns):
            matrix.sort_indices()
            responds = np.flatnonzero(np.diff(matrix.indptr))
            for ends, starts in ((ranges[0], matrix.indptr[responds]), (ranges[1], matrix.indptr[responds + 1] - 1)):
                ends[row, responds] = matrix.indices[starts]
        partition = min((_Partition.of(ranges, num_bins, height) for height in HEIGHTS), key=lambda one: one.storage)
        height, first, width = partition.height, partition.first, partition.width
        total, per_spectrum = len(columns) * num_bins, len(width) // len(columns)
        blocks: list[np.ndarray] = []
        firsts: list[np.ndarray] = []
        place = np.zeros(len(width), int)  # of each block among all
        for size in np.unique(width):
            members = np.flatnonzero(width == size)
            place[members] = sum(len(one) for one in blocks) + np.arange(len(members))
            block = np.zeros((len(members), height, int(size)))
            start = np.minimum(first[members] + members // per_spectrum * num_bins, total - size)
            for index, member in enumerate(members):
                row, low = divmod(int(member), per_spectrum)
                matrix, bounds = columns[row], columns[row].indptr[low * height : (low + 1) * height + 1]
                if len(bounds) > 1:
                    used = slice(bounds[0], bounds[-1])
                    group = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
                    block[index, group, matrix.indices[used] + row * num_bins - start[index]] = matrix.data[used]
            blocks.append(block)
            firsts.append(start.astype(np.int32))
        group = np.arange(num_groups)
        of_block = np.arange(len(columns))[:, None] * per_spectrum + group // height
        return cls(tuple(blocks), tuple(firsts), (place[of_block] * height + group % height).astype(np.int32))

    def __repr__(self) -> str:
        return f"BandedResponse({sum(block.size for block in self.blocks) * 8e-6:.3g} MB)"

    def __call__(self, photons: jax.Array) -> jax.Array:
        """Return the expected counts (N, G) for photons/cm^2/s in the bins, (N, E)."""
        if self.order is None:
            return jnp.einsum("nge,ne->ng", jnp.asarray(self.blocks[0], photons.dtype), photons)
        photons = photons.reshape(-1)

        def respond(block, first):
            windows = jax.vmap(lambda start: jax.lax.dynamic_slice(photons, (start,), block.shape[-1:]))(first)
            return jnp.einsum("bgw,bw->bg", jnp.asarray(block, photons.dtype), windows).ravel()

        counts = [respond(block, jnp.asarray(first)) for block, first in zip(self.blocks, self.first, strict=True)]
        return jnp.concatenate(counts)[self.order]


@dataclass(frozen=True)
class _Partition:
    """Division of groups into blocks of one height: first bin and padded width of each block, and storage."""

    height: int
    first: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, ranges: np.ndarray, num_bins: int, height: int) -> "_Partition":
        """Divide groups with these first and last bins, (2, num_spectra, num_groups)."""
        low, high = (np.pad(one, ((0, 0), (0, -one.shape[1] % height)), mode="edge") for one in ranges)
        low, high = low.reshape(-1, height).min(axis=1), high.reshape(-1, height).max(axis=1) + 1
        span = np.maximum(high - low, 1)
        step = np.ceil(np.log(span / span.min()) / np.log(GROWTH) - 1e-9)
        width = np.minimum(np.ceil(span.min() * GROWTH**step).astype(int), num_bins)
        return cls(height, np.minimum(low, num_bins - width), width)

    @property
    def storage(self) -> int:
        """Number of elements, with the overhead of the blocks."""
        return int((self.height * self.width + OVERHEAD).sum())
