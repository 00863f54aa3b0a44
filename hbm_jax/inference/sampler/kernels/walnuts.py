"""The No-U-Turn sampler with step sizes that are chosen within a trajectory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import infer
from numpyro.infer.hmc import momentum_generator
from numpyro.infer.hmc_util import IntegratorState, build_tree, euclidean_kinetic_energy, warmup_adapter

from hbm_jax.inference.options import real_number, whole_number
from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian
from hbm_jax.inference.sampler.kernels.macro_step import IRREVERSIBLE, REVERSIBLE, Point, macro_step

MOST_HALVINGS = 20


@dataclass(frozen=True, kw_only=True)
class WALNUTS(Hamiltonian):
    """No-U-Turn sampler with step sizes that are chosen within a trajectory, for funnels and other varying scales.

    A simple form of WALNUTS (Bou-Rabee, Carpenter, Kleppe & Liu 2025, arXiv:2506.18746). Every step of a trajectory is
    divided into 2, 4, 8, ... leapfrog steps until the energy varies by at most ``max_energy_error`` along it. A
    trajectory ends at a step whose reverse would be divided otherwise; the draws have the exact posterior. A transition
    is divergent if the largest number of divisions does not suffice.

    For a posterior with one scale the steps are seldom divided, and it is close to `NUTS`. In a funnel it has no
    divergent transitions where `NUTS` has many, but mixes slowly: another parametrisation, such as that of
    `hbm_jax.centre`, needs far fewer gradients.

    Parameters
    ----------
    max_energy_error : float
        Largest difference between the energies (minus log densities) of two points along a step, above 0.
    max_halvings : int
        Largest number of times that a step is halved, 0 to 20.
    target_accept_prob : float, optional
        As in `NUTS`; a step that was divided counts as rejected.
    max_tree_depth : int
        A trajectory has at most ``2**max_tree_depth`` steps, before their division.

    Raises
    ------
    ValueError
        For options out of range.

    Examples
    --------
    >>> WALNUTS(max_halvings=12)
    WALNUTS(target_accept_prob=None, max_tree_depth=10, max_energy_error=2.0, max_halvings=12)
    """

    name: ClassVar[str] = "walnuts"
    equal_steps: ClassVar[bool] = False

    max_energy_error: float = field(
        default=2.0, metadata={"help": "largest variation of the energy along a step, above which it is divided"}
    )
    max_halvings: int = field(default=10, metadata={"help": "largest number of times that a step is halved, 0 to 20"})

    def __post_init__(self):
        super().__post_init__()
        error = real_number("max_energy_error", self.max_energy_error, "WALNUTS")
        halvings = whole_number("max_halvings", self.max_halvings, "WALNUTS")
        object.__setattr__(self, "max_energy_error", error)
        object.__setattr__(self, "max_halvings", halvings)
        if error is None or not 0 < error < np.inf:
            raise ValueError(f"WALNUTS: expected max_energy_error above 0; found {error}.")
        if halvings is None or not 0 <= halvings <= MOST_HALVINGS:
            raise ValueError(f"WALNUTS: expected max_halvings from 0 to {MOST_HALVINGS}; found {halvings}.")

    def kernel(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> "WalnutsKernel":
        """Return the kernel, with the interface of those of NumPyro."""
        return WalnutsKernel(self, potential, self.settings(potential, inverse_mass, dense, step_size))


class Tally(NamedTuple):
    """Sums over the macro steps on one side of the starting point of a trajectory.

    They are part of the positions in NumPyro's trees. The outermost positions of a finished tree are those of all steps
    that were made, also in subtrees that were rejected.

    Attributes
    ----------
    num_gradients : int
        Number of gradients.
    accepted : float
        Sum of acceptance probabilities, which are 0 for steps that were divided, failed or are irreversible.
    irreversible : bool
        True if the last step is irreversible.
    """

    num_gradients: Any
    accepted: Any
    irreversible: Any


@dataclass
class WalnutsKernel:
    """Kernel of `WALNUTS`: state, adaptation of the step size and trees of NumPyro, with macro steps as integrator."""

    sampler: WALNUTS
    potential: Callable
    settings: dict[str, Any]

    def init(self, key: Any, num_warmup: int, start: Any, args: tuple, kwargs: dict) -> Any:
        """Return the initial state."""
        self.num_warmup = num_warmup
        _, self._adapt = warmup_adapter(
            num_warmup,
            adapt_mass_matrix=False,
            dense_mass=self.settings["dense_mass"],
            target_accept_prob=self.sampler.target_accept_prob,
        )
        return infer.NUTS(**self.settings).init(key, num_warmup, start, args, kwargs)

    def sample(self, state: Any, args: tuple, kwargs: dict) -> Any:
        """Return the state after one trajectory."""
        key, key_momentum, key_tree = jax.random.split(state.rng_key, 3)
        adapt = state.adapt_state
        momentum = momentum_generator(state.z, adapt.mass_matrix_sqrt, key_momentum)
        energy = state.potential_energy + euclidean_kinetic_energy(adapt.inverse_mass_matrix, momentum)
        dtype = jnp.result_type(state.z)
        none = Tally(jnp.zeros((), jnp.result_type(int)), jnp.zeros((), dtype), jnp.array(False))
        tree = build_tree(
            self._update(energy),
            euclidean_kinetic_energy,
            IntegratorState((state.z, state.potential_energy, none), momentum, state.potential_energy, state.z_grad),
            adapt.inverse_mass_matrix,
            adapt.step_size,
            key_tree,
            max_tree_depth=self.sampler.max_tree_depth,
        )
        left, right = tree.z_left[-1], tree.z_right[-1]
        accept_prob = (left.accepted + right.accepted) / tree.num_proposals
        position = tree.z_proposal[0]
        end = IntegratorState(position, None, tree.z_proposal_pe, tree.z_proposal_grad)
        adapt = jax.lax.cond(
            state.i < self.num_warmup,
            lambda adapt: self._adapt(state.i, accept_prob, end, adapt),
            lambda adapt: adapt,
            adapt,
        )
        return state._replace(
            i=state.i + 1,
            z=position,
            z_grad=tree.z_proposal_grad,
            potential_energy=tree.z_proposal_pe,
            energy=tree.z_proposal_energy,
            num_steps=left.num_gradients + right.num_gradients,
            accept_prob=accept_prob,
            diverging=tree.diverging & ~(left.irreversible | right.irreversible),
            adapt_state=adapt,
            rng_key=key,
        )

    def _update(self, start_energy: Any) -> Callable:
        """Return the integrator of a trajectory that starts with this energy: one macro step.

        The potential is infinite at the end of a macro step that failed or is irreversible, which ends the tree.
        """
        value_and_grad = jax.value_and_grad(self.potential)

        def update(step_size, inverse_mass, state):
            (position, potential, tally), momentum, _, gradient = state
            step = macro_step(
                value_and_grad,
                inverse_mass,
                step_size,
                Point(position, momentum, potential, gradient),
                self.sampler.max_energy_error,
                self.sampler.max_halvings,
            )
            end = step.end
            reversible = step.outcome == REVERSIBLE
            energy = end.potential + euclidean_kinetic_energy(inverse_mass, end.momentum)
            accepted = jnp.where(
                reversible & (step.num_halvings == 0), jnp.clip(jnp.exp(start_energy - energy), None, 1.0), 0.0
            )
            tally = Tally(
                tally.num_gradients + step.num_gradients,
                tally.accepted + accepted.astype(tally.accepted.dtype),
                tally.irreversible | (step.outcome == IRREVERSIBLE),
            )
            potential = jnp.where(reversible, end.potential, jnp.inf)
            return IntegratorState((end.position, potential, tally), end.momentum, potential, end.gradient)

        return update
