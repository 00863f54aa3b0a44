"""Precomputed likelihood of correlated supernovae, interpolated in alpha and beta.

The covariance C depends on alpha and beta only, and for all parameters the residuals

    r = m_b + alpha x1 - beta c - delta_M h - M0 - mu(z; cosmology)

are linear combinations of the columns of a matrix X: m_b, x1, c, 1, h and 28 smooth functions of redshift in which the
distance modulus is expanded. The likelihood therefore needs only log det C and X^T C^-1 X, which are smooth in
(alpha, beta). They are interpolated between Chebyshev nodes, so no step of a sampler factorises the covariance.
"""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from numpy.polynomial import chebyshev
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from hbm_jax.cosmology import Cosmology, RedshiftMatrix
from hbm_jax.data import CorrelatedSupernovae
from hbm_jax.precomputation import precomputed

NUM_MODULUS = 28  # smooth functions of redshift: 1e-10 mag for z < 1.5 in the bulk of the default priors
_REACH = 10.0  # initial half width of the table, in standard deviations of alpha and beta
_NEGLIGIBLE = 32.0  # log density at the edge of the table below its maximum: 8 standard deviations
_TOLERANCE = 2e-9  # interpolation error of the log density between the nodes
_REFERENCE = Cosmology.flat(H0=70.0, Om0=0.3)
_SIZES = (16, 24, 32, 48, 64)
FEWEST = 200  # supernovae; the factorisation for fewer takes about a millisecond per step


def coefficients(alpha, beta):
    """Return the coefficients of the six covariance blocks."""
    ones = jnp.ones_like(alpha * beta)
    return jnp.stack([ones, alpha**2 * ones, beta**2 * ones, 2 * alpha * ones, -2 * beta * ones, -2 * alpha * beta])


@register_dataclass
@dataclass(frozen=True, eq=False)
class CorrelatedTable:
    """Interpolated likelihood of a sample.

    Attributes
    ----------
    coordinates : (A, B, R)
        Chebyshev coefficients in alpha and beta of R components.
    parts : (R, 1 + S (S + 1) / 2)
        Components of log det C and of the upper triangle of X^T C^-1 X, from a singular value decomposition. X, (N, S),
        has the columns m_b minus M0 and the modulus of a reference cosmology, x1, c, 1, h, and the interpolation of the
        modulus from the nodes.
    distances : RedshiftMatrix
        Distances to the NUM_MODULUS redshifts at which the distance modulus is computed.
    reference : (NUM_MODULUS,)
        Modulus of the reference cosmology at these redshifts.
    M0 : scalar
        Value subtracted from m_b.
    alpha, beta : (float, float)
        Range of the table.
    num : int
        Number of supernovae, N.
    """

    coordinates: Any
    parts: Any
    distances: RedshiftMatrix
    reference: Any
    M0: Any
    alpha: tuple[float, float] = field(metadata={"static": True})
    beta: tuple[float, float] = field(metadata={"static": True})
    num: int = field(metadata={"static": True})

    def log_density(self, alpha, beta, M0, delta_M, cosmology: Cosmology):
        """Return the log density of the observed magnitudes."""
        # Relative to the reference cosmology, to avoid cancellation in the quadratic form.
        modulus = self.distances.distmod(cosmology) - self.reference
        relation = jnp.stack(jnp.broadcast_arrays(1.0, alpha, -beta, self.M0 - M0, -delta_M))
        vector = jnp.concatenate([relation, -modulus])
        log_det, inner = self.evaluate(alpha, beta)
        return -0.5 * (vector @ inner @ vector + log_det + self.num * np.log(2.0 * np.pi))

    def evaluate(self, alpha, beta):
        """Return log det C, and an upper triangular matrix (S, S) with the quadratic form of X^T C^-1 X."""
        a = _polynomials(alpha, self.alpha, self.coordinates.shape[0])
        b = _polynomials(beta, self.beta, self.coordinates.shape[1])
        return _unpacked(jnp.einsum("i,j,ijr->r", a, b, self.coordinates) @ self.parts)


def tabulate(data: CorrelatedSupernovae, massive: np.ndarray, diagonal: np.ndarray) -> CorrelatedTable | None:
    """Return the table of a sample, or None for fewer than `FEWEST` supernovae or if no table is accurate enough.

    No table is accurate enough if errors of stretch and colour dominate the covariance at the edges of the posterior.

    Parameters
    ----------
    data : CorrelatedSupernovae
        N supernovae.
    massive : (N,)
        Weight of delta_M.
    diagonal : (N,)
        Variance added to the diagonal of the covariance [mag^2].
    """
    if len(data) < FEWEST:
        return None
    # OpenBLAS's threads busy-wait for each other. With another process on the same cores, the factorisation for 472
    # supernovae takes 7 to 180 ms with two threads and 1.2 ms with one.
    with threadpool_limits(limits=1, user_api="blas"):
        return _tabulate(data, massive, diagonal)


def _tabulate(data, massive, diagonal) -> CorrelatedTable | None:
    """Return the smallest table whose error at random points is below the tolerance, or None."""
    sne, blocks = data.sne, data.total_blocks
    nodes, interpolation = _smooth_basis(sne.z_cmb)
    distances = RedshiftMatrix(nodes)
    reference = precomputed(lambda: np.asarray(distances.distmod(_REFERENCE)))
    residual = sne.m_b - precomputed(lambda: np.asarray(RedshiftMatrix(sne.z_cmb, sne.z_hel).distmod(_REFERENCE)))
    M0 = float(np.mean(residual))
    X = np.column_stack([residual - M0, sne.x1, sne.c, np.ones(len(sne)), massive, interpolation])

    def evaluate(alpha, beta):
        """Return log det C and X^T C^-1 X."""
        covariance = _covariance(alpha, beta, blocks) + np.diag(diagonal)
        factor = cho_factor(covariance, lower=True, overwrite_a=True)
        inner = X.T @ cho_solve(factor, X)
        return 2.0 * np.log(np.diagonal(factor[0])).sum(), inner

    ranges = _ranges(X, blocks, diagonal)
    for _ in range(6):
        widened = _widened(evaluate, ranges)
        if widened == ranges:
            break
        ranges = widened
    rng = np.random.default_rng(0)
    points = [[rng.uniform(*span) for span in ranges] for _ in range(4)]
    exact = [evaluate(*point) for point in points]
    for size in _SIZES:
        alphas, betas = (_chebyshev_points(low, high, size) for low, high in ranges)
        grid = np.array([[_packed(*evaluate(alpha, beta)) for beta in betas] for alpha in alphas])
        coordinates, parts = _low_rank(_to_coefficients(grid))
        errors = []
        for point, (log_det, inner) in zip(points, exact, strict=True):
            a, b = (_vandermonde(value, span, size) for value, span in zip(point, ranges, strict=True))
            interpolated = _unpacked(np.einsum("i,j,ijr->r", a, b, coordinates) @ parts)
            # Errors of the quadratic form are weighted by the residual of the best fit.
            best = _best_fit(inner, *point)
            errors.append(abs(interpolated[0] - log_det) + abs(best @ (interpolated[1] - inner) @ best))
        if max(errors) < _TOLERANCE:
            alpha, beta = ranges
            return CorrelatedTable(coordinates, parts, distances, reference, np.float64(M0), alpha, beta, len(sne))
    return None


def _packed(log_det, inner):
    """Return log det C and the upper triangle of X^T C^-1 X, off-diagonal elements doubled, as one vector."""
    upper = np.triu_indices(len(inner))
    return np.append(log_det, inner[upper] * np.where(upper[0] == upper[1], 1.0, 2.0))


def _unpacked(values):
    """Return log det C, and an upper triangular matrix with the quadratic form, from the vector of `_packed`."""
    size = round((np.sqrt(8 * len(values) - 7) - 1) / 2)
    index = np.zeros(size * size, int)
    upper = np.triu_indices(size)
    index[np.ravel_multi_index(upper, (size, size))] = 1 + np.arange(len(upper[0]))
    return values[0], values[index].reshape(size, size) * np.where(np.tri(size, k=-1), 0.0, 1.0)


def _covariance(alpha, beta, blocks):
    """Return the part of the covariance that depends on alpha and beta, (N, N), with the weights of `coefficients`."""
    kappa = np.array([1.0, alpha**2, beta**2, 2.0 * alpha, -2.0 * beta, -2.0 * alpha * beta])
    return np.tensordot(kappa, blocks, axes=1)


def _low_rank(values):
    """Return factors (A, B, R) and (R, K) of values (A, B, K), exact to rounding."""
    rows = values.reshape(-1, values.shape[-1])
    scale = np.abs(rows).max(axis=0) + 1e-300
    coordinates, singular_values, parts = np.linalg.svd(rows / scale, full_matrices=False)
    rank = int(np.sum(singular_values > 1e-15 * singular_values[0]))
    coordinates = coordinates[:, :rank] * singular_values[:rank]
    return coordinates.reshape(*values.shape[:2], rank), parts[:rank] * scale


def _best_fit(inner, alpha, beta):
    """Return the coefficients of the columns of X that minimise the quadratic form at fixed alpha and beta."""
    free = np.arange(3, len(inner))
    vector = np.zeros(len(inner))
    vector[:3] = 1.0, alpha, -beta
    vector[free] = -np.linalg.lstsq(inner[np.ix_(free, free)], inner[free] @ vector, rcond=1e-12)[0]
    return vector


def _ranges(X, blocks, diagonal) -> Any:
    """Return ranges of alpha and beta, `_REACH` standard errors about their generalised least-squares estimates.

    The estimates are iterated, because the covariance depends on alpha and beta.
    """
    alpha, beta = 0.0, 3.0
    for _ in range(8):
        factor = cho_factor(_covariance(alpha, beta, blocks) + np.diag(diagonal), lower=True)
        # x1, c, the constant, the host, and every fourth function of redshift
        design = np.column_stack([-X[:, 1], X[:, 2], np.ones(len(X)), X[:, 4], X[:, 5::4]])
        weighted = cho_solve(factor, design)
        normal = design.T @ weighted
        inverse = np.linalg.pinv(normal, rcond=1e-12, hermitian=True)
        solution = inverse @ (weighted.T @ X[:, 0])
        alpha, beta = solution[:2]
    errors = np.sqrt(np.diagonal(inverse)[:2])
    return tuple((float(v - _REACH * e), float(v + _REACH * e)) for v, e in zip((alpha, beta), errors, strict=True))


def _widened(evaluate, ranges) -> Any:
    """Return the ranges, extended on the sides where the profile likelihood is not yet negligible."""
    size = 9
    grids = [np.linspace(low, high, size) for low, high in ranges]
    profile = np.empty((size, size))
    for i, alpha in enumerate(grids[0]):
        for j, beta in enumerate(grids[1]):
            log_det, inner = evaluate(alpha, beta)
            best = _best_fit(inner, alpha, beta)
            profile[i, j] = -0.5 * (best @ inner @ best + log_det)
    threshold = profile.max() - _NEGLIGIBLE
    widened = []
    for axis, (low, high) in enumerate(ranges):
        edge = profile.max(axis=1 - axis)
        width = 0.4 * (high - low)
        widened.append((low - width if edge[0] > threshold else low, high + width if edge[-1] > threshold else high))
    return tuple(widened)


def _smooth_basis(z):
    """Return Chebyshev nodes in log(1 + z), as redshifts, and the matrix (N, NUM_MODULUS) that interpolates to z."""
    points = np.cos(np.pi * (np.arange(NUM_MODULUS) + 0.5) / NUM_MODULUS)
    u = np.log1p(z)
    top = u.max() * (1.0 + 1e-9)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(points, NUM_MODULUS - 1))
    matrix = chebyshev.chebvander(2.0 * u / top - 1.0, NUM_MODULUS - 1) @ to_coefficients
    return np.expm1(0.5 * top * (1.0 + points)), matrix


def _chebyshev_points(low, high, size):
    """Return the Chebyshev nodes of a range, (size,)."""
    return 0.5 * (low + high) + 0.5 * (high - low) * np.cos(np.pi * (np.arange(size) + 0.5) / size)


def _to_coefficients(grid):
    """Return the Chebyshev coefficients (A, A, K) of values (A, A, K) at the nodes in alpha and beta."""
    size = grid.shape[0]
    points = np.cos(np.pi * (np.arange(size) + 0.5) / size)
    inverse = np.linalg.inv(chebyshev.chebvander(points, size - 1))
    return np.einsum("ai,bj,ijk->abk", inverse, inverse, grid, optimize=True)


def _vandermonde(x, span, size):
    """Return Chebyshev polynomials of the first kind, mapped to a range, at a known x."""
    return chebyshev.chebvander((2.0 * x - (span[0] + span[1])) / (span[1] - span[0]), size - 1)[0]


def _polynomials(x, span, size):
    """Return the Chebyshev polynomials of `_vandermonde` at a traced x, by their recurrence."""
    t = (2.0 * x - (span[0] + span[1])) / (span[1] - span[0])
    values = [jnp.ones_like(t), t]
    for _ in range(size - 2):
        values.append(2.0 * t * values[-1] - values[-2])
    return jnp.stack(values)
