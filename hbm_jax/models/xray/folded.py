"""Observed spectra with responses and tables precomputed for one model expression, and the measured error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from hbm_jax.spectra.folding.expected_counts import ExpectedCounts
from hbm_jax.spectra.folding.fold import has_free_features
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.joint import AnyStatistic

TOLERANCE = 1e-3  # largest change of the log likelihood of a spectrum
SMOOTH = 0.01  # factor of the tolerance if no feature has a free energy: the accuracy then needs few more nodes


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
        num_together: int | None = None,
    ) -> "FoldedSpectra":
        """Precompute responses and tables for a model expression.

        ``statistic`` is as in `SpectrumStack.statistic`, ``trials`` and the others as in `ExpectedCounts.of`.
        """
        source = folded(spectrum, data, range(len(data)), trials, tolerance, num_together)
        return cls(data.statistic(statistic), source, source.errors)

    @property
    def num_sources(self) -> int:
        """Number of spectra of sources, N."""
        return len(self.errors)

    def expected(self, values: Mapping[str, Any], factor: Any = None) -> jax.Array:
        """Return the expected counts of the source without background, (N, G).

        Values of the parameters are () or (N,); ``factor`` (N,) is the calibration factor of each spectrum.
        """
        total = self.source(values)
        return total if factor is None else total * factor[:, None]

    def each(self, size: int = 1) -> "list[FoldedSpectra]":
        """Return the spectra one by one, or as many together as ``size``, with arrays of the same shapes.

        Raises ValueError if the response to lines is stored in blocks of all spectra.
        """
        num = len(self.errors)
        if self.source.response is not None and self.source.response.order is not None and num > size:
            raise ValueError(
                "fit_each: expected responses of at most 4 million elements for a model with lines or tables; found "
                f"larger ones of {num} spectra. Group their channels, or fit each with hbm_jax.sample."
            )

        def of_rows(rows):
            def select(leaf):
                """Return the rows of the axis of the spectra, the first of this length; tables may precede it."""
                axis = next((axis for axis, length in enumerate(np.shape(leaf)) if length == num), None)
                return leaf if axis is None else np.take(np.asarray(leaf), rows, axis)

            return jax.tree.map(select, self)

        return [of_rows(np.arange(start, start + size)) for start in range(0, num, size)]


def folded(
    spectrum: Component,
    data: SpectrumStack,
    rows: Sequence[int],
    trials: Mapping[str, np.ndarray],
    tolerance: float,
    num_together: int | None = None,
) -> ExpectedCounts:
    """Fold a model expression through the responses of some of the spectra."""
    responses = [data.sparse_response(row) for row in rows]
    pairs = zip(rows, responses, strict=True)
    counts = [equivalent_counts(data, row)[: matrix.shape[1]] for row, (_, matrix) in pairs]
    tolerance = tolerance if has_free_features(spectrum, lines=False) else SMOOTH * tolerance
    num_groups = np.shape(data.counts)[1]
    options: dict[str, Any] = {"tolerance": tolerance, "num_groups": num_groups, "num_together": num_together}
    return ExpectedCounts.of(spectrum, responses, counts, trials, **options)


def equivalent_counts(data: SpectrumStack, row: int) -> np.ndarray:
    """Return the counts of a spectrum, or the Poisson counts of the same signal-to-noise ratio for Gaussian counts."""
    counts, error = np.asarray(data.counts[row]), np.asarray(data.error[row])
    gaussian = np.isfinite(error)
    return np.where(gaussian, (np.maximum(counts, 0.0) / np.where(gaussian, error, 1.0)) ** 2, counts)
