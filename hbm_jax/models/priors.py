"""What every model shares about its parameters: default priors, overrides by name, fixed values, and their text."""

from collections.abc import Mapping
from typing import TypeAlias

import numpyro
from numpyro import distributions as dist
from numpyro.primitives import apply_stack

from hbm_jax.distributions.notation import distribution_from_text, distribution_to_text
from hbm_jax.names import did_you_mean

Prior: TypeAlias = dist.Distribution | float


def complete_priors(
    defaults: Mapping[str, Prior], overrides: Mapping[str, Prior | str], model: str
) -> dict[str, Prior]:
    """Defaults with a user's overrides in their place.

    Parameters
    ----------
    defaults : mapping of str to Distribution or float
        Every parameter of the model; a number is a parameter held fixed.
    overrides : mapping of str to Distribution, float or str
        By the same names; text such as ``"Normal(0, 1)"`` is read by `distribution_from_text`.
    model : str
        What the parameters belong to, named in errors.

    Raises
    ------
    ValueError
        For a name the model does not have (the nearest one is offered), text that is no distribution, and a prior
        that is not over one number.
    """
    for name, prior in overrides.items():
        if name not in defaults:
            raise ValueError(
                f"{model} has no parameter {name!r}{did_you_mean(name, defaults)}: expected one of "
                f"{', '.join(defaults)}."
            )
        if not isinstance(prior, dist.Distribution | int | float | str) or isinstance(prior, bool):
            raise ValueError(
                f"prior.{name}: expected a NumPyro distribution, its text, or a number; found {prior!r}, which is "
                f"{type(prior).__name__}."
            )
        if isinstance(prior, dist.Distribution) and (prior.batch_shape or prior.event_shape):
            raise ValueError(
                f"prior.{name}: expected a distribution of one number; found {type(prior).__name__} with batch shape "
                f"{prior.batch_shape} and event shape {prior.event_shape}."
            )
    read = {
        name: distribution_from_text(prior, f"prior.{name}") if isinstance(prior, str) else prior
        for name, prior in overrides.items()
    }
    return {name: read.get(name, default) for name, default in defaults.items()}


def sample_prior(name: str, prior: Prior):
    """Sample site of a prior; a number is a parameter held fixed and makes no site."""
    return numpyro.sample(name, prior) if isinstance(prior, dist.Distribution) else prior


def in_stated_parameters() -> bool:
    """Whether the program is to sample the parameters that its priors are stated for, and no coordinates of them.

    Coordinates are for samplers. A NumPyro handler that wants the parameters answers the message
    ``stated_parameters`` with True, as that of `hbm_jax.inference.maximum_likelihood` does; their joint density is the
    same.
    """
    return bool(apply_stack({"type": "stated_parameters", "value": False})["value"])


def standardised(prior: dist.Distribution, unit, center) -> dist.Distribution:
    """Prior in the units of the data of one for a standardised quantity: normal and half-normal ones move and scale."""
    if isinstance(prior, dist.Normal):
        return dist.Normal(center + unit * prior.loc, unit * prior.scale)
    if isinstance(prior, dist.HalfNormal):
        return dist.HalfNormal(unit * prior.scale)
    raise TypeError(f"standardised: expected a normal or half-normal prior; found {type(prior).__name__}.")


def priors_to_text(priors: Mapping[str, Prior]) -> dict[str, str]:
    """Every prior as text, for run folders and reports."""
    return {name: distribution_to_text(prior) for name, prior in priors.items()}
