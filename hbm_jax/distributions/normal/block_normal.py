"""Multivariate normal distribution whose covariance is a linear combination of constant matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.custom_derivatives import SymbolicZero
from jax.scipy.linalg import solve_triangular
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

FULL = jax.lax.Precision.HIGHEST


class BlockNormal(dist.Distribution):
    """Normal distribution with the covariance diag(diagonal) + sum_k coefficients_k blocks_k.

    Parameters
    ----------
    loc, diagonal : array (N,)
        Mean, and variances added to the diagonal of the covariance.
    coefficients : array (K,)
        Coefficients of the blocks.
    blocks : array (K, N, N)
        Symmetric matrices. Where the covariance is not positive definite, the log density is NaN.

    Raises
    ------
    ValueError
        If the shapes do not agree.

    Notes
    -----
    A gradient costs one Cholesky factorisation and one inverse, for any number of parameters on which the coefficients
    and the diagonal depend: first derivatives are traces of products with the inverse, not derivatives of the
    factorisation. Second derivatives differentiate through the factorisation.

    Examples
    --------
    >>> normal = BlockNormal(np.zeros(2), np.ones(2), np.ones(1), np.ones((1, 2, 2)))
    >>> round(float(normal.log_prob(np.zeros(2))), 4)
    -2.3872
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    pytree_data_fields = ("loc", "diagonal", "coefficients", "blocks")

    def __init__(self, loc, diagonal, coefficients, blocks, *, validate_args=None):
        size = np.shape(blocks)[-1]
        if np.shape(blocks)[0] != np.shape(coefficients)[-1] or np.shape(loc)[-1] != size:
            raise ValueError(
                "BlockNormal: expected loc (N,), coefficients (K,) and blocks (K, N, N); found shapes "
                f"{np.shape(loc)}, {np.shape(coefficients)} and {np.shape(blocks)}."
            )
        self.loc, self.diagonal, self.coefficients, self.blocks = loc, diagonal, coefficients, blocks
        super().__init__((), (size,), validate_args=validate_args)

    @property
    def mean(self):
        """Mean, (N,)."""
        return jnp.asarray(self.loc)

    @property
    def covariance_matrix(self):
        """Covariance, (N, N)."""
        return _covariance(jnp.asarray(self.diagonal), jnp.asarray(self.coefficients), self.blocks)

    @property
    def variance(self):
        """Variance of each component, (N,)."""
        return jnp.diagonal(self.covariance_matrix)

    def sample(self, key, sample_shape=()):
        """Draw values, ``(*sample_shape, N)``."""
        tril = jnp.linalg.cholesky(self.covariance_matrix)
        return self.loc + jnp.matmul(random.normal(key, sample_shape + self.event_shape), tril.T, precision=FULL)

    @validate_sample
    def log_prob(self, value):
        """Return the log density of values (..., N)."""
        residual = jnp.asarray(value - self.loc)
        covariance_parts = tuple(jnp.asarray(array) for array in (self.diagonal, self.coefficients, self.blocks))
        if residual.ndim == 1:
            return _log_density(residual, *covariance_parts)
        flat = residual.reshape(-1, residual.shape[-1])
        return jax.vmap(lambda row: _log_density(row, *covariance_parts))(flat).reshape(residual.shape[:-1])


def _covariance(diagonal, coefficients, blocks):
    """Return diag(diagonal) + sum_k coefficients_k blocks_k, (N, N), for (N,), (K,) and (K, N, N)."""
    covariance = jnp.tensordot(coefficients, blocks, axes=1, precision=FULL)
    index = np.arange(covariance.shape[-1])
    return covariance.at[index, index].add(diagonal)


@jax.custom_jvp
def _log_density(residual, diagonal, coefficients, blocks):
    """Return the log density of a residual (N,), with derivatives by `_derivative`."""
    return _factored(residual, diagonal, coefficients, blocks)[0]


def _factored(residual, diagonal, coefficients, blocks):
    """Return the log density, the Cholesky factor L of the covariance, and the whitened residual L^-1 r."""
    tril = jnp.linalg.cholesky(_covariance(diagonal, coefficients, blocks))
    whitened = solve_triangular(tril, residual, lower=True)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(tril)))
    value = -0.5 * (whitened @ whitened + log_det + residual.shape[0] * math.log(2.0 * math.pi))
    return value, tril, whitened


def _derivative(primals, tangents):
    """Return the log density and its directional derivative.

    With w = C^-1 r, it is d log p = -w^T dr + tr[(w w^T - C^-1) dC] / 2.
    """
    residual, _, coefficients, blocks = primals
    value, tril, whitened = _factored(*primals)
    inverse_tril = solve_triangular(tril, jnp.eye(residual.shape[0]), lower=True)
    weighted = jnp.matmul(whitened, inverse_tril, precision=FULL)  # C^-1 r
    d_residual, d_diagonal, d_coefficients, d_blocks = tangents
    tangent = jnp.zeros_like(value)
    if not isinstance(d_residual, SymbolicZero):
        tangent = tangent - weighted @ d_residual
    if not isinstance(d_diagonal, SymbolicZero):
        tangent = tangent + 0.5 * (weighted**2 - jnp.sum(inverse_tril**2, axis=0)) @ d_diagonal
    if not (isinstance(d_coefficients, SymbolicZero) and isinstance(d_blocks, SymbolicZero)):
        inverse = jnp.matmul(inverse_tril.T, inverse_tril, precision=FULL)
        gradient = 0.5 * (jnp.outer(weighted, weighted) - inverse)
        if not isinstance(d_coefficients, SymbolicZero):
            tangent = tangent + jnp.tensordot(blocks, gradient, axes=2, precision=FULL) @ d_coefficients
        if not isinstance(d_blocks, SymbolicZero):
            tangent = tangent + jnp.sum(gradient * jnp.tensordot(coefficients, d_blocks, axes=1, precision=FULL))
    return value, tangent


_log_density.defjvp(_derivative, symbolic_zeros=True)
