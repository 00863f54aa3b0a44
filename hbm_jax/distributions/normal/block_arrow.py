"""Inverse of positive definite matrices in which most rows are coupled to few others.

The rows are ordered as blocks, which are not coupled with each other, and a core. Each block A_bb is eliminated:
with the coupling A_bc of the block to the rows of the core that it is coupled to,

    core <- core - A_cb A_bb^-1 A_bc,

and of the inverse only the elements between rows that are coupled, or both in one block, are computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

FULL = jax.lax.Precision.HIGHEST  # the default matrix product of an accelerator rounds to a few digits
_OVERHEAD = 4e6  # multiplications that take as long as the elimination of one more block
_COMPLETE = 0.5  # fraction of the core above which a block is treated as coupled to all of it: slices, not gathers
_BLOCK = 128  # rows up to which a matrix has no blocks
_FACTORED = 48  # rows up to which a matrix is inverted by its Cholesky factor
# OpenBLAS solves for fewer than 8 columns in one thread. Its threads wait for each other actively: beside another busy
# process a gradient with 478 offsets took 13 to 94 ms (medians) for all columns at once, 5 ms for seven at a time.
_COLUMNS = 7


class Block(NamedTuple):
    """Rows that are coupled with each other and with the core alone.

    Attributes
    ----------
    rows : (k,)
        Consecutive rows.
    neighbours : (f,)
        Rows of the core to which they are coupled, counted from the first of the core; the whole core if it is most of
        it.
    """

    rows: Any
    neighbours: Any


def block_arrow(coupled: np.ndarray) -> tuple[np.ndarray, tuple[Block, ...]]:
    """Return an order of the rows (B,), blocks first, and the blocks, for a mask (B, B) of rows that are coupled.

    Rows are ordered by elimination, each time of one with the fewest neighbours. The last rows of this order are the
    core; their number is the one that needs the fewest multiplications. The blocks are the connected parts of the other
    rows, merged where this saves multiplications.
    """
    size = len(coupled)
    best: tuple[float, np.ndarray, list] = (float(size) ** 3, np.arange(size), [])
    order = _least_neighbours(coupled)
    for num_core in {round(size * fraction) for fraction in np.linspace(0.1, 0.9, 9)} if size > _BLOCK else ():
        core = np.sort(order[size - num_core :])
        parts = _merged(connected(coupled, order[: size - num_core]), coupled, core)
        cost = sum(_cost(float(len(rows)), neighbours.sum()) for rows, neighbours in parts) + float(num_core) ** 3
        if cost < best[0]:
            best = cost, core, parts
    _, core, parts = best
    first = np.cumsum([0, *(len(rows) for rows, _ in parts)])
    blocks = tuple(
        Block(np.arange(start, start + len(rows)), np.flatnonzero(neighbours))
        for start, (rows, neighbours) in zip(first, parts, strict=False)
    )
    return np.concatenate([*(rows for rows, _ in parts), core]).astype(np.int64), blocks


def _least_neighbours(coupled: np.ndarray) -> np.ndarray:
    """Return the rows in the order of elimination, each time one with the fewest neighbours among the others."""
    graph, remaining, order = coupled.copy(), np.ones(len(coupled), bool), []
    for _ in range(len(coupled)):
        row = int(np.where(remaining, (graph & remaining).sum(axis=1), len(coupled) + 1).argmin())
        neighbours = np.flatnonzero(graph[row] & remaining)
        graph[np.ix_(neighbours, neighbours)] = True
        remaining[row] = False
        order.append(row)
    return np.array(order, dtype=np.int64)


def connected(coupled: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Return the connected parts of the given rows."""
    remaining, parts = set(rows.tolist()), []
    while remaining:
        part = front = {remaining.pop()}
        while front:
            reached = set(np.flatnonzero(coupled[sorted(front)].any(axis=0)).tolist())
            front = reached & remaining
            remaining -= front
            part = part | front
        parts.append(np.array(sorted(part)))
    return parts


def _merged(parts: list[np.ndarray], coupled: np.ndarray, core: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return parts and masks of their neighbours in the core, merged as long as this saves multiplications."""
    merged = list(parts)
    neighbours = np.array([coupled[np.ix_(rows, core)].any(axis=0) for rows in parts], dtype=np.float64)
    while len(merged) > 1:
        size, num = np.array([len(rows) for rows in merged], dtype=np.float64), neighbours.sum(axis=1)
        cost = _cost(size, _used(num, len(core)))
        union = num[:, None] + num - neighbours @ neighbours.T
        saving = cost[:, None] + cost - _cost(size[:, None] + size, _used(union, len(core)))
        np.fill_diagonal(saving, -np.inf)
        a, b = np.unravel_index(saving.argmax(), saving.shape)
        if saving[a, b] <= 0.0:
            break
        merged[a], neighbours[a] = np.concatenate([merged[a], merged[b]]), np.maximum(neighbours[a], neighbours[b])
        merged.pop(b)
        neighbours = np.delete(neighbours, b, axis=0)
    complete = neighbours.sum(axis=1, keepdims=True) > _COMPLETE * len(core)
    return list(zip(merged, (neighbours > 0.0) | complete, strict=True))


def _used(num: Any, num_core: int) -> Any:
    """Return the number of rows of the core in the products of blocks that are coupled to ``num`` of them, an array."""
    return np.where(num > _COMPLETE * num_core, num_core, num)


def _cost(k: Any, f: Any) -> Any:
    """Return the number of multiplications that blocks of k rows with f neighbours take, arrays that broadcast."""
    return _OVERHEAD + k**3 + 2.0 * k * f * (k + f)


def inverse_by_halves(matrix):
    """Return the inverse of a positive definite matrix (B, B) and its log determinant.

    Products of matrices take most of the time.
    """
    size = matrix.shape[0]
    if size <= _FACTORED:
        return _inverse_by_factor(matrix)
    half = (size // 2 + 7) // 8 * 8
    first, cross, last = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    inverse, log_det = inverse_by_halves(first)
    solved = _product(inverse, cross)
    schur_inverse, schur_log_det = inverse_by_halves(last - _product(cross.T, solved))
    off_diagonal = -_product(solved, schur_inverse)
    corner = inverse - _product(off_diagonal, solved.T)
    return jnp.block([[corner, off_diagonal], [off_diagonal.T, schur_inverse]]), log_det + schur_log_det


# One matrix after the other in a batch: jaxlib 0.10 hands the matrices of a batch to the threads of a pool and waits in
# one of these, so that as many batches at once as there are threads wait for each other for ever. Batches of fits did.
@jax.custom_batching.sequential_vmap
def _inverse_by_factor(matrix):
    """Return the inverse of a small positive definite matrix (B, B) and its log determinant."""
    factor = jnp.linalg.cholesky(matrix)
    inverse = _inverse_of_triangular(factor)
    return _product(inverse.T, inverse), 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))


def _inverse_of_triangular(factor):
    """Return the inverse of a lower triangular matrix (B, B), in groups of `_COLUMNS` columns."""
    size = factor.shape[0]
    num = -(-size // _COLUMNS)
    columns = np.eye(size, num * _COLUMNS).reshape(size, num, _COLUMNS).swapaxes(0, 1)
    solved = solve_triangular(jnp.broadcast_to(factor, (num, size, size)), columns, lower=True)
    return jnp.moveaxis(solved, 0, 1).reshape(size, -1)[:, :size]


class Solution(NamedTuple):
    """Solution of A x = b for a block-arrow matrix A.

    Attributes
    ----------
    inverse : (B, B)
        Inverse of A between rows that are coupled or in one block; 0 between blocks.
    log_det : scalar
        Log determinant of A.
    x : (B,)
        A^-1 b.
    """

    inverse: Any
    log_det: Any
    x: Any


def solve_block_arrow(matrix, right, blocks: Sequence[Block]) -> Solution:
    """Return the elements of the inverse of a positive definite matrix (B, B), its log determinant, and A^-1 b.

    Parameters
    ----------
    matrix : (B, B)
        Matrix A, with the blocks first.
    right : (B,)
        Vector b.
    blocks : sequence of Block
        Blocks of A; without blocks the inverse is complete.
    """
    start = sum(len(block.rows) for block in blocks)
    core, core_right, log_det, eliminated, first = matrix[start:, start:], right[start:], 0.0, [], 0
    for block in blocks:
        rows, neighbours = slice(first, first + len(block.rows)), block.neighbours
        first = rows.stop
        inverse, block_log_det = inverse_by_halves(matrix[rows, rows])
        complete = len(neighbours) == len(core_right)
        cross = matrix[rows, start:] if complete else matrix[rows, start + neighbours]
        solved = _product(inverse, cross)
        change, change_right = _product(cross.T, solved), _product(right[rows], solved)
        if complete:
            core, core_right = core - change, core_right - change_right
        else:
            core = core.at[neighbours[:, None], neighbours[None, :]].add(-change)
            core_right = core_right.at[neighbours].add(-change_right)
        log_det = log_det + block_log_det
        eliminated.append((rows, neighbours, inverse, solved))
    core_inverse, core_log_det = inverse_by_halves(core)
    core_x = _product(core_inverse, core_right)
    result = jnp.zeros_like(matrix).at[start:, start:].set(core_inverse)
    x = []
    for rows, neighbours, inverse, solved in eliminated:
        complete = len(neighbours) == len(core_right)
        part = core_inverse if complete else core_inverse[neighbours[:, None], neighbours[None, :]]
        off_diagonal = -_product(solved, part)
        columns = slice(start, None) if complete else start + neighbours
        result = result.at[rows, rows].set(inverse - _product(off_diagonal, solved.T))
        result = result.at[rows, columns].set(off_diagonal)
        result = result.at[columns, rows].set(off_diagonal.T)
        x.append(_product(inverse, right[rows]) - _product(solved, core_x if complete else core_x[neighbours]))
    return Solution(result, log_det + core_log_det, jnp.concatenate([*x, core_x]))


def _product(a, b):
    """Return the product of matrices at full precision."""
    return jnp.matmul(a, b, precision=FULL)
