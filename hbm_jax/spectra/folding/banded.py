"""Responses in blocks of groups, each with the energy bins to which it responds, for compiled programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

HEIGHTS = (8, 16, 32, 64, 128)  # groups in a block; the smallest storage is chosen
GROWTH = 1.5  # ratio of the widths to which blocks are padded, so that those of one width are one array
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
        Expected counts for 1 photon/cm^2/s in a bin, by block, group of the block and bin of its range.
    first : tuple of (num_blocks,) int arrays
        First bin of the range of each block, among the N E bins of all spectra.
    order : (N, G) int
        Index of each group among those of all blocks; for padding, that of a group without response.
    """

    blocks: tuple[Any, ...]
    first: tuple[Any, ...]
    order: Any

    @classmethod
    def of(cls, matrices: Sequence[Any], num_bins: int, num_groups: int) -> "BandedResponse":
        """Divide sparse matrices (num_bins or fewer, num_groups or fewer) into blocks; the rest of each is padding."""
        stacked = [sparse.coo_matrix(matrix) for matrix in matrices]
        group = np.concatenate([m.col + row * num_groups for row, m in enumerate(stacked)])
        energy = np.concatenate([m.row + row * num_bins for row, m in enumerate(stacked)])
        value = np.concatenate([m.data for m in stacked])
        size = len(matrices) * num_groups, len(matrices) * num_bins
        choices = [_Partition.of(group, energy, *size, height) for height in HEIGHTS]
        partition = min(choices, key=lambda choice: choice.storage)
        blocks, firsts = [], []
        index = np.zeros(size[0], int)  # of each group among those of all blocks
        num_before, in_block = 0, group // partition.height
        for width in np.unique(partition.width):
            members = np.flatnonzero(partition.width == width)
            number = np.full(len(partition.width), -1)
            number[members] = np.arange(len(members))
            kept = number[in_block] >= 0
            block = np.zeros((len(members), partition.height, int(width)))
            place = number[in_block[kept]], group[kept] % partition.height
            np.add.at(block, (*place, energy[kept] - partition.first[in_block[kept]]), value[kept])
            groups = members[:, None] * partition.height + np.arange(partition.height)
            slots = num_before + np.arange(groups.size).reshape(groups.shape)
            index[groups[groups < size[0]]] = slots[groups < size[0]]
            num_before += groups.size
            blocks.append(block)
            firsts.append(partition.first[members].astype(np.int32))
        return cls(tuple(blocks), tuple(firsts), index.reshape(len(matrices), num_groups).astype(np.int32))

    def __repr__(self) -> str:
        size = sum(block.size for block in self.blocks) * 8e-6
        return f"BandedResponse({len(self.order)} spectra, {np.shape(self.order)[-1]} groups, {size:.3g} MB)"

    def __call__(self, photons: jax.Array) -> jax.Array:
        """Return the expected counts (N, G) for photons/cm^2/s in the bins, (N, E)."""
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
    def of(cls, group, energy, num_groups: int, num_bins: int, height: int) -> "_Partition":
        block = group // height
        low, high = np.full(-(-num_groups // height), num_bins), np.zeros(-(-num_groups // height), int)
        np.minimum.at(low, block, energy)
        np.maximum.at(high, block, energy + 1)
        span = np.maximum(high - low, 1)
        step = np.ceil(np.log(span / span.min()) / np.log(GROWTH) - 1e-9)
        width = np.minimum(np.ceil(span.min() * GROWTH**step).astype(int), num_bins)
        return cls(height, np.clip(low, 0, num_bins - width), width)

    @property
    def storage(self) -> int:
        """Number of elements, with the overhead of the blocks."""
        return int((self.height * self.width + OVERHEAD).sum())
