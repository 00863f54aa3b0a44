"""Normal distribution with a dense constant covariance and a free intrinsic scatter, factorised only once.

N values y have the mean ``fixed + basis @ coefficients + offset``, the covariance C, and an additional scatter s with
weights w (0 or more for each value),

    y ~ N(mean, C + s^2 diag(w)).

A single decomposition of C and w gives a matrix T with T C T' = 1 and T diag(w) T' = diag(spread), so that the
covariance of T y is diagonal for every s. Only the coefficients, s and the offset change from one evaluation to the
next; an evaluation costs N times the number of coefficients, instead of N^3. The offset, which has a normal prior, is
integrated out in closed form.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import distributions as dist
from numpyro.distributions import constraints

LOG_2PI = math.log(2.0 * math.pi)
FULL = jax.lax.Precision.HIGHEST  # the default matrix product of an accelerator rounds to a few digits


class Whitening(NamedTuple):
    """Linear transform that diagonalises a covariance and the scatter simultaneously; see `whiten`.

    Attributes
    ----------
    transform : (N, N)
        The matrix T.
    spread : (N,)
        Diagonal of T diag(w) T'; zeros without scatter.
    log_det : float
        Log determinant of C.
    inverse : (N, N)
        Inverse of T.
    """

    transform: np.ndarray
    spread: np.ndarray
    log_det: float
    inverse: np.ndarray


def whiten(covariance: np.ndarray, weights: np.ndarray | None = None) -> Whitening:
    """Compute the whitening of a covariance, in a time of order N^3.

    Parameters
    ----------
    covariance : (N, N)
        Positive definite matrix.
    weights : (N,), optional
        Weight of each value in the variance of the scatter, 0 or more. None: no scatter.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the covariance is not positive definite.
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if weights is not None and np.all(np.asarray(weights) == 1.0):
        variance, axes = np.linalg.eigh(matrix)
        if variance[0] <= 0:
            raise np.linalg.LinAlgError(f"expected a positive definite covariance; found the eigenvalue {variance[0]}")
        std = np.sqrt(variance)
        return Whitening(axes.T / std[:, None], 1.0 / variance, float(np.log(variance).sum()), axes * std)
    factor = np.linalg.cholesky(matrix)
    inverse = np.linalg.solve(factor, np.eye(len(matrix)))
    log_det = 2.0 * float(np.log(np.diagonal(factor)).sum())
    if weights is None:
        return Whitening(inverse, np.zeros(len(matrix)), log_det, factor)
    spread, axes = np.linalg.eigh((inverse * np.asarray(weights, float)) @ inverse.T)
    return Whitening(axes.T @ inverse, np.maximum(spread, 0.0), log_det, factor @ axes)


class Offset(NamedTuple):
    """Normal prior of an offset common to all values; a scale of zero fixes it at ``loc``."""

    loc: Any = 0.0
    scale: Any = 0.0


class Projection(NamedTuple):
    """The linear mean and the covariance in the coordinates of a `Whitening`.

    Attributes
    ----------
    basis : (N, K)
        T times the basis of the mean.
    ones : (N,)
        T times the vector of ones.
    spread : (N,)
        As in `Whitening`.
    log_det : scalar
        Log determinant of C.
    num : scalar
        Number of values; further rows are padding with zeros, which do not contribute.
    """

    basis: Any
    ones: Any
    spread: Any
    log_det: Any
    num: Any


class Projected(NamedTuple):
    """A value with its precomputed projection T (value - fixed), in the rows of a `Projection` or of `compressed`."""

    value: Any
    projection: Projection
    projected: Any


class ProjectedNormal(dist.Distribution):
    """Distribution of values y given as T (y - fixed); the log density is that of y.

    Parameters
    ----------
    projection : Projection
        Basis and covariance, with N rows.
    coefficients : (K,)
        Coefficients of the mean.
    scatter : scalar
        Standard deviation s of the scatter.
    offset : Offset
        Prior of the common offset, which is integrated out.
    """

    support = constraints.real_vector

    def __init__(self, projection: Projection, coefficients: Any, scatter: Any = 0.0, offset: Offset | None = None):
        self.projection, self.coefficients, self.scatter = projection, coefficients, scatter
        self.offset = offset or Offset()
        super().__init__((), (np.shape(projection.ones)[0],), validate_args=False)

    def project(self, value):
        """Return T (y - fixed) for a value; here the value itself."""
        return value

    def _sums(self, value, projection: Projection):
        """Return r . r, r . 1 and 1 . 1, weighted by inverse variances, and the log determinant."""
        residual = value - self.offset.loc * projection.ones
        residual = residual - jnp.matmul(projection.basis, self.coefficients, precision=FULL)
        weight = 1.0 / (1.0 + self.scatter**2 * projection.spread)
        weighted = weight * projection.ones
        log_det = projection.log_det + jnp.sum(jnp.log1p(self.scatter**2 * projection.spread))
        return jnp.sum(weight * residual**2), jnp.sum(weighted * residual), jnp.sum(weighted * projection.ones), log_det

    def _sums_of(self, value):
        """Return the results of `_sums` for a value, which is projected first."""
        return self._sums(self.project(value), self.projection)

    def log_prob(self, value):
        """Return the log density of y with the offset integrated out."""
        square, cross, ones, log_det = self._sums_of(value)
        variance = self.offset.scale**2
        square = square - cross**2 * (variance / (1.0 + variance * ones))
        log_det = log_det + jnp.log1p(variance * ones)
        return -0.5 * (square + log_det + self.projection.num * LOG_2PI)

    def offset_given(self, value) -> dist.Normal:
        """Return the exact conditional distribution of the offset given y and the parameters."""
        _, cross, ones, _ = self._sums_of(value)
        variance = self.offset.scale**2
        posterior_variance = variance / (1.0 + variance * ones)
        return dist.Normal(self.offset.loc + posterior_variance * cross, jnp.sqrt(posterior_variance))


class CorrelatedNormal(ProjectedNormal):
    """Normal distribution of N values with a dense covariance, a free scatter and an offset integrated out.

    Parameters
    ----------
    whitening : Whitening
        Whitening of the covariance.
    fixed : (N,)
        Constant part of the mean.
    projection : Projection
        Basis of the mean and covariance in whitened coordinates; see `projected`.
    coefficients, scatter, offset
        As in `ProjectedNormal`.
    known : Projected, optional
        The observed value with its projection, so that its density costs no product with T. It is recognised by
        identity: any other value is projected.

    Notes
    -----
    The model is given in the docstring of the module. The log density agrees with a dense evaluation to 1e-9
    (``tests/distributions/test_correlated_normal.py``).
    """

    def __init__(
        self, whitening: Whitening, fixed, projection: Projection, coefficients, scatter=0.0, offset=None,
        known: Projected | None = None,
    ):  # fmt: skip
        self.whitening, self.fixed, self.known = whitening, fixed, known
        super().__init__(projection, coefficients, scatter, offset)

    def project(self, value):
        """Return T (value - fixed)."""
        return jnp.matmul(self.whitening.transform, value - self.fixed, precision=FULL)

    def _sums_of(self, value):
        """Return the results of `_sums` for a value; the known one is not projected again."""
        if self.known is not None and value is self.known.value:
            return self._sums(self.known.projected, self.known.projection)
        return super()._sums_of(value)

    def sample(self, key, sample_shape=()):
        """Draw values ``(*sample_shape, N)``, with the offset drawn from its prior."""
        key_noise, key_offset = random.split(key)
        p, num = self.projection, len(self.projection.ones)
        deviates = random.normal(key_noise, (*sample_shape, num)) * jnp.sqrt(1.0 + self.scatter**2 * p.spread)
        shift = self.offset.loc + self.offset.scale * random.normal(key_offset, (*sample_shape, 1))
        projected = deviates + shift * p.ones + jnp.matmul(p.basis, self.coefficients)
        return self.fixed + jnp.matmul(projected, jnp.asarray(self.whitening.inverse).T, precision=FULL)

    def log_prob_given_others(self, value):
        """Return the log density of each value given all others and the parameters, (N,).

        With P the inverse of the covariance of y (including the variance of the offset) and g = P (y - mean), value i
        is normal with variance 1 / P_ii about y_i - g_i / P_ii (Sundararajan & Keerthi 2001; Buerkner, Gabry & Vehtari
        2020, Computational Statistics 36, 1243). P = T^T (W - v W u u^T W) T, with T the whitening, W the inverse
        variances of the whitened values, u the whitened vector of ones and v the posterior variance of the offset.
        """
        p, transform, ones = self.projection, self.whitening.transform, self.projection.ones
        weight = 1.0 / (1.0 + self.scatter**2 * p.spread)
        residual = self.project(value) - self.offset.loc * ones - jnp.matmul(p.basis, self.coefficients, precision=FULL)
        variance = self.offset.scale**2
        posterior_variance = variance / (1.0 + variance * jnp.sum(weight * ones**2))
        offset = posterior_variance * jnp.sum(weight * ones * residual)
        g = jnp.matmul(weight * (residual - offset * ones), transform, precision=FULL)
        weighted_ones = jnp.matmul(weight * ones, transform, precision=FULL)
        diagonal = jnp.matmul(weight, transform**2, precision=FULL) - posterior_variance * weighted_ones**2
        return 0.5 * (jnp.log(diagonal) - LOG_2PI - g**2 / diagonal)


def projected(whitening: Whitening, basis: np.ndarray) -> Projection:
    """Return the basis of a mean, (N, K), in the coordinates of a whitening."""
    transform = whitening.transform
    num = len(transform)
    return Projection(transform @ basis, transform @ np.ones(num), whitening.spread, whitening.log_det, float(num))


def compressed(projection: Projection, value: np.ndarray, scatter: float) -> tuple[Projection, np.ndarray]:
    """Return a projection of K + 2 rows and the value in it, with the same density for a known scatter.

    Parameters
    ----------
    projection : Projection
        Projection with N rows.
    value : (N,)
        Projected value.
    scatter : float
        Standard deviation of the scatter. It becomes part of the result, in which the spread is zero.
    """
    if len(value) <= projection.basis.shape[1] + 2:
        return projection, value
    inverse_std = 1.0 / np.sqrt(1.0 + scatter**2 * projection.spread)
    columns = np.column_stack([projection.basis, projection.ones, value])
    triangle = np.asarray(np.linalg.qr(inverse_std[:, None] * columns, mode="r"))
    log_det = projection.log_det + np.log1p(scatter**2 * projection.spread).sum()
    spread = np.zeros(len(triangle))
    return Projection(triangle[:, :-2], triangle[:, -2], spread, log_det, projection.num), triangle[:, -1]
