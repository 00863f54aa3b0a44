"""Model expressions folded through the responses of several spectra, on quadrature nodes or on all energy bins."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.spectra.folding.panels import Fold
from hbm_jax.spectra.model.composition import Component

NUM_BLOCKS = 8  # of groups, in a response on nodes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OnNodes:
    """A smooth model expression folded through n responses to G groups, on K quadrature nodes each; a pytree.

    Attributes
    ----------
    density : callable
        Model expression at the nodes, (n, K), as a function of its parameters.
    blocks : tuple of (n, G_b, K - first_b)
        Response in blocks of groups, each without the nodes of low energy to which it does not respond. Photons are not
        counted far above their energy and most nodes have low energies, so the blocks hold less than half of the
        matrix.
    first : tuple of int
        First node of each block.
    """

    density: Any
    blocks: Any
    first: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, spectrum: Component, folds: Sequence[Fold], num_groups: int, num_blocks: int = NUM_BLOCKS) -> "OnNodes":
        """Stack responses on nodes, from `hbm_jax.spectra.fold`, and precompute the tables of the expression."""
        num_nodes = max(len(fold.energy) for fold in folds)
        # Padded at low energies, which aligns the nodes of high energy: blocks then leave out more nodes.
        energy = np.stack([np.pad(fold.energy, (num_nodes - len(fold.energy), 0), mode="edge") for fold in folds])
        matrix = np.zeros((len(folds), num_groups, num_nodes))
        for row, fold in enumerate(folds):
            matrix[row, : fold.matrix.shape[0], num_nodes - fold.matrix.shape[1] :] = fold.matrix
        return cls(spectrum.on(energy), *in_blocks(matrix, num_blocks))

    def expected(self, values: Mapping[str, Any]) -> jax.Array:
        """Return expected counts without background, (n, G), for parameters () or (n,)."""
        density = self.density(values)
        parts = [
            jnp.einsum("ngk,nk->ng", jnp.asarray(matrix, density.dtype), density[:, start:])
            for matrix, start in zip(self.blocks, self.first, strict=True)
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def in_blocks(matrix: np.ndarray, num: int = NUM_BLOCKS) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """Divide responses on nodes (n, G, K) into blocks of groups, without the leading nodes of zero weight."""
    ends = np.linspace(0, matrix.shape[1], min(num, matrix.shape[1]) + 1).astype(int)
    blocks, first = [], []
    for low, high in itertools.pairwise(ends):
        used = np.flatnonzero(np.any(matrix[:, low:high] != 0, axis=(0, 1)))
        first.append(int(used[0]) if used.size else matrix.shape[2] - 1)
        blocks.append(np.ascontiguousarray(matrix[:, low:high, first[-1] :]))
    return tuple(blocks), tuple(first)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class OnBins:
    """Terms of a model expression folded through n responses to G groups, on all E energy bins; a pytree.

    Attributes
    ----------
    terms : tuple of callable
        Each maps parameter values to numbers for the bins, (n, E), such as the photons of a line.
    matrix : (n, G, E)
        Expected counts for a number of 1 in each bin.
    """

    terms: tuple[Any, ...]
    matrix: Any

    @classmethod
    def of(cls, terms: tuple[Any, ...], matrices: Sequence[np.ndarray], num_groups: int) -> "OnBins":
        """Stack responses (number of bins, number of groups), padded with zeros."""
        matrix = np.zeros((len(matrices), num_groups, max(map(len, matrices))))
        for row, response in enumerate(matrices):
            matrix[row, : response.shape[1], : response.shape[0]] = response.T
        return cls(terms, matrix)

    def expected(self, values: Mapping[str, Any]) -> jax.Array:
        """Return expected counts without background, (n, G), for parameters () or (n,)."""
        numbers = [term(values) for term in self.terms]
        folded = (jnp.einsum("ngk,nk->ng", jnp.asarray(self.matrix, number.dtype), number) for number in numbers)
        return functools.reduce(jnp.add, folded)


def fold_cautions(errors: Any, tolerance: float, names: Any, changes: str) -> tuple[str, ...]:
    """Return a sentence about the spectrum with the largest folding error, if any error is above the tolerance.

    Parameters
    ----------
    errors : (N,)
        Folding error of each spectrum; inf or NaN where the fold failed for some of the trial parameters.
    tolerance : float
        Largest error that needs no caution.
    names : sequence of str
        Names of the spectra; numbers are written in their place where this is empty.
    changes : str
        The quantity that the error changes, such as ``"the log likelihood"``.

    Returns
    -------
    tuple of str
        At most one sentence, for the notes of a verdict.
    """
    errors = np.asarray(errors, float)
    above = ~(errors <= tolerance)
    if not above.any():
        return ()
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    name = names[worst] if len(names) == len(errors) else f"number {worst + 1}"
    others = f", one of {above.sum()} such spectra of {len(errors)}" if above.sum() > 1 else ""
    size = f"up to {errors[worst]:.2g}" if np.isfinite(errors[worst]) else "an amount that cannot be measured"
    return (
        f"the fold of spectrum {name} changes {changes} by {size} over trial parameters, above the tolerance of "
        f"{tolerance:g}{others}; narrow the priors, or check the result with another model",
    )
