"""Expected counts of a model expression in several spectra: on quadrature nodes, or exact where they do not suffice."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from hbm_jax.precomputation import on_every_core
from hbm_jax.spectra.folding.banded import BandedResponse
from hbm_jax.spectra.folding.fold import Folded, fold
from hbm_jax.spectra.model.composition import Component, separated
from hbm_jax.spectra.model.photons import exact_terms
from hbm_jax.spectra.model.quadrature import LINE_WIDTH, integrals, padded_edges, pieces


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ExpectedCounts:
    """Expected counts of N spectra in at most G groups, as a function of the parameters; a pytree.

    Attributes
    ----------
    density : callable or None
        Maps parameter values to photons/cm^2/s/keV at K quadrature nodes, (N, K); None if all is folded exactly.
    matrix : (N, G, K)
        Maps the density at the nodes to expected counts.
    photons : callable or None
        Maps parameter values to photons/cm^2/s in energy bins, (N, E), of everything that is folded exactly; None if
        nothing is.
    response : BandedResponse or None
        Maps photons in the bins to expected counts.
    errors : (N,)
        Error of each spectrum over the trial spectra, see `hbm_jax.spectra.fold`.
    """

    density: Any
    matrix: Any
    photons: Any
    response: BandedResponse | None
    errors: Any

    @classmethod
    def of(
        cls,
        spectrum: Component,
        responses: Sequence[tuple[Any, Any]],
        counts: Sequence[Any],
        trials: Mapping[str, Any],
        *,
        tolerance: float,
        **options: Any,
    ) -> "ExpectedCounts":
        """Fold a model expression through the response of each spectrum.

        Parameters
        ----------
        spectrum : Component
            Additive model expression, for one source or for as many as there are spectra. Lines, and other components
            that may be narrower than the bins, are folded exactly.
        responses : sequence of (energy, matrix)
            As in `fold`, one for each spectrum.
        counts : sequence of (num_groups,) arrays
            Observed counts.
        trials : mapping of str to (num_trials,) array
            Parameters for which the fold must be right.
        tolerance : float
            Largest error. If the nodes of a spectrum exceed it, all spectra are folded on all energy bins, unless that
            is less accurate.
        **options
            Further options of `fold`.
        """
        num_groups = max(matrix.shape[1] for _, matrix in responses)
        smooth, lines = separated(spectrum)
        folds: list[Folded] = []
        if smooth is not None:
            folds = _folds(smooth, responses, counts, trials, tolerance, options)
        errors = np.array([folded.errors[0] for folded in folds] or [0.0] * len(responses))
        exact_errors: list[Any] = [folded.exact_errors for folded in folds]
        if folds and exact_errors[0] is not None and np.max(exact_errors) < errors.max():
            folds, errors, lines = [], np.concatenate(exact_errors), ()
        density, matrix = (
            _on_nodes(smooth, folds, num_groups) if folds else (None, np.zeros((len(responses), num_groups, 0)))
        )
        photons = response = None
        if lines or not folds:
            photons, response = _in_bins(spectrum, lines if folds or smooth is None else None, responses, num_groups)
        return cls(density, matrix, photons, response, errors)

    def __call__(self, values: Mapping[str, Any]) -> jax.Array:
        """Return the expected counts (N, G) for parameter values, () or (N,) each."""
        parts = []
        if self.density is not None:
            density = self.density(values)
            parts.append(jnp.einsum("ngk,nk->ng", jnp.asarray(self.matrix, density.dtype), density))
        if self.response is not None:
            photons = self.photons(values)
            parts.append(self.response(jnp.broadcast_to(photons, (len(self.errors), photons.shape[-1]))))
        return functools.reduce(jnp.add, parts)


def _folds(smooth, responses, counts, trials, tolerance: float, options) -> list[Folded]:
    """Fold each spectrum on nodes; if any exceeds the tolerance, measure the errors of exact folds of all."""

    def folded(row, tolerance=tolerance):
        energy, matrix = responses[row]
        return fold(smooth.of_source(row), energy, matrix, counts[row], trials, tolerance=tolerance, **options)

    rows = range(len(responses))
    folds = on_every_core(folded, rows)
    if all(one.exact_errors is None for one in folds):
        return folds
    return [folded(row, 0.0) if folds[row].exact_errors is None else folds[row] for row in rows]


def _on_nodes(smooth, folds: list[Folded], num_groups: int) -> tuple[Any, np.ndarray]:
    """Return the spectrum at the nodes of all folds, and their matrices, padded to one number of nodes."""
    nodes = [folded.nodes for folded in folds]
    num_nodes = max(len(one.energy) for one in nodes)
    matrix = np.zeros((len(nodes), num_groups, num_nodes))
    for row, one in enumerate(nodes):
        matrix[row, : one.matrix.shape[0], : one.matrix.shape[1]] = one.matrix
    energy = np.stack([np.pad(one.energy, (0, num_nodes - len(one.energy)), mode="edge") for one in nodes])
    return smooth.on(energy), matrix


def _in_bins(spectrum: Component, lines, responses, num_groups: int) -> tuple[Any, BandedResponse]:
    """Return the photons of lines in pieces of bins, or those of the whole spectrum if None, and the response."""
    smooth, cuts = None, []
    if lines is None:
        smooth, lines, _ = exact_terms(spectrum, responses[0][0])
        cuts = [exact_terms(spectrum.of_source(row), energy)[2] for row, (energy, _) in enumerate(responses)]
    elif any(line.factor is not None for line in lines):
        cuts = [pieces(spectrum.of_source(row), energy, LINE_WIDTH) for row, (energy, _) in enumerate(responses)]
    else:
        cuts = [energy for energy, _ in responses]
    matrices = []
    for (energy, matrix), edges in zip(responses, cuts, strict=True):
        in_bin = np.searchsorted(energy, np.sqrt(edges[1:] * edges[:-1])) - 1
        matrices.append(sparse.csr_matrix(matrix)[in_bin])
    edges = padded_edges(cuts)
    return integrals(smooth, lines, edges), BandedResponse.of(matrices, edges.shape[1] - 1, num_groups)
