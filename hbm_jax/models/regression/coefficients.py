"""Coefficients of a regression with their stated priors, sampled where the predictors are orthogonal."""

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
# Of standardised variables: in units of the linear predictor, over the standard deviation of the predictor.
COEFFICIENTS: dict[str, Any] = {"intercept": dist.Normal(0.0, 2.5), "coef": dist.Normal(0.0, 2.5)}


def is_flat(prior: Any) -> bool:
    """Whether a prior is the improper uniform one."""
    return isinstance(prior, str) and prior.strip().lower() == FLAT


def sample_coefficients(data: Any, priors: Mapping[str, Any], overrides, *, unit, centre, qr: bool, num: int = 0):
    """Sample the coefficients of the design matrix as site ``_coef``, and record them as ``coef``.

    Parameters
    ----------
    data : RegressionData
    priors : mapping of str to Distribution, float or "flat"
        ``intercept``, ``coef`` and perhaps ``coef[x]``.
    overrides : container of str
        Which of them are a user's, in the units of the data; the others are normal, of standardised variables.
    unit, centre : scalar
        Unit of the linear predictor, and its value where the default prior of the intercept is centred.
    qr : bool
        Whether to sample in coordinates of orthogonal predictors.
    num : int
        Number of such vectors; 0 for one that is not in a plate.

    Returns
    -------
    (K,), or (num, K)
    """
    size = len(data.terms)
    place = data.terms.index(INTERCEPT) if INTERCEPT in data.terms else None
    keys = [_key(term, k == place, priors) for k, term in enumerate(data.terms)]
    # Of c are the priors: c is the coefficients, but for a default prior the intercept is that at the mean predictors.
    at_mean = place is not None and keys[place] not in overrides
    means = jnp.asarray(data.means)
    to_c = jnp.eye(size).at[place].add(means) if at_mean else jnp.eye(size)
    to_b = jnp.eye(size).at[place].add(-means) if at_mean else jnp.eye(size)
    width = unit / jnp.asarray(data.scales)
    centres = jnp.zeros(size).at[place].set(centre) if at_mean else jnp.zeros(size)
    fixed = np.array([isinstance(priors[key], float | int) for key in keys])
    free = np.flatnonzero(~fixed)
    held = jnp.array([float(priors[key]) if is_held else 0.0 for key, is_held in zip(keys, fixed, strict=True)])
    pieces = _pieces([keys[k] for k in free], priors, overrides, width[free], centres[free])
    if not len(free):
        c = jnp.broadcast_to(held, (num, size) if num else (size,))
        return _record(c @ to_b.T, num, size)
    if in_stated_parameters():
        held_part = (to_c @ held)[free]
        prior = LinearCoordinates(pieces, to_c[np.ix_(free, free)], held_part, _bounds(pieces, len(free)))
        infer = {"labels": tuple(data.terms[k] for k in free)}
        with numpyro.plate("category", num, dim=-1) if num else contextlib.nullcontext():
            b = numpyro.sample("coef", prior, infer=infer)
        return jnp.broadcast_to(held, (*b.shape[:-1], size)).at[..., free].set(b)
    matrix = to_c @ jnp.asarray(data.basis) if qr and not fixed.any() else jnp.diag(width[free])
    prior = LinearCoordinates(pieces, matrix, centres[free])
    if num:
        with numpyro.plate("category", num, dim=-1):
            z = numpyro.sample("_coef", prior)
    else:
        z = numpyro.sample("_coef", prior)
    c = jnp.broadcast_to(held, (*z.shape[:-1], size)).at[..., free].set(prior.coefficients(z))
    return _record(c @ to_b.T, num, size)


def _bounds(pieces, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of coefficients by the supports of their priors, infinite where there are none."""
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    for places, prior, _ in pieces:
        low[places] = getattr(getattr(prior, "support", None), "lower_bound", -np.inf)
        high[places] = getattr(getattr(prior, "support", None), "upper_bound", np.inf)
    return low, high


def _record(coef, num: int, size: int):
    if num:
        with numpyro.plate("category", num, dim=-2), numpyro.plate("term", size, dim=-1):
            return numpyro.deterministic("coef", coef)
    with numpyro.plate("term", size):
        return numpyro.deterministic("coef", coef)


def _key(term: str, is_intercept: bool, priors) -> str:
    own = f"coef[{term}]"
    return own if own in priors else "intercept" if is_intercept else "coef"


def _pieces(keys, priors, overrides, width, centres) -> list[Piece]:
    """Priors of c, those of one kind together."""
    pieces = []
    for key in dict.fromkeys(keys):
        places = np.array([k for k, other in enumerate(keys) if other == key])
        prior = priors[key]
        if is_flat(prior):
            pieces.append(Piece(places, None, width[places]))
        elif key in overrides:
            pieces.append(Piece(places, prior.expand((len(places),))))
        else:
            scale = width[places]
            pieces.append(Piece(places, dist.Normal(centres[places] + scale * prior.loc, scale * prior.scale)))
    return pieces
