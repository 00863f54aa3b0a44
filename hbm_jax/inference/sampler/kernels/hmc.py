"""Hamiltonian Monte Carlo with trajectories of a given mean length."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro import infer

from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian

SPREAD = 0.5  # of the lengths about their mean, relative to it
GOLDEN = 0.6180339887498949  # golden ratio minus 1; its multiples modulo 1 are spread more evenly than random numbers


@dataclass(frozen=True, kw_only=True)
class HMC(Hamiltonian):
    """Hamiltonian Monte Carlo with trajectories of a given mean length.

    A length of 1.5 suits a posterior close to normal, such as most posteriors with the latents marginalised, and needs
    a half to two thirds of the gradients of `NUTS` for the same effective sample size. If the posterior is far from
    normal the chains mix badly, and the verdict reports it.

    Parameters
    ----------
    trajectory_length : float
        Mean length of the trajectories, above 0, in posterior standard deviations. Lengths are spread evenly between
        half and one and a half times the mean.
    target_accept_prob : float, optional
        As in `NUTS`.
    max_tree_depth : int
        A trajectory has at most ``2**max_tree_depth`` leapfrog steps.

    Raises
    ------
    ValueError
        For options out of range.
    """

    name: ClassVar[str] = "hmc"

    trajectory_length: float = field(
        metadata={"help": "mean length of trajectories, in posterior standard deviations; 1.5 suits most"}
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_length(self.trajectory_length)
        if self.trajectory_length is None:
            raise ValueError("HMC: expected trajectory_length to be a number; found None.")

    def kernel(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> Any:
        """Return the NumPyro kernel."""
        return infer.HMC(
            **self.settings(potential, inverse_mass, dense, step_size), trajectory_length=self.trajectory_length
        )

    def prepared(self, state: Any) -> Any:
        """Set the length of the next trajectory; lengths vary because a constant one may be a period of the motion.

        Of a normal posterior, a trajectory of a quarter of a period, pi / 2, gives an independent draw; with short ones
        among them, squares of parameters, on which R-hat and the effective sample sizes of tails depend, mix slowly.
        """
        relative = 1.0 + SPREAD * (2.0 * jnp.mod(GOLDEN * (state.i + 1.0), 1.0) - 1.0)
        # If floating-point numbers are too coarse for the posterior, the energy error does not depend on the step size,
        # whose adaptation then diverges: a trajectory has at most as many steps as the deepest tree, and at least one
        # (NumPyro takes none if the step size is infinite).
        step_size = jnp.minimum(state.adapt_state.step_size, 2.0 * self.trajectory_length)
        length = jnp.minimum(relative * self.trajectory_length, step_size * 2**self.max_tree_depth)
        return state._replace(trajectory_length=length, adapt_state=state.adapt_state._replace(step_size=step_size))
