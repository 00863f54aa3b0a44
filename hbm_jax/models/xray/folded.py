"""Observed spectra with responses and tables precomputed for one model expression, and the measured error."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.spectra.folding.fold import fold, has_free_features
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import Line, separated
from hbm_jax.spectra.model.lines import in_bins
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-3  # largest change of the log likelihood of a spectrum
SMOOTH = 0.01  # of the tolerance, where no feature has a free energy: that accuracy takes few more nodes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedSpectra:
    """N spectra of at most G groups, with responses on K quadrature nodes, and on E energy bins for lines; a pytree.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Statistic of all spectra, with the data.
    density : callable or None
        Maps parameter values to photons/cm^2/s/keV at the nodes, (N, K); from `Component.on`. None if the model
        consists of lines alone.
    matrix : (N, G, K)
        Maps the density at the nodes to expected counts.
    lines : tuple of callable
        Each maps parameter values to photons/cm^2/s of a line in the bins, (N, E).
    line_matrix : (N, G, E) or None
        Maps photons in the bins to expected counts; None without lines.
    errors : (N,)
        Largest change of the log likelihood by the choice of nodes, over the trial parameters; inf where expected
        counts on the nodes are not positive.
    """

    statistic: AnyStatistic
    density: Any
    matrix: Any
    lines: tuple[Any, ...]
    line_matrix: Any
    errors: Any

    @classmethod
    def of(
        cls,
        spectrum: Component,
        data: SpectrumStack,
        statistic: str | None,
        trials: Mapping[str, np.ndarray],
        *,
        tolerance: float = TOLERANCE,
    ) -> "FoldedSpectra":
        """Choose the nodes of each spectrum and precompute responses and tables.

        Parameters
        ----------
        spectrum : Component
            Additive model expression.
        data : SpectrumStack
            The observed spectra.
        statistic : str, optional
            As in `SpectrumStack.statistic`.
        trials : dict of str to (num_trials,) array
            Parameters at which the error is measured, with the spectrum scaled to the observed counts.
        tolerance : float
            Largest change of the log likelihood of a spectrum; if no level reaches it, the finest is used.
        """
        responses = [data.grouped_response(row) for row in range(len(data))]
        smooth, lines = separated(spectrum)
        line_photons, line_matrix = _on_bins(lines, responses, np.shape(data.counts)[1])
        prepared = data.statistic(statistic)
        if smooth is None:
            empty = np.zeros((*np.shape(data.counts), 0))
            return cls(prepared, None, empty, line_photons, line_matrix, np.zeros(len(data)))
        folds, errors = [], []
        tolerance = tolerance if has_free_features(smooth) else SMOOTH * tolerance
        for row, (energy, response) in enumerate(responses):
            counts = np.asarray(data.counts[row])[: response.shape[1]]
            folded = fold(smooth.of_source(row), energy, response, counts, trials, tolerance=tolerance)
            folds.append(folded.nodes)
            errors.append(folded.errors[0])
        num_nodes, num_groups = max(len(f.energy) for f in folds), np.shape(data.counts)[1]
        matrix = np.zeros((len(folds), num_groups, num_nodes))
        for row, nodes in enumerate(folds):
            matrix[row, : nodes.matrix.shape[0], : nodes.matrix.shape[1]] = nodes.matrix
        energy = np.stack([np.pad(f.energy, (0, num_nodes - len(f.energy)), mode="edge") for f in folds])
        return cls(prepared, smooth.on(energy), matrix, line_photons, line_matrix, np.array(errors))

    def expected(self, values: Mapping[str, Any], factor: Any = None) -> jax.Array:
        """Return the expected counts of the source without background.

        Parameters
        ----------
        values : mapping of str to () or (N,) array
            Parameters of the model expression.
        factor : (N,), optional
            Calibration factor of each spectrum.

        Returns
        -------
        (N, G)
        """
        parts = [] if self.density is None else [(self.matrix, self.density(values))]
        parts += [(self.line_matrix, line(values)) for line in self.lines]
        folded = (jnp.einsum("ngk,nk->ng", jnp.asarray(matrix, flux.dtype), flux) for matrix, flux in parts)
        total = functools.reduce(jnp.add, folded)
        return total if factor is None else total * factor[:, None]


def _on_bins(lines: tuple[Line, ...], responses, num_groups: int) -> tuple[tuple[Any, ...], np.ndarray | None]:
    """Set up lines on the energy bins of all responses, padded to one length by bins without response."""
    if not lines:
        return (), None
    num_bins = max(len(energy) - 1 for energy, _ in responses)
    matrix = np.zeros((len(responses), num_groups, num_bins))
    for row, (_, response) in enumerate(responses):
        matrix[row, : response.shape[1], : response.shape[0]] = response.T
    low, high = (
        np.stack([np.pad(e, (0, num_bins - len(e)), mode="edge") for e in ends])
        for ends in zip(*((energy[:-1], energy[1:]) for energy, _ in responses), strict=True)
    )
    return tuple(in_bins(line, low, high) for line in lines), matrix
