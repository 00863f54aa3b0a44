"""Responses divided into blocks of groups, each stored for the energy bins where it is not zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

HEIGHTS = (8, 16, 32, 64, 128)  # groups in a block; the smallest storage is chosen
GROWTH = 2.0  # ratio of successive widths to which blocks are padded; blocks of one width form one array
SMALL = 4_000_000  # elements of a response that is stored as one array, which is faster to compile and to multiply
OVERHEAD = 64  # bookkeeping of a block, in elements of storage


def is_large(num_spectra: int, num_bins: int, num_groups: int) -> bool:
    """Return True for responses with too many elements to be stored as one array."""
    return num_spectra * num_bins * num_groups > SMALL


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class BandedResponse:
    """Responses of N spectra, with E energy bins and at most G groups; a pytree, called with photons.

    A row of a redistribution matrix is zero outside a range of channels, so the groups of a block respond only to a
    range of energies. A response of 60 000 energies and as many channels takes some 50 MB, instead of 29 GB.

    Attributes
    ----------
    blocks : tuple of (num_blocks, height, width) arrays
        Expected counts for 1 photon/cm^2/s in a bin, by block, group of the block and bin of its range. A small
        response is one array (N, G, E).
    first : tuple of (num_blocks,) int arrays
        First bin of the range of each block, as an index of the N E bins of all spectra; empty for a small response.
    order : (N, G) int or None
        Index of each group among the groups of all blocks; None for a small response.
    """

    blocks: tuple[Any, ...]
    first: tuple[Any, ...]
    order: Any

    @classmethod
    def of(
        cls, matrices: Sequence[Any], num_bins: int, num_groups: int, *, divided: bool | None = None
    ) -> "BandedResponse":
        """Divide sparse matrices into blocks, after padding them to (num_bins, num_groups).

        ``divided`` False stores them as one array; by default those of `is_large` are divided.
        """
        if not (is_large(len(matrices), num_bins, num_groups) if divided is None else divided):
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
        partition = min((_Partition.of(ranges, num_bins, height) for height in HEIGHTS), key=lambda p: p.storage)
        height, first, width = partition.height, partition.first, partition.width
        total, per_spectrum = len(columns) * num_bins, len(width) // len(columns)
        blocks: list[np.ndarray] = []
        firsts: list[np.ndarray] = []
        position = np.zeros(len(width), int)  # of each block in the result
        for size in np.unique(width):
            members = np.flatnonzero(width == size)
            position[members] = sum(map(len, blocks)) + np.arange(len(members))
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
        block_of_group = np.arange(len(columns))[:, None] * per_spectrum + group // height
        order = position[block_of_group] * height + group % height
        return cls(tuple(blocks), tuple(firsts), order.astype(np.int32))

    def __repr__(self) -> str:
        return f"BandedResponse({sum(block.size for block in self.blocks) * 8e-6:.3g} MB)"

    def __call__(self, photons: jax.Array) -> jax.Array:
        """Return the expected counts (N, G) of photons (N, E) [photons/cm^2/s] in the energy bins."""
        if self.order is None:
            return jnp.einsum("nge,ne->ng", jnp.asarray(self.blocks[0], photons.dtype), photons)
        photons = photons.reshape(-1)

        def respond(block, first):
            """Return the counts of blocks of groups, each from the photons in consecutive bins that begin at first."""
            windows = jax.vmap(lambda start: jax.lax.dynamic_slice(photons, (start,), block.shape[-1:]))(first)
            return jnp.einsum("bgw,bw->bg", jnp.asarray(block, photons.dtype), windows).ravel()

        counts = [respond(block, jnp.asarray(first)) for block, first in zip(self.blocks, self.first, strict=True)]
        return jnp.concatenate(counts)[self.order]


@dataclass(frozen=True)
class _Partition:
    """Division of groups into blocks of one height: first bin and padded width of each block."""

    height: int
    first: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, ranges: np.ndarray, num_bins: int, height: int) -> "_Partition":
        """Divide groups by their first and last bins, ``ranges`` (2, num_spectra, num_groups)."""
        low, high = np.pad(ranges, ((0, 0), (0, 0), (0, -ranges.shape[2] % height)), mode="edge")
        low, high = low.reshape(-1, height).min(axis=1), high.reshape(-1, height).max(axis=1) + 1
        span = np.maximum(high - low, 1)
        step = np.ceil(np.log(span / span.min()) / np.log(GROWTH) - 1e-9)
        width = np.minimum(np.ceil(span.min() * GROWTH**step).astype(int), num_bins)
        return cls(height, np.minimum(low, num_bins - width), width)

    @property
    def storage(self) -> int:
        """Number of stored elements, including the overhead of the blocks."""
        return int((self.height * self.width + OVERHEAD).sum())
