"""A normal with one dense covariance and a scatter of free size, without a factorisation a step.

For N values y with the mean ``fixed + basis @ coefficients + offset``, covariance C, and a scatter s that some or all
of them share beyond it (weights w, ones or zeros),

    y ~ N(mean, C + s^2 diag(w)).

One decomposition of C and w, made once, gives a matrix T with T C T' = 1 and T diag(w) T' = diag(spread): in the
coordinates T y the covariance is diagonal for every s. Only coefficients, s and the offset change from step to step, so
that what a step costs is N times the number of coefficients, not N^3 and not even N^2. The offset, whose prior is
normal, is integrated out in closed form.
"""

import math
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import distributions as dist
from numpyro.distributions import constraints

LOG_2PI = math.log(2.0 * math.pi)
FULL = jax.lax.Precision.HIGHEST  # an accelerator's default matrix product would round to a few digits


class Whitening(NamedTuple):
    """Coordinates in which a covariance and its scatter are diagonal together; see `whiten`.

    Attributes
    ----------
    transform : (N, N)
        T.
    spread : (N,)
        Diagonal of T diag(w) T'; zeros where there is no scatter.
    log_det : float
        Log determinant of C.
    """

    transform: np.ndarray
    spread: np.ndarray
    log_det: float


# By the identity of the covariance: containers are rebuilt from their arrays again and again while a program is traced.
_KNOWN: dict[tuple[int, bytes], tuple[weakref.ref, Whitening]] = {}


def whiten(covariance: np.ndarray, weights: np.ndarray | None = None) -> Whitening:
    """Decompose a covariance once; what was decomposed is remembered as long as the array lives.

    Parameters
    ----------
    covariance : (N, N)
        Positive definite, concrete.
    weights : (N,), optional
        How much each element takes part in the scatter's variance, 0 or more. None: there is no scatter.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the covariance is not positive definite.
    """
    key = (id(covariance), b"" if weights is None else np.asarray(weights, float).tobytes())
    found = _KNOWN.get(key)
    if found is not None and found[0]() is covariance:
        return found[1]
    matrix = np.asarray(covariance, dtype=np.float64)
    if weights is not None and np.all(np.asarray(weights) == 1.0):
        variance, axes = np.linalg.eigh(matrix)
        if variance[0] <= 0:
            raise np.linalg.LinAlgError(f"expected a positive definite covariance; its least eigenvalue: {variance[0]}")
        result = Whitening(axes.T / np.sqrt(variance)[:, None], 1.0 / variance, float(np.log(variance).sum()))
    else:
        factor = np.linalg.cholesky(matrix)
        inverse = np.linalg.solve(factor, np.eye(len(matrix)))
        log_det = 2.0 * float(np.log(np.diagonal(factor)).sum())
        if weights is None:
            result = Whitening(inverse, np.zeros(len(matrix)), log_det)
        else:
            spread, axes = np.linalg.eigh((inverse * np.asarray(weights, float)) @ inverse.T)
            result = Whitening(axes.T @ inverse, np.maximum(spread, 0.0), log_det)
    if isinstance(covariance, np.ndarray):
        _KNOWN[key] = (weakref.ref(covariance, lambda _: _KNOWN.pop(key, None)), result)
    return result


class Offset(NamedTuple):
    """Normal prior of an offset common to all values; a scale of zero holds it at its place."""

    loc: Any = 0.0
    scale: Any = 0.0


class Projection(NamedTuple):
    """A mean and its covariance in the coordinates of a `Whitening`.

    Attributes
    ----------
    basis : (N, K)
        T times the matrix of the coefficients.
    ones : (N,)
        T times the vector of ones.
    spread : (N,)
        As of `Whitening`.
    log_det : scalar
        Log determinant of C.
    num : scalar
        Number of values; rows beyond it, of zeros, count for nothing.
    """

    basis: Any
    ones: Any
    spread: Any
    log_det: Any
    num: Any


class ProjectedNormal(dist.Distribution):
    """Distribution of T (y - fixed): the density of y, evaluated in coordinates in which it is diagonal.

    Parameters
    ----------
    projection : Projection
        Of N rows.
    coefficients : (K,)
        Of the mean.
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
        """Return the coordinates of a value: it is in them already."""
        return value

    def _parts(self, value):
        """Residuals about the mean without offset, in coordinates, and the weight of each."""
        p = self.projection
        residual = self.project(value) - self.offset.loc * p.ones
        weight = 1.0 / (1.0 + self.scatter**2 * p.spread)
        return residual - jnp.matmul(p.basis, self.coefficients, precision=FULL), weight

    def _sums(self, value):
        """Return sums of squares: of residuals, with the ones, and of the ones; and log det beyond C's."""
        p = self.projection
        concrete = [p.basis, p.ones, p.spread, self.project(value), self.scatter, self.offset.loc]
        if not any(isinstance(array, jax.Array) for array in concrete) and len(p.ones) > p.basis.shape[1] + 2:
            return self._compressed_sums(value)
        residual, weight = self._parts(value)
        weighted = weight * p.ones
        log_det = jnp.sum(jnp.log1p(self.scatter**2 * p.spread))
        return jnp.sum(weight * residual**2), jnp.sum(weighted * residual), jnp.sum(weighted * p.ones), log_det

    def _compressed_sums(self, value):
        """Give the same where the scatter is known: all sums follow from a triangle of K + 2 rows."""
        p = self.projection
        root = 1.0 / np.sqrt(1.0 + self.scatter**2 * p.spread)
        columns = np.column_stack([p.basis, p.ones, self.project(value) - self.offset.loc * p.ones])
        triangle = np.asarray(np.linalg.qr(root[:, None] * columns, mode="r"))
        residual = triangle[:, -1] - jnp.matmul(triangle[:, :-2], self.coefficients, precision=FULL)
        ones = triangle[:, -2]
        log_det = np.log1p(self.scatter**2 * p.spread).sum()
        return jnp.sum(residual**2), jnp.sum(ones * residual), np.sum(ones**2), log_det

    def log_prob(self, value):
        """Log density of y, the offset integrated out."""
        square, cross, ones, log_det = self._sums(value)
        p, variance = self.projection, self.offset.scale**2
        square = square - cross**2 * (variance / (1.0 + variance * ones))
        log_det = log_det + p.log_det + jnp.log1p(variance * ones)
        return -0.5 * (square + log_det + p.num * LOG_2PI)

    def offset_given(self, value) -> dist.Normal:
        """Exact conditional of the offset, given y and everything else."""
        _, cross, ones, _ = self._sums(value)
        variance = self.offset.scale**2
        shrunk = variance / (1.0 + variance * ones)
        return dist.Normal(self.offset.loc + shrunk * cross, jnp.sqrt(shrunk))


class CorrelatedNormal(ProjectedNormal):
    """Normal of N values with a dense covariance, a free scatter and an offset integrated out; see the module.

    Parameters
    ----------
    whitening : Whitening
        Of the covariance.
    fixed : (N,)
        Part of the mean that does not change.
    projection : Projection
        Of the basis of the mean; see `projected`.
    coefficients, scatter, offset
        As of `ProjectedNormal`.

    Notes
    -----
    Agrees with a dense evaluation to 1e-9 (``tests/distributions/test_correlated_normal.py``).
    """

    def __init__(self, whitening: Whitening, fixed, projection: Projection, coefficients, scatter=0.0, offset=None):
        self.whitening, self.fixed = whitening, fixed
        super().__init__(projection, coefficients, scatter, offset)

    def project(self, value):
        """Return T (value - fixed): a constant of the program where the value is data."""
        if isinstance(value, np.ndarray) and isinstance(self.fixed, np.ndarray):
            return self.whitening.transform @ (value - self.fixed)
        return jnp.matmul(self.whitening.transform, value - self.fixed, precision=FULL)

    def sample(self, key, sample_shape=()):
        """Draw values, the offset drawn from its prior with them."""
        assert isinstance(self.projection.spread, np.ndarray)
        one, other = random.split(key)
        num = len(self.projection.ones)
        deviates = random.normal(one, (*sample_shape, num)) * jnp.sqrt(1.0 + self.scatter**2 * self.projection.spread)
        shift = self.offset.loc + self.offset.scale * random.normal(other, (*sample_shape, 1))
        projected = deviates + shift * self.projection.ones + jnp.matmul(self.projection.basis, self.coefficients)
        # T is orthogonal but for a scale, or triangular but for a rotation: well conditioned either way.
        inverse = np.linalg.inv(self.whitening.transform)
        return self.fixed + jnp.matmul(projected, inverse.T, precision=FULL)

    def log_prob_given_others(self, value):
        """Log density of each value given all others (and the parameters), (N,).

        With P the inverse of the covariance, the offset's part included, and g = P (y - mean), value i is normal with
        variance 1 / P_ii about y_i - g_i / P_ii (Sundararajan & Keerthi 2001; Buerkner, Gabry & Vehtari 2020,
        Computational Statistics 36, 1243).
        """
        residual, weight = self._parts(value)
        transform, ones = self.whitening.transform, self.projection.ones
        variance = self.offset.scale**2
        shrunk = variance / (1.0 + variance * jnp.sum(weight * ones**2))
        mean = shrunk * jnp.sum(weight * ones * residual)
        g = jnp.matmul(weight * (residual - mean * ones), transform, precision=FULL)
        through = jnp.matmul(weight * ones, transform, precision=FULL)
        diagonal = jnp.matmul(weight, transform**2, precision=FULL) - shrunk * through**2
        return 0.5 * (jnp.log(diagonal) - LOG_2PI - g**2 / diagonal)


def projected(whitening: Whitening, basis: np.ndarray) -> Projection:
    """Project the basis of a mean, (N, K), on the coordinates of a whitening."""
    transform = whitening.transform
    num = len(transform)
    return Projection(transform @ basis, transform @ np.ones(num), whitening.spread, whitening.log_det, float(num))
