"""Reasons why a program cannot be sampled: its sites, or a log density that is not finite."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from hbm_jax.inference.arguments import arguments_with_nan, rows_with_nan, without_support_warnings


class Diagnosis(NamedTuple):
    """Reasons why a log density is not finite, as sentences.

    Attributes
    ----------
    observed : str
        Observed sites that have NaN; empty if none has.
    sites : str
        Sites whose log densities are not finite; empty if all are finite.
    """

    observed: str
    sites: str


def diagnose(program: Callable, proper: Callable, args: tuple, sites: Callable[[], dict[str, Any]]) -> Diagnosis:
    """Return the diagnosis of the log density at values of the sites by name; the program runs without compilation.

    Parameters
    ----------
    program : callable
        The program, whose arguments are named.
    proper : callable
        The same program with proper priors of its auxiliary sites.
    args : tuple
        Arguments of the program.
    sites : callable
        Returns the values of the sites by name.
    """
    try:
        seeded = handlers.seed(handlers.substitute(proper, sites()), 0)
        trace = handlers.trace(seeded).get_trace(*args)
    except Exception:  # a program may fail without compilation, for example in its validation
        return Diagnosis("", arguments_with_nan(program, args))
    invalid, infinite = [], []
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        is_real = jnp.issubdtype(jnp.result_type(site["value"]), jnp.floating)
        if site["is_observed"] and is_real and (rows := rows_with_nan(site["value"])):
            invalid.append(f"observed site {name!r} has NaN in {rows}")
        with without_support_warnings():
            total = np.asarray(jnp.sum(site["fn"].log_prob(site["value"])))
        if not np.isfinite(total):
            infinite.append(f"{name!r} ({total:g})")
    sites_text = (
        f"At the median of the prior the log density is not finite at {', '.join(infinite)}. " if infinite else ""
    )
    if not invalid:
        return Diagnosis("", arguments_with_nan(program, args) + sites_text)
    return Diagnosis(f"The {'; the '.join(invalid)}. ", sites_text)


def require_continuous(free: Mapping[str, Any]) -> None:
    """Raise ValueError if a latent site is discrete."""
    for name, site in free.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"The program has a discrete latent site {name!r}: expected continuous latents only, because NUTS "
                "needs gradients. Sum over its values in the program: where it selects a component, use "
                "numpyro.distributions.MixtureSameFamily or MixtureGeneral; otherwise add the log densities of all "
                "values, of a count up to where it is negligible, with jax.nn.logsumexp in a numpyro.factor. "
                "(NumPyro's own enumeration needs funsor, which hbm_jax does not use.)"
            )


def require_matching_shapes(trace: Mapping[str, Any]) -> None:
    """Raise ValueError if the values of an observed site do not fit its distribution."""
    for name, site in trace.items():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        expected, actual = tuple(site["fn"].shape()), jnp.shape(site["value"])
        try:
            np.broadcast_shapes(expected, actual)
        except ValueError:
            raise ValueError(
                f"Observed site {name!r}: expected values of the shape of its distribution, {expected}; found {actual}."
            ) from None
