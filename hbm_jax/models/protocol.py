"""What the inference and the surfaces ask of a model: written down once, for whoever adds one.

A model is a frozen dataclass of its choices whose call is an ordinary NumPyro program. `simulated` and
`configuration` are the parts that every model would otherwise repeat.
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
    """A population model: choices, parameters with priors, and a NumPyro program.

    Only the call is needed to sample; any NumPyro program will do there. The rest is what summaries, figures, run
    folders and the command line go by. A model whose coordinates follow the data has one method more,
    ``observing(values, *args)``: the arguments with other values of its observed sites, for `hbm_jax.calibrate`. One
    that approximates may have ``cautions(data)``: sentences for the notes of a verdict on what is not as exact as it
    should be.
    """

    def __call__(self, data: Any, observed: bool = True, recover: bool = False) -> None:
        """Run the NumPyro program.

        With ``observed=False`` the sample is a design and its observed values are drawn, so that predictions and
        simulation can never disagree with the likelihood. With ``recover=True`` latents that the density integrates out
        are drawn too, each object's as a deterministic site. Names that begin with an underscore stay out of results.
        """
        ...

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior, in the order of tables; a number is a parameter held fixed."""
        ...

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites, beyond what the plates say."""
        ...

    def coords(self, data: Any) -> dict[str, list]:
        """Labels of the dimensions: first of all the names of the objects."""
        ...

    @property
    def units(self) -> dict[str, str]:
        """Units of parameters and latents; absent where dimensionless."""
        ...

    @property
    def description(self) -> str:
        """One line for reports."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Choices as plain values and priors as text, for storage; see `configuration`."""
        ...

    def simulate(self, key: jax.Array, data: Any, parameters: Mapping[str, float] | None = None) -> tuple[Any, dict]:
        """Draw a sample on the design of ``data``; returns it and the true value of every parameter and latent.

        Parameters not named are drawn from their priors; see `simulated`.
        """
        ...


def configuration(model) -> dict[str, Any]:
    """Choices of a model as plain values, priors as text; ``type(model)(**configuration(model))`` is the same model.

    Parameters
    ----------
    model : Model
        A dataclass with a field ``priors``.

    Returns
    -------
    dict
        Every field of the model, ``priors`` last and complete. A class that is not hbm_jax's own, for example a user's
        subclass, adds its full name as ``class``, so that it is never taken for the model whose name it shares. So does
        a choice of a user's own, such as an `hbm_jax.models.Expansion`, which stands there by its name.

    Raises
    ------
    ValueError
        For a prior that cannot be written as text.
    """
    names = [item.name for item in dataclasses.fields(model) if item.name != "priors"]
    choices = {name: getattr(model, name) for name in names}
    config = {name: value.to_config() if hasattr(value, "to_config") else value for name, value in choices.items()}
    config["priors"] = priors_to_text(model.all_priors)
    own = [config[name] for name, value in choices.items() if getattr(value, "own", False)]
    name = f"{type(model).__qualname__} with {own[0]}" if own else full_name(type(model))
    return config if name is None else config | {"class": name}


def full_name(model: type) -> str | None:
    """Return module and name of a model's class; None for hbm_jax's own, which are known by their bare names."""
    own = model.__module__.split(".")[0] == __name__.split(".")[0]
    return None if own else f"{model.__module__}.{model.__qualname__}"


def simulated(
    model, key: jax.Array, data: Any, parameters: Mapping[str, float] | None = None, *, recover: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run a model's program unobserved, with some parameters given.

    Parameters
    ----------
    model : Model
        A dataclass with a field ``priors``, in a form that has its latents as sites, or draws them to recover.
    key : jax.Array
        Random key.
    data : container
        The design.
    parameters : mapping of str to float, optional
        True values by name; those not named are drawn from their priors.
    recover : bool
        Whether the program is to draw what it integrates out.

    Returns
    -------
    observed, truth : dict of str to array
        What was drawn at the sites that ``model.dims`` names, which are those of the data, and the value of every
        parameter, held fixed or drawn, and of every latent.

    Raises
    ------
    ValueError
        For a parameter that the model does not have.
    """
    fixed = {name: float(value) for name, value in (parameters or {}).items()}
    model = dataclasses.replace(model, priors=dict(model.priors) | fixed)
    more = {"recover": True} if recover else {}
    with jax.enable_x64(True):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(data, observed=False, **more)
    drawn = {
        name: np.asarray(site["value"])
        for name, site in trace.items()
        if site["type"] in ("sample", "deterministic") and not name.startswith("_")
    }
    held = {name: value for name, value in model.all_priors.items() if not isinstance(value, dist.Distribution)}
    observed = {name: drawn.pop(name) for name in model.dims if name in drawn}
    return observed, drawn | {name: np.asarray(value) for name, value in held.items()}
