"""Observed spectra with responses and tables precomputed for one model expression, and the measured error."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.models.folds import OnBins, OnNodes
from hbm_jax.spectra.folding.fold import fold, has_free_features
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import separated
from hbm_jax.spectra.model.lines import line_photons
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-3  # largest change of the log likelihood of a spectrum
SMOOTH = 0.01  # of the tolerance, where no feature has a free energy: that accuracy takes few more nodes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedSpectra:
    """N spectra of at most G groups, with a model expression folded through their responses; a pytree.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Statistic of all spectra, with the data.
    smooth : OnNodes or None
        The expression without its lines; None if it consists of lines alone.
    lines : OnBins or None
        Its lines; None if it has none.
    errors : (N,)
        Largest change of the log likelihood by the choice of nodes, over the trial parameters; inf where expected
        counts on the nodes are not positive.
    """

    statistic: AnyStatistic
    smooth: OnNodes | None
    lines: OnBins | None
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
        num_groups = np.shape(data.counts)[1]
        smooth, lines = separated(spectrum)
        on_nodes = on_bins = None
        errors = np.zeros(len(data))
        if lines:  # padded by repeating the last bin, without response
            num = max(len(energy) for energy, _ in responses) - 1
            low, high = (
                np.stack([np.pad(energy[ends], (0, num + 1 - len(energy)), mode="edge") for energy, _ in responses])
                for ends in (slice(-1), slice(1, None))
            )
            terms = tuple(line_photons(line, low, high) for line in lines)
            on_bins = OnBins.of(terms, [matrix for _, matrix in responses], num_groups)
        if smooth is not None:
            tolerance = tolerance if has_free_features(smooth) else SMOOTH * tolerance
            folds = []
            for row, (energy, response) in enumerate(responses):
                counts = np.asarray(data.counts[row])[: response.shape[1]]
                folded = fold(smooth.of_source(row), energy, response, counts, trials, tolerance=tolerance)
                folds.append(folded.nodes)
                errors[row] = folded.errors[0]
            on_nodes = OnNodes.of(smooth, folds, num_groups, num_blocks=1)
        return cls(data.statistic(statistic), on_nodes, on_bins, errors)

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
        total = functools.reduce(
            jnp.add, (part.expected(values) for part in (self.smooth, self.lines) if part is not None)
        )
        return total if factor is None else total * factor[:, None]
