"""Vectors of many objects with common offsets integrated out: calibration, bulk flows, any linear nuisance.

Object i has an observed vector of n components,

    y_i = m_i + J_i eta + e_i,    e_i ~ N(0, C_i),    eta ~ N(0, 1),

where m_i and C_i depend on parameters and the sensitivities J_i are constant. With the rows of J whitened by C_i,
J' = C^-1/2 J, and z = C^-1/2 (y - m), the density is that of independent objects times

    det(1 + A)^-1/2 exp(v . (1 + A)^-1 v / 2),    A = J'^T J',  v = J'^T z

(the matrix determinant lemma and the Woodbury identity). Each object is sensitive to few offsets. `bind_offsets`
finds groups of objects that are sensitive to similar offsets, so that A is a sum of small dense products, and a basis
of the offsets without their linear dependences; both are exact. Most offsets share objects with few others, so that
1 + A is inverted block by block (`hbm_jax.distributions.normal.block_arrow`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.linalg import solve_triangular
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.block_arrow import FULL, Block, block_arrow, solve_block_arrow
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.normal.small_matrices import factorised, inverse_of_factor

_OVERHEAD = 3e5  # multiplications that take as long as one more product of matrices
_TOLERANCE = 1e-12  # singular values relative to the largest below which offsets are linearly dependent


class Groups(NamedTuple):
    """G groups of objects whose component a is sensitive to similar offsets, padded with zeros to equal sizes.

    Attributes
    ----------
    objects : (G, R)
        Indices of the objects.
    offsets : (G, K)
        Indices of the offsets, in the basis.
    sensitivity : (a + 1, G, R, K)
        Change of components 0 to a per unit of the offsets: whitening mixes these components.
    """

    objects: Any
    offsets: Any
    sensitivity: Any


class CommonOffsets(NamedTuple):
    """Sensitivities of N objects to J offsets, in an order that makes products fast; see `bind_offsets`.

    Attributes
    ----------
    groups : tuple of tuple of Groups
        For each of the n components, its groups, stacked by size.
    basis : (J, B)
        Orthonormal basis of the combinations of offsets that change the data.
    blocks : tuple of Block
        Offsets, in the basis, that share no objects with those of other blocks.
    """

    groups: tuple[tuple[Groups, ...], ...]
    basis: Any
    blocks: tuple[Block, ...]

    def shift(self, values, num: int):
        """Return the change of the vectors of N = ``num`` objects, (..., N, n), for values of the offsets (..., J)."""
        combined = jnp.matmul(values, self.basis, precision=FULL)
        shift = jnp.zeros((*np.shape(values)[:-1], num, len(self.groups)))
        for component, groups in enumerate(self.groups):
            for group in groups:
                part = jnp.einsum(
                    "...gk,grk->...gr", combined[..., group.offsets], group.sensitivity[component], precision=FULL
                )
                shift = shift.at[..., group.objects, component].add(part)
        return shift


def bind_offsets(sensitivity: np.ndarray, grouped: bool = True) -> CommonOffsets:
    """Return the offsets of N objects in a form for fast evaluation.

    Parameters
    ----------
    sensitivity : (N, J, n)
        Change of each component per unit of each offset.
    grouped : bool
        Whether to group objects by their offsets. Otherwise the shapes depend on N, J and n alone.
    """
    matrix = np.moveaxis(np.asarray(sensitivity, dtype=np.float64), 1, 2)
    num, size, num_offsets = matrix.shape
    basis = _basis(matrix) if grouped else np.eye(num_offsets)
    matrix = matrix @ basis
    blocks: tuple[Block, ...] = ()
    if grouped:
        sensitive = (matrix != 0.0).any(axis=1).astype(np.float64)
        order, blocks = block_arrow(sensitive.T @ sensitive > 0.0)
        basis, matrix = basis[:, order], matrix[..., order]
    groups = []
    for component in range(size):
        sensitive = (matrix[:, : component + 1] != 0.0).any(axis=1)
        members = _merged_groups(sensitive) if grouped else [(np.arange(num), np.arange(num_offsets))]
        groups.append(tuple(_padded(matrix[:, : component + 1], batch) for batch in _batches(members)))
    return CommonOffsets(tuple(groups), basis, blocks)


def _basis(matrix: np.ndarray) -> np.ndarray:
    """Return a sparse orthonormal basis (J, B) of offsets; a vector combines offsets that change the same data."""
    rows = matrix.reshape(-1, matrix.shape[2])
    patterns, index = np.unique(rows != 0.0, axis=1, return_inverse=True)
    largest = np.abs(rows).max(initial=0.0)
    columns = []
    for pattern in np.flatnonzero(patterns.any(axis=0)):
        members = np.flatnonzero(index.ravel() == pattern)
        _, singular, axes = np.linalg.svd(rows[patterns[:, pattern]][:, members], full_matrices=False)
        kept = axes[singular > _TOLERANCE * largest]
        embedded = np.zeros((len(kept), rows.shape[1]))
        embedded[:, members] = kept
        columns.append(embedded)
    return np.concatenate(columns).T if columns else np.zeros((rows.shape[1], 0))


def _merged_groups(sensitive: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return groups of objects that depend on about the same offsets, each as indices of objects and of offsets.

    ``sensitive`` (N, B) is True where an object depends on an offset. Groups of R objects and K offsets are merged as
    long as this reduces the number of multiplications, R K^2 and an overhead for each.
    """
    patterns, index = np.unique(sensitive, axis=0, return_inverse=True)
    nonzero = np.flatnonzero(patterns.any(axis=1))
    members = [[pattern] for pattern in nonzero]
    union = patterns[nonzero].astype(np.float64)
    num = np.bincount(index.ravel(), minlength=len(patterns))[nonzero].astype(np.float64)
    while len(union) > 1:
        size = union.sum(axis=1)
        cost = num * size**2
        merged = (num[:, None] + num) * (size[:, None] + size - union @ union.T) ** 2
        saving = _OVERHEAD + cost[:, None] + cost - merged
        np.fill_diagonal(saving, -np.inf)
        a, b = np.unravel_index(saving.argmax(), saving.shape)
        if saving[a, b] <= 0.0:
            break
        union[a], num[a] = np.maximum(union[a], union[b]), num[a] + num[b]
        members[a] += members.pop(b)
        union, num = np.delete(union, b, axis=0), np.delete(num, b)
    return [
        (np.flatnonzero(np.isin(index.ravel(), group)), np.flatnonzero(offsets))
        for group, offsets in zip(members, union, strict=True)
    ]


def _batches(members: list[tuple[np.ndarray, np.ndarray]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return the groups in batches, each of which is padded to a common size and takes one product.

    A group joins a batch if the padding costs less than a separate product.
    """
    batches: list[list] = []
    for objects, offsets in sorted(members, key=lambda member: -len(member[1])):
        additional = [_cost([*batch, (objects, offsets)]) - _cost(batch) for batch in batches]
        best = int(np.argmin(additional)) if batches else -1
        if batches and additional[best] < _cost([(objects, offsets)]) + _OVERHEAD:
            batches[best].append((objects, offsets))
        else:
            batches.append([(objects, offsets)])
    return batches


def _cost(batch: list) -> int:
    """Return the number of multiplications of a batch, whose groups are padded to its largest one."""
    return len(batch) * max(len(objects) for objects, _ in batch) * max(len(offsets) for _, offsets in batch) ** 2


def _padded(matrix: np.ndarray, batch: list) -> Groups:
    """Return groups of equal size, from sensitivities (N, a + 1, B) and the objects and offsets of each group."""
    num_objects, num_offsets = (max(len(member[i]) for member in batch) for i in (0, 1))
    objects = np.zeros((len(batch), num_objects), dtype=np.int32)
    offsets = np.zeros((len(batch), num_offsets), dtype=np.int32)
    sensitivity = np.zeros((matrix.shape[1], len(batch), num_objects, num_offsets))
    for g, (rows, columns) in enumerate(batch):
        objects[g, : len(rows)], offsets[g, : len(columns)] = rows, columns
        sensitivity[:, g, : len(rows), : len(columns)] = np.moveaxis(matrix[rows][:, :, columns], 1, 0)
    return Groups(objects, offsets, sensitivity)


class Whitened(NamedTuple):
    """Whitened vectors of all objects.

    Attributes
    ----------
    log_density : scalar
        Log density without offsets.
    residuals, sensitivities, offsets : list of (G, R), (G, R, K), (G, K)
        Whitened residuals and sensitivities, and indices of offsets, for each `Groups`.
    """

    log_density: Any
    residuals: list
    sensitivities: list
    offsets: list


def _whitened(residual: Sequence[Any], covariance: Sequence[Sequence[Any]], offsets: CommonOffsets) -> Whitened:
    """Whiten residuals and sensitivities by the covariances; arguments are those of `log_density`."""
    factorisation = factorised(covariance)
    inverse = inverse_of_factor(factorisation.factor)
    z = factorisation.whiten(residual)
    # With C = L D L^T, C^-1/2 is D^-1/2 L^-1: row a mixes components 0 to a.
    result = Whitened(jnp.sum(factorisation.log_density(z)), [], [], [])
    for component, groups in enumerate(offsets.groups):
        scale = jnp.sqrt(factorisation.inverse[component])
        rows = jnp.stack([scale * entry for entry in (*inverse[component], z[component])])
        # One gather of all groups: its transpose, a scatter, takes longer than the products of a small group.
        objects = jnp.concatenate([jnp.ravel(group.objects) for group in groups]) if groups else jnp.zeros(0, int)
        members, first = rows[:, objects], 0
        for group in groups:
            size = np.size(group.objects)
            *factors, residuals = members[:, first : first + size].reshape(-1, *np.shape(group.objects))
            first += size
            parts = zip(factors, group.sensitivity, strict=True)
            result.sensitivities.append(sum(factor[..., None] * part for factor, part in parts))
            result.residuals.append(residuals)
            result.offsets.append(group.offsets)
    return result


def _information(size: int, residuals, sensitivities, offsets):
    """Return 1 + A (B, B) and v (B,), defined at the top of this file."""
    positions = [(index[:, :, None] * size + index[:, None, :]).ravel() for index in offsets]
    products = [jnp.einsum("grk,grl->gkl", part, part, precision=FULL).ravel() for part in sensitivities]
    information = (
        jnp.zeros(size * size).at[jnp.concatenate(positions)].add(jnp.concatenate(products)).reshape(size, size)
    )
    parts = zip(residuals, sensitivities, strict=True)
    scores = [jnp.einsum("gr,grk->gk", z, part, precision=FULL).ravel() for z, part in parts]
    positions = [index.ravel() for index in offsets]
    score = jnp.zeros(size).at[jnp.concatenate(positions)].add(jnp.concatenate(scores))
    return information + jnp.eye(size), score


@jax.custom_jvp
def _log_ratio(residuals, sensitivities, offsets, blocks, ones):
    """Return the log of the ratio of the densities with and without offsets; ``ones`` are (B,)."""
    return _solved(residuals, sensitivities, offsets, blocks, ones)[0]


def _solved(residuals, sensitivities, offsets, blocks, ones):
    """Return the log ratio, the inverse of 1 + A, and the mean of the offsets given the data."""
    information, score = _information(len(ones), residuals, sensitivities, offsets)
    inverse, log_det, mean = solve_block_arrow(information, score, blocks)
    return 0.5 * (jnp.dot(score, mean, precision=FULL) - log_det), inverse, mean


@_log_ratio.defjvp
def _log_ratio_jvp(primals, tangents):
    """Return the log ratio and its directional derivative.

    With the mean m of the offsets and S the sensitivities of a group, the derivative is S m by its residuals z, and
    (z - S m) m^T - S (1 + A)^-1 by S.
    """
    residuals, sensitivities, offsets, *_ = primals
    value, inverse, mean = _solved(*primals)
    total = jnp.zeros(())
    for z, part, index, z_dot, part_dot in zip(residuals, sensitivities, offsets, *tangents[:2], strict=True):
        predicted = jnp.einsum("grk,gk->gr", part, mean[index], precision=FULL)
        slope = (z - predicted)[..., None] * mean[index][:, None, :]
        slope = slope - jnp.matmul(part, inverse[index[:, :, None], index[:, None, :]], precision=FULL)
        total = total + jnp.sum(slope * part_dot) + jnp.sum(predicted * z_dot)
    return value, total


def log_density(residual: Sequence[Any], covariance: Sequence[Sequence[Any]], offsets: CommonOffsets):
    """Return the log density of all objects with the offsets integrated out.

    Parameters
    ----------
    residual : sequence of n arrays (N,)
        Components of y - m.
    covariance : rows of arrays (N,)
        Elements of the lower triangle of the covariances C_i, n rows.
    offsets : CommonOffsets
        Sensitivities.
    """
    whitened = _whitened(residual, covariance, offsets)
    size = np.shape(offsets.basis)[1]
    if not size:
        return whitened.log_density
    return whitened.log_density + _log_ratio(*whitened[1:], offsets.blocks, np.ones(size))


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
        information, score = _information(size, *_whitened(*self._parts(value), self.offsets)[1:])
        factor = jnp.linalg.cholesky(information)
        whitened = solve_triangular(factor, score, lower=True) + random.normal(keys[1], (size,))
        drawn = solve_triangular(factor.T, whitened, lower=False)
        # Combinations outside the basis do not change the data and keep their prior.
        return prior + jnp.matmul(basis, drawn - jnp.matmul(prior, basis, precision=FULL), precision=FULL)
