"""Source and background regions of spectra, with responses and tables precomputed for a model of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.models.xray.folded import TOLERANCE, FoldedSpectra, equivalent_counts, tolerance_of
from hbm_jax.spectra.background_regions import RegionStack
from hbm_jax.spectra.folding.expected_counts import ExpectedCounts
from hbm_jax.spectra.model.components import Component


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FoldedRegions(FoldedSpectra):
    """Spectra of a `RegionStack`, with responses and tables precomputed for the models of source and background.

    Attributes
    ----------
    statistic, errors
        As in `FoldedSpectra`, of all regions, (M, G) and (M,).
    source : ExpectedCounts
        Expected counts of the source in the N source regions.
    background : ExpectedCounts
        Expected counts of the background in the background regions.
    ratio : (M - N, G)
        Ratio of the background in the background region to that in the source region.
    source_row : tuple of int
        Index of the source region of each background region.
    """

    background: Any = None
    ratio: Any = None
    source_row: tuple[int, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of_regions(
        cls,
        spectrum: Component,
        background: Component,
        data: RegionStack,
        statistic: str | tuple[str, ...] | None,
        trials: Mapping[str, np.ndarray],
        *,
        tolerance: float = TOLERANCE,
    ) -> "FoldedRegions":
        """Choose the nodes of each spectrum and precompute responses and tables.

        Parameters
        ----------
        spectrum, background : Component
            Additive model expressions of the source and of the background.
        data : RegionStack
            The observed spectra.
        statistic, trials, tolerance
            As in `FoldedSpectra.of`.
        """
        num, num_groups = data.num_sources, np.shape(data.counts)[1]
        folded = []
        for expression, rows in ((spectrum, range(num)), (background, range(num, len(data)))):
            responses = [data.sparse_response(row) for row in rows]
            pairs = zip(rows, responses, strict=True)
            counts = [equivalent_counts(data, row)[: matrix.shape[1]] for row, (_, matrix) in pairs]
            options = {"tolerance": tolerance_of(expression, tolerance), "num_groups": num_groups}
            folded.append(ExpectedCounts.of(expression, responses, counts, trials, **options))
        errors = np.concatenate([part.errors for part in folded])
        ratio = np.asarray(data.region_ratio)
        return cls(data.statistic(statistic), folded[0], errors, folded[1], ratio, data.source_row)

    @property
    def num_sources(self) -> int:
        """Number of source regions."""
        return len(self.errors) - len(self.source_row)

    def expected(self, values: Mapping[str, Any], factor: Any = None) -> jax.Array:
        """Return the expected counts of source and background in every region.

        Parameters
        ----------
        values : mapping of str to () or (N,) array
            Parameters of the model of the source, and () or (M - N,) of the background.
        factor : (N,), optional
            Calibration factor of each source region.

        Returns
        -------
        (M, G)
        """
        source, background = self.parts(values, factor)
        return source + background

    def parts(self, values: Mapping[str, Any], factor: Any = None) -> tuple[jax.Array, jax.Array]:
        """Return the expected counts of the source and those of the background in every region, (M, G) each."""
        source = super().expected(values, factor)
        in_background = self.background(values)
        in_source = jnp.zeros_like(source).at[jnp.array(self.source_row)].set(in_background / self.ratio)
        empty = jnp.zeros_like(in_background)
        return jnp.concatenate([source, empty]), jnp.concatenate([in_source, in_background])
