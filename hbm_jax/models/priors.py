"""Priors of model parameters: defaults, overrides by name, fixed values, and their text form."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro.primitives import apply_stack

from hbm_jax.distributions.notation import distribution_from_text, distribution_to_text
from hbm_jax.models.ties import Tie
from hbm_jax.names import did_you_mean

Prior: TypeAlias = dist.Distribution | float


class Priors(dict):
    """Priors by parameter name, which are printed with a line for each, in the notation of configurations."""

    def __repr__(self) -> str:
        return prior_lines(self) or "{}"


def prior_lines(priors: Mapping[str, Any], remarks: Mapping[str, str] | None = None) -> str:
    """Return aligned lines of text, one for each parameter: its name, its prior, and a remark such as its unit."""
    texts = {name: _prior_text(prior) for name, prior in priors.items()}
    name_width, text_width = (max(map(len, column), default=0) for column in (texts, texts.values()))
    lines = (
        f"{name:<{name_width}}  {text:<{text_width}}  {(remarks or {}).get(name, '')}" for name, text in texts.items()
    )
    return "\n".join(line.rstrip() for line in lines)


def _prior_text(prior: Any) -> str:
    """Return a prior as text; NumPyro's representation if it cannot be written in the notation of configurations."""
    try:
        return str(prior) if isinstance(prior, str | Tie) else distribution_to_text(prior)
    except ValueError:
        return repr(prior)


def complete_priors(
    defaults: Mapping[str, Prior],
    overrides: Mapping[str, Prior | str],
    model: str,
    read: Callable[[str, str], Any] = distribution_from_text,
) -> dict[str, Prior]:
    """Return the default priors, replaced by the user's overrides where there are any.

    Parameters
    ----------
    defaults : mapping of str to Distribution or float
        Prior of every parameter of the model; a number fixes a parameter.
    overrides : mapping of str to Distribution, float or str
        Priors by parameter name; text such as ``"Normal(0, 1)"`` is read by `distribution_from_text`.
    model : str
        Name of the model in error messages.
    read : callable
        Reader of priors given as text, from the text and the name for error messages.

    Raises
    ------
    ValueError
        For a parameter name that the model does not have (the message suggests the nearest), text that does not
        describe a distribution, or a prior that is not scalar.
    """
    for name, prior in overrides.items():
        if name not in defaults:
            raise ValueError(
                f"{model} has no parameter {name!r}{did_you_mean(name, defaults)}: expected one of "
                f"{', '.join(defaults)}."
            )
        if not isinstance(prior, dist.Distribution | int | float | str | Tie) or isinstance(prior, bool):
            raise ValueError(
                f"prior.{name}: expected a NumPyro distribution, its text, or a number; found {prior!r} of type "
                f"{type(prior).__name__}."
            )
        if isinstance(prior, dist.Distribution) and (prior.batch_shape or prior.event_shape):
            raise ValueError(
                f"prior.{name}: expected a scalar distribution; found {type(prior).__name__} with batch shape "
                f"{prior.batch_shape} and event shape {prior.event_shape}."
            )
    parsed = {
        name: read(prior, f"prior.{name}") if isinstance(prior, str) else prior for name, prior in overrides.items()
    }
    return Priors({name: parsed.get(name, default) for name, default in defaults.items()})


def sample_prior(name: str, prior: Prior, *, auxiliary: bool = False):
    """Sample a parameter from its prior, or return its value, without a site, where it is fixed.

    With ``auxiliary=True`` the prior is the result of another measurement, such as a calibration; the likelihood of a
    best fit includes it.
    """
    if not isinstance(prior, dist.Distribution):
        return prior
    return numpyro.sample(name, prior, infer={"auxiliary": True} if auxiliary else None)


def sample_shaped(name: str, prior: Prior, shape: tuple[int, ...] = ()):
    """Sample independent elements of a parameter with this shape; a fixed parameter has its value in all elements."""
    if not isinstance(prior, dist.Distribution):
        return jnp.full(shape, float(prior))
    return jnp.asarray(numpyro.sample(name, prior.expand(shape).to_event(len(shape)) if shape else prior))


def in_stated_parameters() -> bool:
    """Return whether the program should sample its parameters directly, without reparametrisation.

    Reparametrisation makes sampling efficient and leaves the joint density of the parameters unchanged. A NumPyro
    handler that needs the parameters themselves, such as that of `hbm_jax.inference.maximum_likelihood`, sets the value
    of the message ``stated_parameters`` to True.
    """
    return bool(apply_stack({"type": "stated_parameters", "value": False})["value"])


def in_data_units(prior: Prior, unit, center=0.0) -> Prior:
    """Return the prior of a standardised quantity, transformed to the units of the data.

    Normal and half-normal distributions are transformed; others, of dimensionless quantities, are unchanged.
    """
    if isinstance(prior, dist.Normal):
        return dist.Normal(center + unit * prior.loc, unit * prior.scale)
    if isinstance(prior, dist.HalfNormal):
        return dist.HalfNormal(unit * prior.scale)
    return prior


def priors_to_text(priors: Mapping[str, Any]) -> dict[str, str]:
    """Return every prior as text, for run folders and reports; text, such as "flat", and formulas are unchanged."""
    return {name: str(p) if isinstance(p, str | Tie) else distribution_to_text(p) for name, p in priors.items()}
