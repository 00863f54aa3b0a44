"""Observed spectra with responses and tables precomputed for one model expression, and the measured error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from hbm_jax.spectra.folding.expected_counts import ExpectedCounts
from hbm_jax.spectra.folding.fold import has_free_features
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import split_terms
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-3  # largest change of the log likelihood of a spectrum
SMOOTH = 0.01  # factor of the tolerance if no feature has a free energy: the accuracy then costs few more nodes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedSpectra:
    """N spectra of at most G groups, with responses and tables precomputed for one model expression; a pytree.

    Attributes
    ----------
    statistic : Statistic or JointStatistic
        Statistic of all spectra, with the data.
    source : ExpectedCounts
        Expected counts of the source as a function of the parameters.
    errors : (N,)
        Largest change of the log likelihood by the fold, over the trial parameters; inf where expected counts are not
        positive.
    """

    statistic: AnyStatistic
    source: ExpectedCounts
    errors: Any

    @classmethod
    def of(
        cls,
        spectrum: Component,
        data: SpectrumStack,
        statistic: str | tuple[str, ...] | None,
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
        statistic : str or tuple of str, optional
            As in `SpectrumStack.statistic`.
        trials, tolerance
            As in `ExpectedCounts.of`.
        """
        responses = [data.sparse_response(row) for row in range(len(data))]
        counts = [equivalent_counts(data, row)[: matrix.shape[1]] for row, (_, matrix) in enumerate(responses)]
        source = ExpectedCounts.of(spectrum, responses, counts, trials, tolerance=tolerance_of(spectrum, tolerance))
        return cls(data.statistic(statistic), source, source.errors)

    @property
    def num_sources(self) -> int:
        """Number of spectra of sources, N."""
        return len(self.errors)

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
        total = self.source(values)
        return total if factor is None else total * factor[:, None]


def equivalent_counts(data: SpectrumStack, row: int) -> np.ndarray:
    """Return the counts of a spectrum, or the Poisson counts of the same signal-to-noise ratio for Gaussian counts."""
    counts, error = np.asarray(data.counts[row]), np.asarray(data.error[row])
    gaussian = np.isfinite(error)
    return np.where(gaussian, (np.maximum(counts, 0.0) / np.where(gaussian, error, 1.0)) ** 2, counts)


def tolerance_of(spectrum: Component, tolerance: float) -> float:
    """Return the tolerance of the fold of an expression: stricter if its part without lines has no free features."""
    smooth, _ = split_terms(spectrum)
    return tolerance if smooth is None or has_free_features(smooth) else SMOOTH * tolerance
