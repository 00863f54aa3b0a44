"""Protocol of a model, and the functions that models share.

A model is a frozen dataclass of options whose call is an ordinary NumPyro program. `Model` lists what inference,
figures and the command line need of one. `simulated` and `configuration` implement the common parts.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from hbm_jax.models.base import configuration, full_name, simulated
from hbm_jax.models.priors import Prior

__all__ = ["Model", "configuration", "full_name", "simulated"]


@runtime_checkable
class Model(Protocol):
    """A population model: options, parameters with priors, and a NumPyro program.

    Sampling needs only the call, so it accepts any NumPyro program. Summaries, figures, run folders and the command
    line use the other members. Two methods are optional. ``observing(values, *args)`` returns the arguments with other
    values of the observed sites; `hbm_jax.calibrate` needs it where the parametrisation depends on the data.
    ``cautions(data)`` returns sentences for the notes of a verdict about approximations whose error is above its
    tolerance.
    """

    def __call__(self, data: Any, observed: bool = True, recover: bool = False) -> None:
        """Run the NumPyro program.

        With ``observed=False`` the program draws the observed values for the design of ``data``, so predictions and
        simulations use the same code as the likelihood. With ``recover=True`` it also draws the latents of each object
        that are integrated out, as deterministic sites. Sites whose names begin with an underscore are left out of
        results.
        """
        ...

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior, in the order of tables; a number fixes a parameter."""
        ...

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that their plates do not name."""
        ...

    def coords(self, data: Any) -> dict[str, list]:
        """Return the labels of the dimensions; the first are the names of the objects."""
        ...

    @property
    def units(self) -> dict[str, str]:
        """Units of parameters and latents; absent where dimensionless."""
        ...

    @property
    def description(self) -> str:
        """One-line description for reports."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Return the options as plain values and the priors as text, for storage; see `configuration`."""
        ...

    def simulate(self, key: jax.Array, data: Any, parameters: Mapping[str, float] | None = None) -> tuple[Any, dict]:
        """Draw a sample with the design of ``data``; return it with the true value of every parameter and latent.

        Parameters not named are drawn from their priors; see `simulated`.
        """
        ...
