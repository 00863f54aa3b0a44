"""Choice between trajectories of a given length and NUTS, by how close to normal the posterior is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hbm_jax.inference.sampler.kernels.hamiltonian import Hamiltonian
from hbm_jax.inference.sampler.kernels.hmc import HMC
from hbm_jax.inference.sampler.kernels.nuts import NUTS

TRAJECTORY_LENGTH = 1.5  # in posterior standard deviations; a quarter of a period, pi / 2, of a normal posterior


@dataclass(frozen=True, kw_only=True)
class Automatic(Hamiltonian):
    """`HMC` where the posterior is close to the normal distribution found by the searches, `NUTS` elsewhere.

    It is the default of `hbm_jax.sample`. Its options are those of `NUTS`.
    """

    name: ClassVar[str] = "automatic"

    def chosen(self, nearly_normal: bool) -> Hamiltonian:
        """Return the sampler for a posterior that is nearly normal, see `Start.nearly_normal`, or not."""
        options: dict[str, Any] = {
            "target_accept_prob": self.target_accept_prob,
            "max_tree_depth": self.max_tree_depth,
        }
        if nearly_normal:
            return HMC(trajectory_length=TRAJECTORY_LENGTH, **options)
        return NUTS(**options)

    def kernel(self, potential: Callable, inverse_mass: Any, dense: bool, step_size: Any) -> Any:
        """Return the NumPyro kernel of NUTS, for an unknown posterior."""
        return self.chosen(nearly_normal=False).kernel(potential, inverse_mass, dense, step_size)
