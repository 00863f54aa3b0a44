"""Independent priors of coefficients, sampled in linearly transformed coordinates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import distributions as dist
from numpyro.distributions import constraints


class Piece(NamedTuple):
    """Prior of a subset of the coefficients.

    Attributes
    ----------
    indices : (n,) int
        Indices of the coefficients.
    prior : Distribution or None
        Prior of batch shape (n,); None for an improper uniform prior.
    width : (n,)
        Scale of starting points under an improper prior: they are drawn uniformly from -2 to 2 times ``width``.
    """

    indices: np.ndarray
    prior: dist.Distribution | None
    width: Any = 1.0


def as_slice(indices: np.ndarray) -> Any:
    """Return consecutive indices as a slice, whose gradient needs no scatter operation; others unchanged."""
    first, last = indices[0], indices[-1] + 1
    return slice(first, last) if np.array_equal(indices, np.arange(first, last)) else indices


class LinearCoordinates(dist.Distribution):
    """Distribution of coordinates z for which the coefficients c = loc + matrix z have independent priors.

    Parameters
    ----------
    pieces : sequence of Piece
        Priors of c; each coefficient belongs to exactly one piece.
    matrix : (K, K)
        Matrix from coordinates to coefficients.
    loc : (K,)
        Coefficients at z = 0.
    bounds : (K,), (K,), optional
        Lower and upper bounds of z that follow from the supports of the priors; infinite for no bound.
    log_det : scalar, optional
        Logarithm of the absolute determinant of the matrix, if it is known.

    Notes
    -----
    The density of z is the product of the stated priors times the determinant of the matrix. A matrix that
    orthogonalises the predictors makes the posterior of z nearly uncorrelated (Stan User's Guide, "The QR
    reparameterization").

    Examples
    --------
    >>> LinearCoordinates([Piece(np.arange(2), dist.Normal(0, jnp.ones(2)))], jnp.eye(2), jnp.zeros(2)).event_shape
    (2,)
    """

    def __init__(
        self, pieces: Sequence[Piece], matrix, loc, bounds: tuple[Any, Any] | None = None, log_det: Any = None
    ):
        self.bounds, self.log_det = bounds, log_det
        self.pieces, self.matrix, self.loc = tuple(pieces), jnp.asarray(matrix), jnp.asarray(loc)
        super().__init__((), (self.matrix.shape[-1],), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self):
        """Real vectors, within the bounds if there are any."""
        if self.bounds is None:
            return constraints.real_vector
        return constraints.independent(constraints.interval(*map(jnp.asarray, self.bounds)), 1)

    def coefficients(self, value):
        """Return the coefficients (..., K) at coordinates (..., K)."""
        return self.loc + value @ self.matrix.T

    def log_prob(self, value):
        """Return the log density of coordinates (..., K)."""
        c = self.coefficients(value)
        log_det = jnp.linalg.slogdet(self.matrix)[1] if self.log_det is None else self.log_det
        log_density = log_det + jnp.zeros(value.shape[:-1])
        for indices, prior, _ in self.pieces:
            if prior is not None:
                log_density = log_density + prior.log_prob(c[..., as_slice(indices)]).sum(-1)
        return log_density

    def sample(self, key, sample_shape=()):
        """Draw coordinates, ``(*sample_shape, K)``."""
        c = jnp.zeros((*sample_shape, *self.event_shape))
        for key_piece, (indices, prior, width) in zip(random.split(key, len(self.pieces)), self.pieces, strict=True):
            if prior is None:  # a starting point
                shape = (*sample_shape, len(indices))
                drawn = width * random.uniform(key_piece, shape, minval=-2.0, maxval=2.0)
            else:
                drawn = prior.sample(key_piece, sample_shape)
            c = c.at[..., indices].set(drawn)
        return jnp.linalg.solve(self.matrix, (c - self.loc)[..., None])[..., 0]
