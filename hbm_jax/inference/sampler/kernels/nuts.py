"""The No-U-Turn sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from numpyro import infer

from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian


@dataclass(frozen=True, kw_only=True)
class NUTS(Hamiltonian):
    """No-U-Turn sampler (Hoffman & Gelman 2014, JMLR 15, 1593), the default of `hbm_jax.sample`.

    Parameters
    ----------
    target_accept_prob : float, optional
        Mean acceptance probability, between 0 and 1, that the step size is adapted to; a higher value gives smaller
        steps. Default: ``program.target_accept_prob`` if the program has it (some models of hbm_jax do), else 0.8.
    max_tree_depth : int
        Largest depth of the trees: a trajectory has at most ``2**max_tree_depth`` leapfrog steps.

    Raises
    ------
    ValueError
        For options out of range.

    Examples
    --------
    >>> NUTS(target_accept_prob=0.95)
    NUTS(target_accept_prob=0.95, max_tree_depth=10)
    """

    name: ClassVar[str] = "nuts"

    def kernel(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> Any:
        """Return the NumPyro kernel."""
        return infer.NUTS(
            **self.settings(potential, inverse_mass, dense, step_size), max_tree_depth=self.max_tree_depth
        )
