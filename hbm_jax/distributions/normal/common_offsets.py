"""Vectors of many objects with common offsets integrated out: calibration, bulk flows, any linear nuisance.

Object i has an observed vector of n components,

    y_i = m_i + J_i eta + e_i,    e_i ~ N(0, C_i),    eta ~ N(0, 1),

where m_i and C_i depend on parameters and the sensitivities J_i are constant. With the rows of J whitened by C_i,
J' = C^-1/2 J, and z = C^-1/2 (y - m), the density is that of independent objects times

    det(1 + A)^-1/2 exp(v . (1 + A)^-1 v / 2),    A = J'^T J',  v = J'^T z

(the matrix determinant lemma and the Woodbury identity). Each object is sensitive to few offsets. `bind_offsets`
finds groups of objects that are sensitive to similar offsets, so that A is a sum of small dense products
(`hbm_jax.distributions.normal.offset_groups`). Most offsets share objects with few others, so that 1 + A is inverted
block by block (`hbm_jax.distributions.normal.block_arrow`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.linalg import solve_triangular
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.block_arrow import FULL, solve_block_arrow
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.normal.offset_groups import CommonOffsets
from hbm_jax.distributions.normal.small_matrices import factorised, inverse_of_factor


def _fields(residual: Sequence[Any], covariance: Sequence[Sequence[Any]]) -> tuple[list, list[list]]:
    """Return w = C^-1 r and the lower triangle of C^-1, as arrays (N,)."""
    size, factorisation = len(residual), factorised(covariance)
    inverse = inverse_of_factor(factorisation.factor)
    columns = [[inverse[k][i] for k in range(i, size)] for i in range(size)]  # of L^-1, from the diagonal on
    precision = [
        [
            sum(a * b * d for a, b, d in zip(columns[i], columns[j][i - j :], factorisation.inverse[i:], strict=True))
            for j in range(i + 1)
        ]
        for i in range(size)
    ]
    return _symmetric_product(precision, residual), precision


def _symmetric_product(matrix: Sequence[Sequence[Any]], vector: Sequence[Any]) -> list:
    """Return the product of a symmetric matrix, given by the rows of its lower triangle, with a vector."""
    axes = range(len(vector))
    return [sum(matrix[max(i, j)][min(i, j)] * vector[j] for j in axes) for i in axes]


def _information(residual, covariance, offsets: CommonOffsets):
    """Return 1 + A (B, B) and v (B,), defined at the top of this file; arguments are those of `log_density`."""
    vector, precision = _fields(residual, covariance)
    n, (num_last, num_changed) = len(residual), np.shape(offsets.last)
    size = np.shape(offsets.basis)[1]
    first, last = size - num_last, jnp.asarray(offsets.last)
    objects = jnp.concatenate([jnp.ravel(group.objects) for group in offsets.groups])
    rows = jnp.stack([*vector, *(entry for row in precision for entry in row)])[:, objects]
    places, products, scores, start = [], [], [], 0
    across = jnp.zeros((first, num_last))
    for group in offsets.groups:
        num_groups, num_offsets = np.shape(group.offsets)
        stop = start + np.size(group.objects)
        members = rows[:, start:stop].reshape(len(rows), num_groups, 1, -1)
        start = stop
        sensitivity = jnp.asarray(group.sensitivity)
        weighted = [  # C^-1 J
            sum(members[n + _entry(a, b)] * sensitivity[:, :, b] for b in range(n)) for a in range(n)
        ]
        flat = sensitivity.reshape(num_groups, num_offsets, -1)
        flat_weighted = jnp.stack(weighted, axis=2).reshape(flat.shape)
        products.append(jnp.einsum("gkx,glx->gkl", flat_weighted, flat, precision=FULL).ravel())
        places.append((group.offsets[:, :, None] * first + group.offsets[:, None, :]).ravel())
        flat_vector = jnp.moveaxis(members[:n, :, 0], 0, 1).reshape(num_groups, -1)
        scores.append(jnp.einsum("gkx,gx->gk", flat, flat_vector, precision=FULL).ravel())
        if np.shape(group.sensitivity_last)[1]:
            cross = jnp.einsum("gkr,gdr->gkd", weighted[-1], group.sensitivity_last, precision=FULL)
            across = across.at[group.offsets.ravel()].add(cross.reshape(-1, num_last))
    information = jnp.zeros(first * first).at[jnp.concatenate(places)].add(jnp.concatenate(products))
    information = information.reshape(first, first)
    indices = jnp.concatenate([jnp.ravel(group.offsets) for group in offsets.groups])
    score = jnp.zeros(first).at[indices].add(jnp.concatenate(scores))
    if num_last:
        product = jnp.matmul(rows[-1, :num_changed] * last, last.T, precision=FULL)
        information = jnp.block([[information, across], [across.T, product]])
        score = jnp.concatenate([score, jnp.matmul(last, rows[n - 1, :num_changed], precision=FULL)])
    return information + jnp.eye(size), score


def _entry(i: int, j: int) -> int:
    """Return the position of an entry of a symmetric matrix among those of its lower triangle, row by row."""
    return max(i, j) * (max(i, j) + 1) // 2 + min(i, j)


def _solved(residual, covariance, offsets: CommonOffsets):
    """Return the log ratio of the densities with and without offsets, (1 + A)^-1, and the mean of the offsets."""
    information, score = _information(residual, covariance, offsets)
    inverse, log_det, mean = solve_block_arrow(information, score, offsets.blocks)
    return 0.5 * (jnp.dot(score, mean, precision=FULL) - log_det), inverse, mean


@jax.custom_jvp
def log_density(residual: Sequence[Any], covariance: Sequence[Sequence[Any]], offsets: CommonOffsets):
    """Return the log density of all objects with the offsets integrated out.

    Parameters
    ----------
    residual : sequence of n arrays (N,)
        Components of y - m.
    covariance : rows of arrays (N,)
        Elements of the lower triangle of the covariances C_i, n rows.
    offsets : CommonOffsets
        Sensitivities, which are constants: derivatives with respect to them are left out.
    """
    without = jnp.sum(_without_offsets(residual, covariance))
    return without if not np.shape(offsets.basis)[1] else without + _solved(residual, covariance, offsets)[0]


def _without_offsets(residual, covariance):
    """Return the log density of each object without offsets, (N,)."""
    factorisation = factorised(covariance)
    return factorisation.log_density(factorisation.whiten(residual))


@log_density.defjvp
def _log_density_jvp(primals, tangents):
    """Return the log density and its directional derivative.

    With m and V = (1 + A)^-1 the mean and covariance of the offsets given the data, an object has
    g = C^-1 (r - J m) and the block P = C^-1 - C^-1 J V J^T C^-1 of the inverse covariance of all data. The derivative
    is -g by its residual and (g g^T - P) / 2 by its covariance.
    """
    (residual, covariance, offsets), (residual_dot, covariance_dot, _) = primals, tangents
    axes, value = range(len(residual)), jnp.sum(_without_offsets(residual, covariance))
    vector, precision = _fields(residual, covariance)
    g, blocks = vector, precision
    if np.shape(offsets.basis)[1]:
        log_ratio, inverse, mean = _solved(residual, covariance, offsets)
        value = value + log_ratio
        predicted, spread = _predicted(inverse, mean, offsets, len(residual))
        g = [a - b for a, b in zip(vector, _symmetric_product(precision, predicted), strict=True)]
        columns = [_symmetric_product(spread, [precision[max(i, j)][min(i, j)] for i in axes]) for j in axes]
        blocks = []  # the columns are those of J V J^T C^-1
        for i in axes:
            row = [precision[max(i, k)][min(i, k)] for k in axes]
            blocks.append(
                [precision[i][j] - sum(a * b for a, b in zip(row, columns[j], strict=True)) for j in range(i + 1)]
            )
    total = -sum(a * b for a, b in zip(g, residual_dot, strict=True))
    for i in axes:
        for j in range(i + 1):
            total = total + (0.5 if i == j else 1.0) * (g[i] * g[j] - blocks[i][j]) * covariance_dot[i][j]
    return value, jnp.sum(total)


def _predicted(inverse, mean, offsets: CommonOffsets, n: int) -> tuple[list, list[list]]:
    """Return J m and the lower triangle of J V J^T, arrays (N,), for the covariance V and the mean m of the offsets."""
    num_last, num_changed = np.shape(offsets.last)
    first, rows = len(mean) - num_last, []
    for group in offsets.groups:
        index, sensitivity = group.offsets, jnp.asarray(group.sensitivity)
        num_groups, num_offsets = np.shape(index)
        flat = sensitivity.reshape(num_groups, num_offsets, -1)
        products = jnp.matmul(inverse[index[:, :, None], index[:, None, :]], flat, precision=FULL)
        products = products.reshape(sensitivity.shape)
        predicted = jnp.einsum("gk,gkx->gx", mean[index], flat, precision=FULL).reshape(num_groups, n, -1)
        parts, columns = ([array[:, :, a] for a in range(n)] for array in (sensitivity, products))
        addition = jnp.zeros(())
        if num_last and np.shape(group.sensitivity_last)[1]:
            across = jnp.matmul(inverse[index, first:], group.sensitivity_last, precision=FULL)
            columns[-1] = columns[-1] + across
            addition = jnp.sum(across * parts[-1], axis=1)
        spread = [jnp.sum(columns[a] * parts[b], axis=1) for a in range(n) for b in range(a + 1)]
        spread[-1] = spread[-1] + addition
        rows.append(jnp.stack([*(predicted[:, a] for a in range(n)), *spread]).reshape(n + len(spread), -1))
    total = jnp.concatenate(rows, axis=1)
    if num_last:
        last = jnp.asarray(offsets.last)
        variance = jnp.sum(last * jnp.matmul(inverse[first:, first:], last, precision=FULL), axis=0)
        loc = jnp.matmul(mean[first:], last, precision=FULL)
        total = total.at[n - 1, :num_changed].add(loc).at[-1, :num_changed].add(variance)
    values = list(offsets.in_order(total))
    return values[:n], [values[n + _entry(i, 0) : n + _entry(i, i) + 1] for i in range(n)]


class OffsetGaussian(dist.Distribution):
    """Normal distribution of N observed vectors with latents of each and common offsets integrated out.

    Parameters
    ----------
    objects : LinearGaussian
        Distribution without offsets, batch shape (N,), of at most 6 components.
    offsets : CommonOffsets
        Sensitivities to the offsets, which are N(0, 1) each.

    Notes
    -----
    Values are (N, n), one event. Log density and gradient agree with a dense normal distribution to 1e-10
    (``tests/distributions/test_common_offsets.py``).
    """

    support = constraints.independent(constraints.real, 2)
    pytree_data_fields = ("objects", "offsets")

    def __init__(self, objects: LinearGaussian, offsets: CommonOffsets, *, validate_args=None):
        self.objects, self.offsets = objects, offsets
        super().__init__((), objects.batch_shape + objects.event_shape, validate_args=validate_args)

    def _parts(self, value) -> tuple[list, list[list]]:
        """Return residuals and covariances, with one element for every object."""
        full = partial(jnp.broadcast_to, shape=self.objects.batch_shape)
        rows = self.objects.covariance_elements()
        covariance = [[full(entry) for entry in row[: i + 1]] for i, row in enumerate(rows)]
        return [full(entry) for entry in self.objects.residuals(value)], covariance

    @validate_sample
    def log_prob(self, value):
        """Return the log density of all observed vectors."""
        return log_density(*self._parts(value), self.offsets)

    def log_prob_given_others(self, value):
        """Return the log density of each object given all others and the parameters, (N,).

        With Sigma the covariance of everything, g_i = (Sigma^-1 r)_i and P_i the block of Sigma^-1, object i is normal
        with covariance P_i^-1 about y_i - P_i^-1 g_i. Both are derivatives of the log density: that by r_i is -g_i, by
        an element (a, a) of C_i it is (g_a^2 - P_aa) / 2, and by both elements (a, b) and (b, a) it is g_a g_b - P_ab.
        """
        residual, covariance = self._parts(value)
        slopes, slopes_of_covariance = jax.grad(log_density, argnums=(0, 1))(residual, covariance, self.offsets)
        g = [-slope for slope in slopes]
        precision = [
            [g[i] * g[j] - (2.0 if i == j else 1.0) * slope for j, slope in enumerate(row)]
            for i, row in enumerate(slopes_of_covariance)
        ]
        factorisation = factorised(precision)
        whitened = factorisation.whiten(g)  # g . P^-1 g is the square of the residual in units of its errors
        square = sum(w * w * inverse for w, inverse in zip(whitened, factorisation.inverse, strict=True))
        log_det = sum(jnp.log(pivot) for pivot in factorisation.pivots)
        return 0.5 * (log_det - square - len(g) * np.log(2.0 * np.pi))

    def sample(self, key, sample_shape=()):
        """Draw observed vectors ``(*sample_shape, N, n)``, each with offsets of its own."""
        keys = random.split(key)
        drawn = self.objects.sample(keys[0], sample_shape)
        standard = random.normal(keys[1], (*sample_shape, np.shape(self.offsets.basis)[0]))
        return drawn + self.offsets.shift(standard, self.event_shape[0])

    def conditional_offsets(self, key, value):
        """Draw the J offsets from their exact conditional distribution given the observed vectors, (J,)."""
        basis = jnp.asarray(self.offsets.basis)
        keys, size = random.split(key), basis.shape[1]
        prior = random.normal(keys[0], basis.shape[:1])
        if not size:
            return prior
        information, score = _information(*self._parts(value), self.offsets)
        factor = jnp.linalg.cholesky(information)
        whitened = solve_triangular(factor, score, lower=True) + random.normal(keys[1], (size,))
        drawn = solve_triangular(factor.T, whitened, lower=False)
        # Combinations outside the basis do not change the data and keep their prior.
        return prior + jnp.matmul(basis, drawn - jnp.matmul(prior, basis, precision=FULL), precision=FULL)
