"""Restart during the warm-up of chains that are lost in regions of negligible posterior mass."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.sampler.initialisation import NEGLIGIBLE
from hbm_jax.inference.sampler.kernels.protocol import Block

FEWEST_DRAWS = 25  # of a chain, from which its mass is estimated


class LostChains:
    """Two comparisons of the chains during the warm-up, after a quarter and a half of its draws.

    They take place at fixed numbers of draws, so that the draws depend neither on the division into blocks nor on
    interruptions.

    Attributes
    ----------
    notes : list of str
        A sentence for each chain that was restarted.
    """

    def __init__(self, num_warmup: int):
        self.comparisons = [n for n in (num_warmup // 4, num_warmup // 2) if num_warmup // 4 >= FEWEST_DRAWS]
        self.blocks: list[Block] = []  # since the last comparison
        self.num_draws = 0
        self.notes: list[str] = []

    @property
    def due(self) -> bool:
        """True if the chains must be compared before the next draw."""
        return self.num_draws in self.comparisons

    def draws_before_comparison(self, num_left: int) -> int:
        """Return the number of draws until the next comparison, at most the ``num_left`` draws of the warm-up."""
        return min([num_left, *(num - self.num_draws for num in self.comparisons)])

    def add(self, block: Block) -> None:
        """Add a block of warm-up draws."""
        self.num_draws += block.energy.shape[1]
        if self.comparisons:
            self.blocks.append(block)

    def compare(self) -> dict[int, int]:
        """Return the chains to restart, each with the chain from which it is restarted."""
        self.comparisons.remove(self.num_draws)
        positions = np.concatenate([block.position for block in self.blocks], axis=1)
        lost = lost_chains(positions, np.concatenate([block.potential_energy for block in self.blocks], axis=1))
        self.blocks = []
        self.notes += [
            f"chain {chain} was restarted from chain {donor} after {self.num_draws} warm-up draws, because it was in a "
            "region of negligible posterior mass"
            for chain, donor in lost.items()
        ]
        return lost


def lost_chains(positions: np.ndarray, potentials: np.ndarray) -> dict[int, int]:
    """Return the chains in a region of negligible posterior mass, each with the chain from which it is restarted.

    The logarithm of the mass around a chain is estimated by its mean log density plus the logarithm of the volume that
    it fills, the product of its standard deviations. The density alone does not suffice: in the neck of a funnel it is
    high, but the volume is tiny.

    Parameters
    ----------
    positions : (num_chains, num_draws, size)
        Recent warm-up draws, in any variables.
    potentials : (num_chains, num_draws)
        Minus the log density at each.

    Returns
    -------
    dict of int to int
        Empty if every chain has a mass within a factor exp(10 + size) of the largest; the margin allows for correlated
        draws.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = np.log(positions.std(axis=1)).sum(axis=-1) - potentials.mean(axis=1)
    log_mass = np.where(np.isfinite(log_mass), log_mass, -np.inf)
    if not np.isfinite(log_mass).any():
        return {}
    lost = log_mass < log_mass.max() - NEGLIGIBLE - positions.shape[-1]
    donors = sorted(np.flatnonzero(~lost), key=lambda chain: -log_mass[chain])
    return {int(chain): int(donors[i % len(donors)]) for i, chain in enumerate(np.flatnonzero(lost))}


def with_restarted(state: Any, lost: Mapping[int, int]) -> Any:
    """Return the state of all chains, (num_chains, ...), with that of its donor for each lost chain, except its key."""
    if not lost:
        return state
    chains, donors = np.array(list(lost)), np.array(list(lost.values()))

    def leaf(path, values):
        is_key = "rng_key" in jax.tree_util.keystr(path[-1:])
        return values if is_key or not np.ndim(values) else jnp.asarray(values).at[chains].set(values[donors])

    return jax.tree_util.tree_map_with_path(leaf, state)
