"""Coefficients of a regression, sampled in coordinates in which the predictors are orthogonal."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.regression.regression_data import INTERCEPT
from hbm_jax.distributions.linear.linear_coordinates import LinearCoordinates, Piece
from hbm_jax.models.priors import in_stated_parameters

FLAT = "flat"  # an improper uniform prior
# Priors for standardised variables: in units of the linear predictor over the standard deviation of the predictor.
COEFFICIENTS: dict[str, Any] = {"intercept": dist.Normal(0.0, 2.5), "coef": dist.Normal(0.0, 2.5)}


def is_flat(prior: Any) -> bool:
    """Return whether a prior is the improper uniform one."""
    return isinstance(prior, str) and prior.strip().lower() == FLAT


def sample_coefficients(data: Any, priors: Mapping[str, Any], overrides, *, unit, centre, qr: bool, num: int = 0):
    """Sample the coefficients of the design matrix as site ``_coef``, and record them as ``coef``.

    Parameters
    ----------
    data : RegressionData
        Points with K terms.
    priors : mapping of str to Distribution, float or "flat"
        Priors ``intercept`` and ``coef``, and optionally ``coef[x]`` of single coefficients.
    overrides : container of str
        Names of the priors set by the user, in the units of the data; the others are normal priors for standardised
        variables.
    unit, centre : scalar
        Unit of the linear predictor, and its value at the centre of the default prior of the intercept.
    qr : bool
        Whether to sample in coordinates in which the predictors are orthogonal.
    num : int
        Number of coefficient vectors; 0 for a single one outside of a plate.

    Returns
    -------
    array (K,) or (num, K)
    """
    size = len(data.terms)
    intercept = data.terms.index(INTERCEPT) if INTERCEPT in data.terms else None
    keys = [_key(term, k == intercept, priors) for k, term in enumerate(data.terms)]
    # The priors are those of a vector c: the coefficients b, except that an intercept with the default prior is
    # replaced by the linear predictor at the mean of the predictors.
    at_mean = intercept is not None and keys[intercept] not in overrides
    means = jnp.asarray(data.means)
    to_c = jnp.eye(size).at[intercept].add(means) if at_mean else jnp.eye(size)
    to_b = jnp.eye(size).at[intercept].add(-means) if at_mean else jnp.eye(size)
    width = unit / jnp.asarray(data.scales)
    centres = jnp.zeros(size).at[intercept].set(centre) if at_mean else jnp.zeros(size)
    fixed = np.array([isinstance(priors[key], float | int) for key in keys])
    free = np.flatnonzero(~fixed)
    constants = jnp.array([float(priors[key]) if is_fixed else 0.0 for key, is_fixed in zip(keys, fixed, strict=True)])
    pieces = _pieces([keys[k] for k in free], priors, overrides, width[free], centres[free])
    if not len(free):
        c = jnp.broadcast_to(constants, (num, size) if num else (size,))
        return _record(c @ to_b.T, num, size)
    if in_stated_parameters():
        shift = (to_c @ constants)[free]
        prior = LinearCoordinates(pieces, to_c[np.ix_(free, free)], shift, _bounds(pieces, len(free)))
        infer = {"labels": tuple(data.terms[k] for k in free)}
        with numpyro.plate("category", num, dim=-1) if num else contextlib.nullcontext():
            b = numpyro.sample("coef", prior, infer=infer)
        return jnp.broadcast_to(constants, (*b.shape[:-1], size)).at[..., free].set(b)
    matrix = to_c @ jnp.asarray(data.basis) if qr and not fixed.any() else jnp.diag(width[free])
    prior = LinearCoordinates(pieces, matrix, centres[free])
    if num:
        with numpyro.plate("category", num, dim=-1):
            z = numpyro.sample("_coef", prior)
    else:
        z = numpyro.sample("_coef", prior)
    c = jnp.broadcast_to(constants, (*z.shape[:-1], size)).at[..., free].set(prior.coefficients(z))
    return _record(c @ to_b.T, num, size)


def _bounds(pieces, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the coefficients from the supports of their priors, infinite where unbounded."""
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    for indices, prior, _ in pieces:
        low[indices] = getattr(getattr(prior, "support", None), "lower_bound", -np.inf)
        high[indices] = getattr(getattr(prior, "support", None), "upper_bound", np.inf)
    return low, high


def _record(coef, num: int, size: int):
    """Record the coefficients as a deterministic site, in their plates."""
    if num:
        with numpyro.plate("category", num, dim=-2), numpyro.plate("term", size, dim=-1):
            return numpyro.deterministic("coef", coef)
    with numpyro.plate("term", size):
        return numpyro.deterministic("coef", coef)


def _key(term: str, is_intercept: bool, priors) -> str:
    """Return the name of the prior of a term."""
    single = f"coef[{term}]"
    return single if single in priors else "intercept" if is_intercept else "coef"


def _pieces(keys, priors, overrides, width, centres) -> list[Piece]:
    """Return the priors of c, with the coefficients that share a prior as one piece."""
    pieces = []
    for key in dict.fromkeys(keys):
        indices = np.array([k for k, other in enumerate(keys) if other == key])
        prior = priors[key]
        if is_flat(prior):
            pieces.append(Piece(indices, None, width[indices]))
        elif key in overrides:
            pieces.append(Piece(indices, prior.expand((len(indices),))))
        else:
            scale = width[indices]
            pieces.append(Piece(indices, dist.Normal(centres[indices] + scale * prior.loc, scale * prior.scale)))
    return pieces
