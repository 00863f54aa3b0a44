"""Gaussian constraints of other experiments on the expansion history, as a term of the log density."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.cosmology.compressed import CMB, STANDARD_RADIATION, compressed, drag_horizon
from hbm_jax.data import GaussianConstraints, load_constraints, read_constraints
from hbm_jax.data.supernovae.constraints import PUBLISHED
from hbm_jax.models.priors import Prior

BARYONS: Prior = dist.Uniform(0.005, 0.1)
SOUND_HORIZON: Prior = dist.Uniform(80.0, 250.0)
FREE_H0: Prior = dist.Uniform(40.0, 100.0)


def constraints_from(choice: Any) -> GaussianConstraints | None:
    """Return constraints from their configuration, or from names and files joined by ``" + "``; others unchanged.

    Raises
    ------
    ValueError
        For text that is neither the name of published constraints nor a file.
    """
    if choice is None or isinstance(choice, GaussianConstraints):
        return choice
    if isinstance(choice, Mapping):
        return GaussianConstraints.from_config(choice)
    parts = [_named_or_read(part.strip()) for part in str(choice).split(" + ")]
    return sum(parts[1:], parts[0])


def _named_or_read(name: str) -> GaussianConstraints:
    """Return published constraints, or those of a file."""
    if name in PUBLISHED or not (Path(name).suffix or Path(name).exists()):
        return load_constraints(name)
    return read_constraints(name)


def default_priors(constraints: GaussianConstraints, priors: Mapping[str, Any]) -> dict[str, Prior]:
    """Return the default priors of the parameters that constraints add or free, given those that a user sets."""
    added: dict[str, Prior] = {}
    if constraints.needs_hubble:
        added["H0"] = FREE_H0
    if constraints.needs_baryons:
        added["omega_b"] = BARYONS
    # Without a prior of r_d, the sound horizon follows from the density of baryons (`drag_horizon`).
    if constraints.needs_sound_horizon and ("omega_b" not in added or "r_d" in priors):
        added["r_d"] = SOUND_HORIZON
    return added


def with_constraints(
    constraints: GaussianConstraints, cosmology: Any, nuisance: Mapping[str, Any], observed: bool
) -> Cosmology:
    """Add the log density of constraints; return the cosmology with the radiation that they require.

    Parameters
    ----------
    constraints : GaussianConstraints
        The constraints.
    cosmology : Cosmology
        The sampled cosmology.
    nuisance : mapping of str to scalar
        Values of omega_b and r_d, where they are parameters.
    observed : bool
        True to add the log density; False where data are drawn.

    Raises
    ------
    ValueError
        For a cosmology defined by distances only.
    """
    if not isinstance(cosmology, Cosmology):
        raise ValueError(
            f"HubbleDiagram: constraints expect a cosmology with an expansion rate; found "
            f"{type(cosmology).__name__}, which has distances only."
        )
    if set(CMB) & set(constraints.quantity):
        cosmology = dataclasses.replace(cosmology, radiation=STANDARD_RADIATION)
    if observed:
        omega_b, r_d = nuisance.get("omega_b"), nuisance.get("r_d")
        if r_d is None and omega_b is not None:
            r_d = drag_horizon(cosmology.Om0 * (cosmology.H0 / 100.0) ** 2, omega_b)
        predicted = compressed(constraints.quantity, np.asarray(constraints.z), cosmology, omega_b, r_d)
        whitening = np.linalg.inv(np.linalg.cholesky(constraints.covariance))
        residual = jnp.matmul(whitening, predicted - constraints.value)
        finite = jnp.all(jnp.isfinite(residual))
        chi2 = jnp.sum(jnp.where(finite, residual, 0.0) ** 2)
        numpyro.factor("constraints", jnp.where(finite, -0.5 * chi2, -jnp.inf))
    return cosmology
