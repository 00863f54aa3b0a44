"""The likelihood of correlated supernovae as a table in alpha and beta, worked out once.

The covariance depends on alpha and beta alone, and the residuals

    r = m_b + alpha x1 - beta c - delta_M h - M0 - mu(z; cosmology)

lie, whatever the parameters, in the span X of m_b, x1, c, 1, h and some thirty smooth functions of redshift, in which
every distance modulus is expanded. So log det C and X^T C^-1 X, smooth in (alpha, beta), are all that there is to know.
They are interpolated between Chebyshev nodes, and a step of a sampler factorises nothing.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from hbm_jax.cosmology import Cosmology, RedshiftMatrix
from hbm_jax.data import CorrelatedSupernovae
from hbm_jax.precomputation import precomputed

NUM_MODULUS = 28  # smooth functions of redshift: 1e-10 mag for z < 1.5 over the default priors' bulk
_REACH = 10.0  # standard deviations of alpha and beta on either side
_NEGLIGIBLE = 32.0  # of the log density at the edge of the table below its highest: 8 standard deviations
_TOLERANCE = 2e-9  # of the log density, at points between the nodes
_REFERENCE = Cosmology.flat(H0=70.0, Om0=0.3)
_SIZES = (16, 24, 32, 48, 64)
FEWEST = 200  # supernovae; a step that factorises so few takes about a millisecond


def coefficients(alpha, beta, xp=jnp):
    """Coefficients of the six blocks."""
    one = xp.ones_like(alpha * beta)
    return xp.stack([one, alpha**2 * one, beta**2 * one, 2 * alpha * one, -2 * beta * one, -2 * alpha * beta])


@dataclass(frozen=True, eq=False)
class CorrelatedTable:
    """Interpolated likelihood of one sample.

    Attributes
    ----------
    alpha, beta : (2,)
        Range of the table.
    coordinates : (A, B, R)
        Chebyshev coefficients in alpha and beta, of R coordinates.
    parts : (R, 1 + S (S + 1) / 2)
        What these coordinates are of log det C and of the upper triangle of X^T C^-1 X.
    nodes : (NUM_MODULUS,)
        Redshifts at which the smooth part of the modulus is asked for.
    basis : (N, S)
        The span X: m_b less M0 and the modulus of a reference, x1, c, 1, h, and the interpolation from the nodes.
    M0 : float
        The reference's.
    """

    alpha: tuple[float, float]
    beta: tuple[float, float]
    coordinates: np.ndarray
    parts: np.ndarray
    nodes: np.ndarray
    basis: np.ndarray
    M0: float

    def log_density(self, alpha, beta, M0, delta_M, cosmology: Cosmology):
        """Log density of the observed magnitudes."""
        lines = RedshiftMatrix(self.nodes)
        # Less a reference, so that the quadratic form keeps its digits.
        smooth = lines.distmod(cosmology) - lines.distmod(_REFERENCE)
        head = jnp.stack(jnp.broadcast_arrays(1.0, alpha, -beta, self.M0 - M0, -delta_M))
        vector = jnp.concatenate([head, -smooth])
        log_det, inner = self.at(alpha, beta)
        return -0.5 * (vector @ inner @ vector + log_det + len(self.basis) * np.log(2.0 * np.pi))

    def at(self, alpha, beta, xp: Any = jnp):
        """Log det C, and a matrix with the quadratic form of X^T C^-1 X, (S, S)."""
        a = _polynomials(alpha, self.alpha, self.coordinates.shape[0], xp)
        b = _polynomials(beta, self.beta, self.coordinates.shape[1], xp)
        found = xp.einsum("i,j,ijr->r", a, b, self.coordinates) @ self.parts
        size = self.basis.shape[1]
        spread = np.zeros(size * size, int)
        upper = np.triu_indices(size)
        spread[np.ravel_multi_index(upper, (size, size))] = 1 + np.arange(len(upper[0]))
        return found[0], found[spread].reshape(size, size) * np.where(np.tri(size, k=-1), 0.0, 1.0)


_TABLES: "weakref.WeakKeyDictionary[CorrelatedSupernovae, list]" = weakref.WeakKeyDictionary()


def table_of(data: CorrelatedSupernovae, massive: Any, diagonal: np.ndarray) -> CorrelatedTable | None:
    """Return the table of a sample, worked out when it is first asked for.

    None if there are fewer than `FEWEST` supernovae, or if no table of a sensible size has the accuracy: the errors of
    the stretches and colours are then most of the covariance at the edges of the posterior.

    Parameters
    ----------
    data : CorrelatedSupernovae
        N supernovae, concrete.
    massive : (N,)
        What delta_M multiplies.
    diagonal : (N,)
        What is added to the covariance.
    """
    if len(data) < FEWEST:
        return None
    massive = np.array(np.broadcast_to(massive, len(data)))
    known = _TABLES.setdefault(data, [])
    for of_massive, of_diagonal, table in known:
        if np.array_equal(of_massive, massive) and np.array_equal(of_diagonal, diagonal):
            return table
    # OpenBLAS's threads wait for one another in loops: beside another busy process, two make a factorisation of 472
    # supernovae take 7 to 180 ms, one makes it take 1.2 ms.
    with threadpool_limits(limits=1, user_api="blas"):
        table = _tabulate(data, massive, diagonal)
    known.append((massive, np.array(diagonal), table))
    return table


def _tabulate(data, massive, diagonal) -> CorrelatedTable | None:
    sne, blocks = data.sne, data.total_blocks
    nodes, interpolation = _smooth_basis(sne.z_cmb)
    away = precomputed(lambda: np.asarray(RedshiftMatrix(sne.z_cmb, sne.z_hel).distmod(_REFERENCE)))
    bright = sne.m_b - away
    magnitude = float(np.mean(bright))
    basis = np.column_stack([bright - magnitude, sne.x1, sne.c, np.ones(len(sne)), massive, interpolation])

    def at(alpha, beta):
        covariance = np.tensordot(coefficients(alpha, beta, np), blocks, axes=1) + np.diag(diagonal)
        factor = cho_factor(covariance, lower=True, overwrite_a=True)
        inner = basis.T @ cho_solve(factor, basis)
        return 2.0 * np.log(np.diagonal(factor[0])).sum(), inner

    ranges = _ranges(basis, blocks, diagonal)
    for _ in range(6):
        wider = _wide_enough(at, basis, ranges)
        if wider == ranges:
            break
        ranges = wider
    rng = np.random.default_rng(0)
    points = [[rng.uniform(*span) for span in ranges] for _ in range(4)]
    exact = [at(*point) for point in points]
    for size in _SIZES:
        alphas, betas = (_chebyshev_points(low, high, size) for low, high in ranges)
        grid = np.array([[_packed(*at(alpha, beta)) for beta in betas] for alpha in alphas])
        coordinates, parts = _few_coordinates(_to_coefficients(grid))
        table = CorrelatedTable(ranges[0], ranges[1], coordinates, parts, nodes, basis, magnitude)
        errors = []
        for (alpha, beta), (log_det, inner) in zip(points, exact, strict=True):
            found = table.at(alpha, beta, np)
            # The residual of the best fit, by which errors of the inverse count.
            best = _best(inner, alpha, beta)
            errors.append(abs(found[0] - log_det) + abs(best @ (found[1] - inner) @ best))
        if max(errors) < _TOLERANCE:
            return table
    return None


def _packed(log_det, inner):
    """Log determinant and upper triangle, the latter with what is below the diagonal added."""
    upper = np.triu_indices(len(inner))
    return np.append(log_det, inner[upper] * np.where(upper[0] == upper[1], 1.0, 2.0))


def _few_coordinates(values):
    """Return coefficients (A, B, R) and parts (R, K) whose product is values (A, B, K), up to rounding."""
    rows = values.reshape(-1, values.shape[-1])
    scale = np.abs(rows).max(axis=0) + 1e-300
    left, sizes, right = np.linalg.svd(rows / scale, full_matrices=False)
    rank = int(np.sum(sizes > 1e-15 * sizes[0]))
    return (left[:, :rank] * sizes[:rank]).reshape(*values.shape[:2], rank), right[:rank] * scale


def _best(inner, alpha, beta):
    """Coordinates of the smallest residual for given alpha and beta."""
    free = np.arange(3, len(inner))
    head = np.zeros(len(inner))
    head[:3] = 1.0, alpha, -beta
    head[free] = -np.linalg.lstsq(inner[np.ix_(free, free)], inner[free] @ head, rcond=1e-12)[0]
    return head


def _ranges(basis, blocks, diagonal) -> Any:
    """Return the ranges of alpha and beta, about their generalised least squares."""
    alpha, beta = 0.0, 3.0
    for _ in range(8):
        covariance = np.tensordot(coefficients(np.float64(alpha), np.float64(beta), np), blocks, axes=1)
        factor = cho_factor(covariance + np.diag(diagonal), lower=True)
        # x1, c, the constant, the host, and as much of the smooth part as the data could want
        design = np.column_stack([-basis[:, 1], basis[:, 2], np.ones(len(basis)), basis[:, 4], basis[:, 5::4]])
        weighted = cho_solve(factor, design)
        normal = design.T @ weighted
        inverse = np.linalg.pinv(normal, rcond=1e-12, hermitian=True)
        solution = inverse @ (weighted.T @ basis[:, 0])
        alpha, beta = solution[:2]
    errors = np.sqrt(np.diagonal(inverse)[:2])
    return tuple((float(v - _REACH * e), float(v + _REACH * e)) for v, e in zip((alpha, beta), errors, strict=True))


def _wide_enough(at, basis, ranges) -> Any:
    """Return the ranges, wider on the sides where the likelihood, profiled over all else, is not yet negligible."""
    size = 9
    grids = [np.linspace(low, high, size) for low, high in ranges]
    profile = np.empty((size, size))
    for i, alpha in enumerate(grids[0]):
        for j, beta in enumerate(grids[1]):
            log_det, inner = at(alpha, beta)
            best = _best(inner, alpha, beta)
            profile[i, j] = -0.5 * (best @ inner @ best + log_det)
    near = profile.max() - _NEGLIGIBLE
    wider = []
    for axis, (low, high) in enumerate(ranges):
        edge = profile.max(axis=1 - axis)
        width = 0.4 * (high - low)
        wider.append((low - width if edge[0] > near else low, high + width if edge[-1] > near else high))
    return tuple(wider)


def _smooth_basis(z):
    """Return nodes in redshift, and the matrix (N, NUM_MODULUS) from values there to values at z."""
    points = np.cos(np.pi * (np.arange(NUM_MODULUS) + 0.5) / NUM_MODULUS)
    u = np.log1p(z)
    top = u.max() * (1.0 + 1e-9)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(points, NUM_MODULUS - 1))
    matrix = chebyshev.chebvander(2.0 * u / top - 1.0, NUM_MODULUS - 1) @ to_coefficients
    return np.expm1(0.5 * top * (1.0 + points)), matrix


def _chebyshev_points(low, high, size):
    return 0.5 * (low + high) + 0.5 * (high - low) * np.cos(np.pi * (np.arange(size) + 0.5) / size)


def _to_coefficients(grid):
    size = grid.shape[0]
    points = np.cos(np.pi * (np.arange(size) + 0.5) / size)
    inverse = np.linalg.inv(chebyshev.chebvander(points, size - 1))
    return np.einsum("ai,bj,ijk->abk", inverse, inverse, grid, optimize=True)


def _polynomials(x, span, size, xp=jnp):
    """Chebyshev polynomials of the first kind at x in a range, by their recurrence."""
    t = (2.0 * x - (span[0] + span[1])) / (span[1] - span[0])
    found = [xp.ones_like(t), t]
    for _ in range(size - 2):
        found.append(2.0 * t * found[-1] - found[-2])
    return xp.stack(found)
