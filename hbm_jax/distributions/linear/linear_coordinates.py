"""Independent priors of coefficients, sampled in other linear coordinates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import distributions as dist
from numpyro.distributions import constraints


class Piece(NamedTuple):
    """The prior of some coefficients.

    Attributes
    ----------
    places : (n,) int
        Which coefficients.
    prior : Distribution or None
        Of batch shape (n,); None for an improper uniform one.
    width : (n,)
        From whose double the draws of an improper prior are, from which searches start.
    """

    places: np.ndarray
    prior: dist.Distribution | None
    width: Any = 1.0


class LinearCoordinates(dist.Distribution):
    """Distribution of z where c = loc + matrix z has independent priors.

    Parameters
    ----------
    pieces : sequence of Piece
        Priors of c, each coefficient in one of them.
    matrix : (K, K)
        From coordinates to coefficients.
    loc : (K,)
        Coefficients at z = 0.
    bounds : (K,), (K,), optional
        Of z, where they are given by those of the priors; infinite where there is none.

    Notes
    -----
    The density of z is the product of the stated priors times the determinant, whatever the matrix is; one that takes
    orthogonal predictors to the given ones makes a posterior that is round (Stan User's Guide, "The QR
    reparameterization").

    Examples
    --------
    >>> LinearCoordinates([Piece(np.arange(2), dist.Normal(0, jnp.ones(2)))], jnp.eye(2), jnp.zeros(2)).event_shape
    (2,)
    """

    def __init__(self, pieces: Sequence[Piece], matrix, loc, bounds: tuple[Any, Any] | None = None):
        self.bounds = bounds
        self.pieces, self.matrix, self.loc = tuple(pieces), jnp.asarray(matrix), jnp.asarray(loc)
        super().__init__((), (self.matrix.shape[-1],), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self):
        """All real vectors, or those within the bounds."""
        if self.bounds is None:
            return constraints.real_vector
        return constraints.independent(constraints.interval(*map(jnp.asarray, self.bounds)), 1)

    def coefficients(self, value):
        """Return the coefficients (..., K) at coordinates (..., K)."""
        return self.loc + value @ self.matrix.T

    def log_prob(self, value):
        """Log density of coordinates (..., K)."""
        c = self.coefficients(value)
        total = jnp.linalg.slogdet(self.matrix)[1] + jnp.zeros(value.shape[:-1])
        for places, prior, _ in self.pieces:
            if prior is not None:
                total = total + prior.log_prob(c[..., places]).sum(-1)
        return total

    def sample(self, key, sample_shape=()):
        """Draw coordinates ``(*sample_shape, K)``."""
        c = jnp.zeros((*sample_shape, *self.event_shape))
        for key_piece, (places, prior, width) in zip(random.split(key, len(self.pieces)), self.pieces, strict=True):
            if prior is None:
                shape = (*sample_shape, len(places))
                drawn = width * random.uniform(key_piece, shape, minval=-2.0, maxval=2.0)
            else:
                drawn = prior.sample(key_piece, sample_shape)
            c = c.at[..., places].set(drawn)
        return jnp.linalg.solve(self.matrix, (c - self.loc)[..., None])[..., 0]
