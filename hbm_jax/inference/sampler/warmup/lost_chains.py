"""Chains in regions of negligible posterior mass, which are begun again during the warm-up."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.sampler.initialisation import NEGLIGIBLE
from hbm_jax.inference.sampler.kernels.protocol import Block

FEWEST_DRAWS = 25  # of a chain, from which its mass is estimated


class LostChains:
    """Two looks at the chains during the warm-up, after a quarter and a half of its draws.

    They are at fixed draws, so that neither the division into blocks nor a resumed run changes what is drawn.

    Attributes
    ----------
    notes : list of str
        A sentence for each chain that was begun again.
    """

    def __init__(self, num_warmup: int):
        self.looks = [n for n in (num_warmup // 4, num_warmup // 2) if num_warmup // 4 >= FEWEST_DRAWS]
        self.blocks: list[Block] = []  # since the last look
        self.num_draws = 0
        self.notes: list[str] = []

    @property
    def due(self) -> bool:
        """True if the chains must be compared before the next draw."""
        return self.num_draws in self.looks

    def draws_before_look(self, num_left: int) -> int:
        """Return the number of draws until the next look or, if that is sooner, until the end of the warm-up."""
        return min(num_left, *(look - self.num_draws for look in self.looks)) if self.looks else num_left

    def add(self, block: Block) -> None:
        """Add a block of warm-up draws."""
        self.num_draws += block.energy.shape[1]
        if self.looks:
            self.blocks.append(block)

    def look(self) -> dict[int, int]:
        """Return the chains that are to be begun again, each with the chain to begin it again from."""
        self.looks.remove(self.num_draws)
        positions = np.concatenate([block.position for block in self.blocks], axis=1)
        lost = lost_chains(positions, np.concatenate([block.potential_energy for block in self.blocks], axis=1))
        self.blocks = []
        self.notes += [
            f"chain {chain} was begun again from chain {donor} after {self.num_draws} warm-up draws, because it was in "
            "a region of negligible posterior mass"
            for chain, donor in lost.items()
        ]
        return lost


def lost_chains(positions: np.ndarray, potentials: np.ndarray) -> dict[int, int]:
    """Return the chains in a region of negligible posterior mass, each with the chain to begin it again from.

    The logarithm of the mass around a chain is estimated by its mean log density plus the logarithm of the volume that
    it fills, the product of its standard deviations. A density alone does not tell: the neck of a funnel has a high one
    in a tiny volume.

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


def begun_again(state: Any, lost: Mapping[int, int]) -> Any:
    """Return the state of all chains, a pytree (num_chains, ...), with that of others, but their own random keys."""
    if not lost:
        return state
    chains, donors = np.array(list(lost)), np.array(list(lost.values()))

    def leaf(path, values):
        is_key = "rng_key" in jax.tree_util.keystr(path[-1:])
        return values if is_key or not np.ndim(values) else jnp.asarray(values).at[chains].set(values[donors])

    return jax.tree_util.tree_map_with_path(leaf, state)
