"""Coefficients of a regression, sampled in coordinates in which the predictors are orthogonal."""

import contextlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.regression.regression_data import INTERCEPT, RegressionData
from hbm_jax.distributions.linear.linear_coordinates import LinearCoordinates, Piece
from hbm_jax.models.priors import in_stated_parameters

FLAT = "flat"  # an improper uniform prior
# Priors for standardised variables: in units of the linear predictor over the standard deviation of the predictor.
COEFFICIENTS: dict[str, Any] = {"intercept": dist.Normal(0.0, 2.5), "coef": dist.Normal(0.0, 2.5)}


def is_flat(prior: Any) -> bool:
    """Return whether a prior is the improper uniform one."""
    return isinstance(prior, str) and prior.strip().lower() == FLAT


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundCoefficients:
    """Linear maps of the coefficients b of K terms, computed from data and options.

    The priors are those of a vector c: the coefficients b, except that an intercept with the default prior is replaced
    by the linear predictor at the mean of the predictors.

    Attributes
    ----------
    terms : tuple of str
        Names of the terms.
    to_c, to_b : (K, K)
        Matrices from b to c and back.
    width, centres : (K,)
        Units and centres of the default priors of c.
    matrix, log_det : (F, F), scalar
        Matrix from the sampled coordinates to the F elements of c that are not fixed, and the logarithm of its
        determinant.
    """

    terms: tuple[str, ...] = field(metadata={"static": True})
    to_c: Any
    to_b: Any
    width: Any
    centres: Any
    matrix: Any
    log_det: Any

    @classmethod
    def of(
        cls, data: RegressionData, priors: Mapping[str, Any], overrides: Container[str], *, unit, centre, qr: bool
    ) -> "BoundCoefficients":
        """Return the linear maps of data.

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
        """
        size, keys = len(data.terms), _keys(data.terms, priors)
        to_c, to_b, centres = np.eye(size), np.eye(size), np.zeros(size)
        if "intercept" in keys and "intercept" not in overrides:
            intercept = data.terms.index(INTERCEPT)
            to_c[intercept] += data.means
            to_b[intercept] -= data.means
            centres[intercept] = centre
        width = unit / np.asarray(data.scales)
        free = _free(keys, priors)
        matrix = to_c @ data.basis if qr and len(free) == size else np.diag(width[free])
        return cls(data.terms, to_c, to_b, width, centres, matrix, np.linalg.slogdet(matrix)[1])


def sample_coefficients(bound: BoundCoefficients, priors: Mapping[str, Any], overrides: Container[str], num: int = 0):
    """Sample the coefficients of the design matrix as site ``_coef``, and record them as ``coef``.

    Parameters
    ----------
    bound, priors, overrides
        As in `BoundCoefficients.of`.
    num : int
        Number of coefficient vectors; 0 for a single one outside of a plate.

    Returns
    -------
    array (K,) or (num, K)
    """
    size, keys = len(bound.terms), _keys(bound.terms, priors)
    free = _free(keys, priors)
    constants = jnp.array([0.0 if k in free else float(priors[key]) for k, key in enumerate(keys)])
    pieces = _pieces([keys[k] for k in free], priors, overrides, bound.width[free], bound.centres[free])
    if not len(free):
        return _record(jnp.broadcast_to(constants, (num, size) if num else (size,)) @ bound.to_b.T, num, size)
    stated = in_stated_parameters()
    if stated:
        shift = (bound.to_c @ constants)[free]
        prior = LinearCoordinates(pieces, bound.to_c[np.ix_(free, free)], shift, _bounds(pieces, len(free)))
    else:
        prior = LinearCoordinates(pieces, bound.matrix, bound.centres[free], log_det=bound.log_det)
    infer = {"labels": tuple(bound.terms[k] for k in free)} if stated else {}
    with numpyro.plate("category", num, dim=-1) if num else contextlib.nullcontext():
        z = numpyro.sample("coef" if stated else "_coef", prior, infer=infer)
    coefficients = z if stated else prior.coefficients(z)
    c = coefficients
    if len(free) < size:
        c = jnp.broadcast_to(constants, (*z.shape[:-1], size)).at[..., free].set(coefficients)
    return c if stated else _record(c @ bound.to_b.T, num, size)


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


def _keys(terms, priors) -> list[str]:
    """Return the name of the prior of each term."""
    shared = ["intercept" if term == INTERCEPT else "coef" for term in terms]
    return [f"coef[{t}]" if f"coef[{t}]" in priors else key for t, key in zip(terms, shared, strict=True)]


def _free(keys, priors) -> np.ndarray:
    """Return the indices of the coefficients that are not fixed."""
    return np.flatnonzero([not isinstance(priors[key], float | int) for key in keys])


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
