"""Common offsets of many objects, in an order that makes sums over objects and offsets fast.

Each object is sensitive to few offsets. `bind_offsets` finds groups of objects that are sensitive to similar offsets,
a basis of the offsets without linear dependences, and blocks of offsets that share objects with few others. All of
this is exact, and depends on the sensitivities alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hbm_jax.distributions.normal.block_arrow import FULL, Block, block_arrow, connected

_OVERHEAD = 1e6  # multiplications that take as long as one more group
_MEMORY = 300  # multiplications that take as long as reading and writing the sensitivity to an offset
_FEW = 8  # offsets of the last component alone that have no arrays of their own
_REDUCED = 0.9  # fraction of its offsets below which a block is rotated to those that are linearly independent
_TOLERANCE = 1e-12  # singular values relative to the largest below which offsets are linearly dependent


class Groups(NamedTuple):
    """G groups of objects that are sensitive to similar offsets, padded with zeros to equal sizes.

    Arrays end with the axis of objects: products and sums over offsets are then fastest on a CPU.

    Attributes
    ----------
    objects : (G, R)
        Indices of the objects.
    offsets : (G, K)
        Indices of the offsets, in the basis.
    sensitivity : (G, K, n, R)
        Change of each component per unit of these offsets.
    sensitivity_last : (G, D, R)
        Change of the last component per unit of the last D offsets of the basis, which change this component alone. D
        is 0 for groups that none of these offsets change.
    """

    objects: Any
    offsets: Any
    sensitivity: Any
    sensitivity_last: Any


class CommonOffsets(NamedTuple):
    """Sensitivities of N objects to J offsets, in an order that makes products fast; see `bind_offsets`.

    Attributes
    ----------
    groups : tuple of Groups
        Groups of the objects that offsets change, stacked by size. Each object is in one group. Those that the last D
        offsets change come first.
    last : (D, S)
        The arrays ``sensitivity_last`` of all groups side by side.
    position : (N,)
        Position of each object in the concatenation of all groups; the position after the last for an object that no
        offset changes.
    basis : (J, B)
        Orthonormal basis of the combinations of offsets that change the data.
    blocks : tuple of Block
        Offsets, in the basis, that share no objects with those of other blocks.
    """

    groups: tuple[Groups, ...]
    last: Any
    position: Any
    basis: Any
    blocks: tuple[Block, ...]

    def shift(self, values, num: int):
        """Return the change of the vectors of N = ``num`` objects, (..., N, n), for values of the offsets (..., J)."""
        combined = jnp.matmul(values, self.basis, precision=FULL)
        shifts = []
        for group in self.groups:
            part = jnp.einsum("...gk,gkar->...agr", combined[..., group.offsets], group.sensitivity, precision=FULL)
            if size := np.shape(group.sensitivity_last)[1]:
                last = combined[..., combined.shape[-1] - size :]
                last = jnp.einsum("...d,gdr->...gr", last, group.sensitivity_last, precision=FULL)
                part = part.at[..., -1, :, :].add(last)
            shifts.append(part.reshape(*part.shape[:-2], -1))
        return jnp.moveaxis(self.in_order(jnp.concatenate(shifts, axis=-1)), -2, -1)

    def in_order(self, values):
        """Return values (..., N) of the objects in order, from those of all groups; 0 for objects without offsets."""
        return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])[..., self.position]


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
    num, _, num_offsets = matrix.shape
    if not grouped:
        batch = [(np.arange(num), np.arange(num_offsets))]
        return CommonOffsets((_padded(matrix, batch, 0),), np.zeros((0, 0)), np.arange(num), np.eye(num_offsets), ())
    basis = _basis(matrix)
    basis, num_last = _last_component_last(matrix, basis)
    matrix = matrix @ basis
    sensitive = (matrix != 0.0).any(axis=1).astype(np.float64)
    order, blocks = block_arrow(sensitive.T @ sensitive > 0.0)
    size = len(order)
    if not np.array_equal(order[size - num_last :], np.arange(size - num_last, size)):
        num_last = 0  # some of them are not in the core
    basis, matrix = basis[:, order], matrix[..., order]
    rotation, blocks = _independent(matrix, blocks)
    basis, matrix = basis @ rotation, matrix @ rotation
    # Without any offset that changes the data there is one object in one group, of no offsets.
    batches = _grouped(matrix, num_last) or [[(np.arange(1), np.arange(0))]]
    groups = tuple(_padded(matrix, batch, num_last) for batch in batches)
    used = np.concatenate([_used(group).ravel() for group in groups])
    position = np.full(num, len(used))
    position[np.concatenate([group.objects.ravel() for group in groups])[used]] = np.flatnonzero(used)
    changed = [np.moveaxis(group.sensitivity_last, 1, 0) for group in groups if group.sensitivity_last.shape[1]]
    last = np.concatenate([part.reshape(num_last, -1) for part in changed], axis=1) if changed else np.zeros((0, 0))
    return CommonOffsets(groups, last, position, basis, blocks)


def _used(group: Groups) -> np.ndarray:
    """Return the mask (G, R) of objects that are not padding."""
    return (group.sensitivity != 0.0).any(axis=(1, 2)) | (group.sensitivity_last != 0.0).any(axis=1)


def _basis(matrix: np.ndarray) -> np.ndarray:
    """Return a sparse orthonormal basis (J, B) of offsets; a vector combines offsets that change the same data."""
    rows = matrix.reshape(-1, matrix.shape[2])
    patterns, index = np.unique(rows != 0.0, axis=1, return_inverse=True)
    largest = np.abs(rows).max(initial=0.0)
    columns = []
    for pattern in np.flatnonzero(patterns.any(axis=0)):
        members = np.flatnonzero(index.ravel() == pattern)
        kept = _row_space(rows[patterns[:, pattern]][:, members], largest)
        embedded = np.zeros((len(kept), rows.shape[1]))
        embedded[:, members] = kept
        columns.append(embedded)
    return np.concatenate(columns).T if columns else np.zeros((rows.shape[1], 0))


def _row_space(rows: np.ndarray, largest: float) -> np.ndarray:
    """Return orthonormal combinations (r, K) of K offsets that span the rows of their sensitivities."""
    _, singular, axes = np.linalg.svd(rows, full_matrices=False)
    return axes[singular > _TOLERANCE * largest]


def _last_component_last(matrix: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the basis with the most numerous offsets that change the last component of the same objects at its end.

    Also return their number D, 0 if there are few of them.
    """
    in_basis = matrix @ basis
    candidates = np.flatnonzero(~(in_basis[:, :-1] != 0.0).any(axis=(0, 1)))
    if not len(candidates):
        return basis, 0
    _, index, numbers = np.unique(in_basis[:, -1, candidates] != 0.0, axis=1, return_inverse=True, return_counts=True)
    if numbers.max() < _FEW:
        return basis, 0
    last = candidates[index.ravel() == numbers.argmax()]
    return basis[:, np.concatenate([np.setdiff1d(np.arange(basis.shape[1]), last), last])], len(last)


def _independent(matrix: np.ndarray, blocks: tuple[Block, ...]) -> tuple[np.ndarray, tuple[Block, ...]]:
    """Return a rotation (B, B') of the offsets of each block to fewer where they exceed the data, and the new blocks.

    Offsets of a block that share no objects are rotated separately, so that the sensitivities stay sparse.
    """
    size, largest = matrix.shape[2], np.abs(matrix).max(initial=0.0)
    sensitive = (matrix != 0.0).any(axis=1)
    columns: list[np.ndarray] = []
    reduced = []
    for rows, neighbours in blocks:
        part = sensitive[:, rows].astype(np.float64)
        first = len(columns)
        for members in connected(part.T @ part > 0.0, np.arange(len(rows))):
            offsets = rows[members]
            data = matrix[sensitive[:, offsets].any(axis=1)][..., offsets]
            kept = _row_space(data.reshape(-1, len(offsets)), largest)
            axes = kept if len(kept) < _REDUCED * len(offsets) else np.eye(len(offsets))
            embedded = np.zeros((len(axes), size))
            embedded[:, offsets] = axes
            columns += list(embedded)
        reduced.append(Block(np.arange(first, len(columns)), neighbours))
    columns += list(np.eye(size)[sum(len(block.rows) for block in blocks) :])
    return np.reshape(columns, (len(columns), size)).T, tuple(reduced)


def _grouped(matrix: np.ndarray, num_last: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return batches of groups of objects, each as indices of objects and of offsets, for sensitivities (N, n, B).

    Objects that the last D = ``num_last`` offsets change are in groups of their own.
    """
    first = matrix.shape[2] - num_last
    sensitive = (matrix != 0.0).any(axis=1)
    changed = sensitive[:, first:].any(axis=1)
    batches = []
    for mask, num in ((changed, num_last), (~changed, 0)):
        objects = np.flatnonzero(mask & sensitive.any(axis=1))
        if len(objects):
            cost = partial(_cost, size=matrix.shape[1], num_last=num)
            members = [(objects[rows], offsets) for rows, offsets in _merged_groups(sensitive[objects, :first], cost)]
            batches += _batches(members, cost)
    return batches


def _merged_groups(sensitive: np.ndarray, cost: Callable) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return groups of objects that depend on about the same offsets, each as indices of objects and of offsets.

    ``sensitive`` (N, B) is True where an object depends on an offset. Groups of R objects and K offsets are merged as
    long as this reduces the number of multiplications, ``cost`` (R, K) and an overhead for each.
    """
    patterns, index = np.unique(sensitive, axis=0, return_inverse=True)
    members = [[pattern] for pattern in range(len(patterns))]
    union = patterns.astype(np.float64)
    num = np.bincount(index.ravel(), minlength=len(patterns)).astype(np.float64)
    while len(union) > 1:
        size = union.sum(axis=1)
        separate = cost(num, size)
        merged = cost(num[:, None] + num, size[:, None] + size - union @ union.T)
        saving = _OVERHEAD + separate[:, None] + separate - merged
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


def _batches(members: list[tuple[np.ndarray, np.ndarray]], cost: Callable) -> list[list]:
    """Return the groups in batches, each of which is padded to a common size and takes one product.

    A group joins a batch if the padding costs less than a separate product.
    """

    def total(batch: list) -> float:
        num_objects, num_offsets = (max(len(member[i]) for member in batch) for i in (0, 1))
        return len(batch) * cost(num_objects, num_offsets)

    batches: list[list] = []
    for objects, offsets in sorted(members, key=lambda member: -len(member[1])):
        additional = [total([*batch, (objects, offsets)]) - total(batch) for batch in batches]
        best = int(np.argmin(additional)) if batches else -1
        if batches and additional[best] < total([(objects, offsets)]) + _OVERHEAD:
            batches[best].append((objects, offsets))
        else:
            batches.append([(objects, offsets)])
    return batches


def _cost(num_objects: Any, num_offsets: Any, size: int, num_last: int) -> Any:
    """Return the number of multiplications of a group of objects of ``size`` components, arrays that broadcast."""
    return num_objects * num_offsets * (size * num_offsets + num_last + _MEMORY)


def _padded(matrix: np.ndarray, batch: list, num_last: int) -> Groups:
    """Return groups of equal size, from sensitivities (N, n, B) and the objects and offsets of each group."""
    num_objects, num_offsets = (max(len(member[i]) for member in batch) for i in (0, 1))
    objects = np.zeros((len(batch), num_objects), dtype=np.int32)
    offsets = np.zeros((len(batch), num_offsets), dtype=np.int32)
    sensitivity = np.zeros((len(batch), num_offsets, matrix.shape[1], num_objects))
    last = matrix[:, -1, matrix.shape[2] - num_last :]
    if not last[batch[0][0]].any():
        last = last[:, :0]
    sensitivity_last = np.zeros((len(batch), last.shape[1], num_objects))
    for g, (rows, columns) in enumerate(batch):
        objects[g, : len(rows)], offsets[g, : len(columns)] = rows, columns
        sensitivity[g, : len(columns), :, : len(rows)] = np.moveaxis(matrix[rows][:, :, columns], 0, 2).swapaxes(0, 1)
        sensitivity_last[g, :, : len(rows)] = last[rows].T
    return Groups(objects, offsets, sensitivity, sensitivity_last)
