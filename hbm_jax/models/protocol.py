"""Protocol of a model, and the functions that models share.

A model is a frozen dataclass of options whose call is an ordinary NumPyro program. `Model` lists what inference,
figures and the command line need of one. `simulated` and `configuration` implement the common parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from numpyro import distributions as dist
from numpyro import handlers

from hbm_jax.models.priors import Prior, priors_to_text


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


def configuration(model) -> dict[str, Any]:
    """Return a model's options as plain values and its priors as text.

    ``type(model)(**configuration(model))`` is the same model.

    Parameters
    ----------
    model : Model
        A dataclass with a field ``priors``.

    Returns
    -------
    dict
        Every field of the model; ``priors`` comes last and contains all of them. For a class defined outside hbm_jax,
        such as a user's subclass, its full name is added as ``class``, so that it is not confused with a model of the
        same name. ``class`` also marks a user-defined option, such as a `hbm_jax.models.Expansion`, which is stored by
        its name.

    Raises
    ------
    ValueError
        If a prior cannot be written as text.
    """
    names = [item.name for item in dataclasses.fields(model) if item.name != "priors"]
    options = {name: getattr(model, name) for name in names}
    config = {name: value.to_config() if hasattr(value, "to_config") else value for name, value in options.items()}
    config["priors"] = priors_to_text(model.all_priors)
    user_defined = [config[name] for name, value in options.items() if getattr(value, "own", False)]
    name = f"{type(model).__qualname__} with {user_defined[0]}" if user_defined else full_name(type(model))
    return config if name is None else config | {"class": name}


def full_name(model: type) -> str | None:
    """Return the module and name of a model's class, or None for a class of hbm_jax."""
    internal = model.__module__.split(".")[0] == __name__.split(".")[0]
    return None if internal else f"{model.__module__}.{model.__qualname__}"


def simulated(
    model, key: jax.Array, data: Any, parameters: Mapping[str, float] | None = None, *, recover: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw data, parameters and latents from a model's program, with some parameters fixed.

    Parameters
    ----------
    model : Model
        A dataclass with a field ``priors``, whose program samples its latents or draws them with ``recover=True``.
    key : jax.Array
        Random key.
    data : container
        The design.
    parameters : mapping of str to float, optional
        True values by name; parameters not named are drawn from their priors.
    recover : bool
        Whether the program draws the latents that it integrates out.

    Returns
    -------
    observed, truth : dict of str to array
        Values drawn at the data sites, those named in ``model.dims``; and the value of every parameter, fixed or
        drawn, and of every latent.

    Raises
    ------
    ValueError
        For a parameter that the model does not have.
    """
    fixed = {name: float(value) for name, value in (parameters or {}).items()}
    model = dataclasses.replace(model, priors=dict(model.priors) | fixed)
    options = {"recover": True} if recover else {}
    with jax.enable_x64(True):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(data, observed=False, **options)
    drawn = {
        name: np.asarray(site["value"])
        for name, site in trace.items()
        if site["type"] in ("sample", "deterministic") and not name.startswith("_")
    }
    constants = {name: value for name, value in model.all_priors.items() if not isinstance(value, dist.Distribution)}
    observed = {name: drawn.pop(name) for name in model.dims if name in drawn}
    return observed, drawn | {name: np.asarray(value) for name, value in constants.items()}
