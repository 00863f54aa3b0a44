"""Factorisations of matrices of a few rows, written out element by element, and the normal density that they give.

XLA fuses them into one pass over the objects: a batched LAPACK call on 740 matrices of 3 x 3 is about thirty times
slower on CPU, and such calls were observed to deadlock on two cores.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.linalg import solve_triangular

MAX_UNROLLED = 6  # rows

Rows: TypeAlias = Sequence[Sequence[Any]]
"""Elements (...) of a symmetric or lower triangular matrix, row by row; those above the diagonal are ignored."""


class Factorisation(NamedTuple):
    """Factorisation L D L^T of a covariance.

    Attributes
    ----------
    factor : rows
        Elements of L below its diagonal, which consists of ones.
    pivots, inverse : sequence of array (...)
        The diagonals of D and of its inverse.
    """

    factor: Rows
    pivots: Sequence[Any]
    inverse: Sequence[Any]

    def whiten(self, vector: Sequence[Any]) -> list:
        """Return L^-1 v of a vector of K arrays (...)."""
        whitened: list = []
        for row, entry in zip(self.factor, vector, strict=True):
            whitened.append(_less_products(entry, row, whitened))
        return whitened

    def log_density(self, whitened: Sequence[Any]):
        """Return the log density of the normal distribution with this covariance at residuals r, from L^-1 r."""
        chi2 = sum(w * w * inverse for w, inverse in zip(whitened, self.inverse, strict=True))
        # A single logarithm of the product of pivots is cheaper. The product of up to six pivots over- or underflows
        # only where a typical standard deviation is below 1e-25 or above 1e25 in the units of the data.
        return -0.5 * (chi2 + jnp.log(math.prod(self.pivots)) + len(whitened) * math.log(2.0 * math.pi))


def _less_products(value: Any, factors: Sequence[Any], others: Sequence[Any]):
    """Return a value less the sum of products of two sequences of equal length."""
    for a, b in zip(factors, others, strict=True):
        value = value - a * b
    return value


def factorised(covariance: Rows) -> Factorisation:
    """Return the factorisation of a positive definite covariance."""
    factor: list[list] = []
    pivots: list = []
    inverse: list = []
    for i, row in enumerate(covariance):
        scaled: list = []  # the row of L D
        for j in range(i):
            scaled.append(_less_products(row[j], factor[j], scaled))
        factor.append([a * b for a, b in zip(scaled, inverse, strict=True)])
        pivots.append(_less_products(row[i], factor[i], scaled))
        inverse.append(1.0 / pivots[i])
    return Factorisation(factor, pivots, inverse)


@jax.custom_jvp
def normal_log_density(residual: Sequence[Any], covariance: Rows):
    """Return the log density (...) of a normal distribution at residuals, K arrays (...).

    Its derivatives are written out with the inverse C^-1 and w = C^-1 r: they are -w, and (w w^T - C^-1) / 2 for the
    covariance.
    """
    factorisation = factorised(covariance)
    return factorisation.log_density(factorisation.whiten(residual))


def _derivative(primals, tangents):
    """Return the log density and its derivative; the terms of constants are left out."""
    (residual, covariance), (residual_dot, covariance_dot) = primals, tangents
    factorisation, size = factorised(covariance), len(residual)
    whitened = factorisation.whiten(residual)
    # Back substitution. XLA evaluates the result of a division once, but that of products again for every use.
    w: list = []
    for i in reversed(range(size)):
        scaled = [factorisation.factor[k][i] * factorisation.pivots[i] for k in range(i + 1, size)]
        w.insert(0, _less_products(whitened[i], scaled, w) / factorisation.pivots[i])
    columns: list[list] = []
    for j in range(size):  # the columns of L^-1 from the diagonal on
        columns.append([1.0])
        for k in range(j + 1, size):
            factors = factorisation.factor[k][j:]
            columns[j].append(_less_products(-factors[0], factors[1:], columns[j][1:]))
    terms = []
    for i in range(size):
        if not isinstance(residual_dot[i], SymbolicZero):
            terms.append(-w[i] * residual_dot[i])
        for j in range(i + 1):
            if not isinstance(covariance_dot[i][j], SymbolicZero):
                triples = zip(columns[i], columns[j][i - j :], factorisation.inverse[i:], strict=True)
                inverse = sum(a * b * c for a, b, c in triples)
                terms.append((0.5 if i == j else 1.0) * (w[i] * w[j] - inverse) * covariance_dot[i][j])
    return factorisation.log_density(whitened), sum(terms[1:], terms[0])


normal_log_density.defjvp(_derivative, symbolic_zeros=True)


def inverse_of_factor(factor: Rows) -> list[list]:
    """Return the lower triangle of L^-1, row by row, for L as in `Factorisation.factor`."""
    rows: list[list] = []
    for i, row in enumerate(factor):
        products = [[row[k] * rows[k][j] for k in range(j, i)] for j in range(i)]
        rows.append([-sum(terms[1:], terms[0]) for terms in products] + [1.0])
    return rows


def with_noise(noise: Any, scale: Rows) -> list[list]:
    """Return the rows of the lower triangle of S S^T + noise; every element is an array (...).

    ``scale`` holds the rows of S and ``noise`` those of a symmetric matrix. Elements of S that are the Python number 0
    are left out.
    """

    def product(i, j):
        pairs = zip(scale[i], scale[j], strict=True)
        return sum(a * b for a, b in pairs if not any(isinstance(x, float) and x == 0.0 for x in (a, b)))

    return [[noise[i][j] + product(i, j) for j in range(i + 1)] for i in range(len(scale))]


def elements(matrix: Any) -> list[list]:
    """Return the elements (...) of matrices (..., n, m), row by row."""
    rows, columns = np.shape(matrix)[-2:]
    return [[matrix[..., i, j] for j in range(columns)] for i in range(rows)]


def stacked(rows: Rows):
    """Return matrices (..., n, m) of elements that broadcast against each other."""
    shape = np.broadcast_shapes(*(jnp.shape(element) for row in rows for element in row))
    return jnp.stack([jnp.stack([jnp.broadcast_to(e, shape) for e in row], axis=-1) for row in rows], axis=-2)


def cholesky(matrix):
    """Return the lower Cholesky factor (..., n, n), written out up to `MAX_UNROLLED`."""
    size = np.shape(matrix)[-1]
    if size > MAX_UNROLLED:
        return jnp.linalg.cholesky(matrix)
    rows: list[list] = []
    for i in range(size):
        row: list = []
        for j in range(i + 1):
            other = row if i == j else rows[j]
            remainder = matrix[..., i, j] - sum(row[m] * other[m] for m in range(j))
            row.append(jnp.sqrt(remainder) if i == j else remainder / rows[j][j])
        rows.append(row)
    return stacked([row + [0.0] * (size - len(row)) for row in rows]) if rows else jnp.zeros(np.shape(matrix))


def solve_lower(tril, right):
    """Solve tril x = right, (..., n, n) and (..., n, m), by forward substitution, unrolled up to n = `MAX_UNROLLED`."""
    size = tril.shape[-1]
    if size > MAX_UNROLLED:
        batch = jnp.broadcast_shapes(tril.shape[:-2], right.shape[:-2])
        tril, right = (jnp.broadcast_to(x, batch + x.shape[-2:]) for x in (tril, right))
        return solve_triangular(tril, right, lower=True)
    rows: list = []
    for i in range(size):
        remainder = right[..., i, :] - sum(tril[..., i, j, None] * rows[j] for j in range(i))
        rows.append(remainder / tril[..., i, i, None])
    return jnp.stack(rows, axis=-2) if rows else right
