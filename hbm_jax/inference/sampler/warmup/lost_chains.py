"""Restart during the warm-up of chains that are lost in regions of negligible posterior mass."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.sampler.initialisation import NEGLIGIBLE
from hbm_jax.inference.sampler.kernels.protocol import Block

FEWEST_DRAWS = 25  # of a chain, from which its mass is estimated
NORMAL_MIDDLE = 1.349  # width of the middle half of a normal distribution, in standard deviations


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

    def compare(self, from_position: Callable) -> dict[int, int]:
        """Return the chains to restart, each with the chain from which it is restarted.

        ``from_position`` returns the variables of the sampler at unconstrained positions, (..., size) each.
        """
        self.comparisons.remove(self.num_draws)
        positions, gradients, potentials = (
            np.concatenate([getattr(block, name) for block in self.blocks], axis=1)
            for name in ("position", "gradient", "potential_energy")
        )
        self.blocks = []
        if gradients.shape != positions.shape:  # of a checkpoint of an older version, with a complete warm-up
            return {}
        lost = lost_chains(from_position(positions), gradients, potentials)
        self.notes += [
            f"chain {chain} was restarted from chain {donor} after {self.num_draws} warm-up draws, because it was in a "
            "region of negligible posterior mass"
            for chain, donor in lost.items()
        ]
        return lost


def lost_chains(positions: np.ndarray, gradients: np.ndarray, potentials: np.ndarray) -> dict[int, int]:
    """Return the chains in a region of negligible posterior mass, each with the chain from which it is restarted.

    The logarithm of the mass around a chain is that of a typical density plus that of the volume it fills. The density
    alone does not suffice: in the neck of a funnel it is high, but the volume is tiny. The product of the standard
    deviations of the positions is an upper bound of the volume, reached without correlations, and that of the inverse
    widths of the gradients, where these are smaller, a lower bound. A chain is lost if its upper bound, with the median
    density, is far below the largest lower bound, with the first quartile of the density and the middle halves of
    positions and gradients. In these, a chain on its way out of a neck has the widths of the neck, unless half of its
    draws, and so the density, are in the bulk.

    Parameters
    ----------
    positions, gradients : (num_chains, num_draws, size)
        Recent warm-up draws, and the gradient of the log density at each, of either sign, in the same variables.
    potentials : (num_chains, num_draws)
        Minus the log density at each.

    Returns
    -------
    dict of int to int
        Empty if every chain may have a mass within a factor exp(10 + size) of the largest; the margin allows for
        correlated draws.
    """
    with np.errstate(all="ignore"):
        highest = np.log(positions.std(axis=1)).sum(axis=-1) - np.median(potentials, axis=1)
        smallest = np.minimum(_middle(positions), 1.0 / _middle(gradients))
        lowest = np.log(smallest).sum(axis=-1) - np.quantile(potentials, 0.75, axis=1)
    highest, lowest = (np.where(np.isfinite(x), x, -np.inf) for x in (highest, lowest))
    if not np.isfinite(lowest).any():
        return {}
    lost = highest < lowest.max() - NEGLIGIBLE - positions.shape[-1]
    donors = sorted(np.flatnonzero(~lost), key=lambda chain: -lowest[chain])
    return {int(chain): int(donors[i % len(donors)]) for i, chain in enumerate(np.flatnonzero(lost))}


def _middle(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation of a normal distribution with the middle half of the draws, (num_chains, size)."""
    lower, upper = np.quantile(values, (0.25, 0.75), axis=1)
    return (upper - lower) / NORMAL_MIDDLE


def with_restarted(state: Any, lost: Mapping[int, int]) -> Any:
    """Return the state of all chains, (num_chains, ...), with that of its donor for each lost chain, except its key."""
    if not lost:
        return state
    chains, donors = np.array(list(lost)), np.array(list(lost.values()))

    def leaf(path, values):
        is_key = "rng_key" in jax.tree_util.keystr(path[-1:])
        return values if is_key or not np.ndim(values) else jnp.asarray(values).at[chains].set(values[donors])

    return jax.tree_util.tree_map_with_path(leaf, state)
