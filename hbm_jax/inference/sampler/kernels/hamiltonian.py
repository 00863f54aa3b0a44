"""Options and steps shared by the samplers with Hamiltonian trajectories."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.options import real_number, whole_number
from hbm_jax.inference.sampler.kernels.protocol import Block, Chain, Sampler


@dataclass(frozen=True, kw_only=True)
class Hamiltonian(Sampler):
    """Options of Hamiltonian trajectories, and the loop over them; see `NUTS` and `HMC`."""

    target_accept_prob: float | None = field(
        default=None, metadata={"help": "mean acceptance probability; higher means smaller steps"}
    )
    max_tree_depth: int = field(default=10, metadata={"help": "at most 2 to this power leapfrog steps per trajectory"})

    def __post_init__(self):
        owner = type(self).__name__
        object.__setattr__(self, "max_tree_depth", whole_number("max_tree_depth", self.max_tree_depth, owner))
        probability = real_number("target_accept_prob", self.target_accept_prob, owner)
        object.__setattr__(self, "target_accept_prob", probability)
        if self.max_tree_depth is None or self.max_tree_depth < 1:
            raise ValueError(f"{owner}: expected max_tree_depth >= 1; found {self.max_tree_depth}.")
        if probability is not None and not 0 < probability < 1:
            raise ValueError(f"{owner}: expected target_accept_prob between 0 and 1; found {probability}.")

    def _check_length(self, length: float | None) -> None:
        """Store ``trajectory_length``; raise ValueError unless it is None or positive and finite."""
        length = real_number("trajectory_length", length, type(self).__name__)
        object.__setattr__(self, "trajectory_length", length)
        if length is not None and not 0 < length < np.inf:
            raise ValueError(f"{type(self).__name__}: expected trajectory_length above 0; found {length}.")

    def resolved(self, target_accept_prob: float) -> Self:
        """Return the sampler with this acceptance probability if none was given."""
        return self if self.target_accept_prob is not None else replace(self, target_accept_prob=target_accept_prob)

    def settings(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> dict[str, Any]:
        """Return the settings shared by all kernels of NumPyro."""
        return {
            "potential_fn": potential,
            "dense_mass": dense,
            "inverse_mass_matrix": inverse_mass,
            "step_size": step_size,
            "target_accept_prob": self.target_accept_prob,
            "adapt_mass_matrix": False,  # see `Adaptation`
        }

    def prepared(self, state: Any) -> Any:
        """Return the state from which the next trajectory starts."""
        return state

    def trajectory(self, chain: Chain, state: Any) -> Any:
        """Return the state after one trajectory."""
        return chain.kernel.sample(self.prepared(state), (), {})

    def advance(self, chain: Chain, state: Any, key: Any, fitted: Any, first: Any, num_draws: Any) -> tuple[Any, Block]:
        """Advance one chain by trajectories; see `Sampler.advance`."""

        def step(index, carry):
            state, buffers = carry
            state = self.trajectory(chain, state)
            return state, jax.tree.map(lambda buffer, new: buffer.at[index].set(new), buffers, statistics(chain, state))

        return jax.lax.fori_loop(0, num_draws, step, (state, empty_block(chain, state)))


def statistics(chain: Chain, state: Any) -> Block:
    """Return the draw of a state, with its statistics."""
    return Block(
        chain.to_position(state.z),
        state.potential_energy,
        state.energy,
        state.num_steps,
        state.accept_prob,
        state.diverging,
        state.z_grad,
    )


def empty_block(chain: Chain, state: Any) -> Block:
    """Return a block of zeros for the draws of a call."""
    draw = statistics(chain, state)
    return jax.tree.map(lambda x: jnp.zeros((chain.buffer, *jnp.shape(x)), jnp.result_type(x)), draw)
