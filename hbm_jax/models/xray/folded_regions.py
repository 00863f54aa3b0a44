"""Source and background regions of spectra, with responses and tables precomputed for a model of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.models.xray.folded import TOLERANCE, FoldedSpectra, folded
from hbm_jax.spectra.background_regions import RegionStack
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
    sky : ExpectedCounts or None
        Expected counts of the background with the responses of the source regions; None if the background in a source
        region has the spectrum of that in the background region.
    scale : (M - N, G) or None
        Ratio of the scales of background and source region, for ``sky``.
    """

    background: Any = None
    ratio: Any = None
    source_row: tuple[int, ...] = field(default=(), metadata={"static": True})
    sky: Any = None
    scale: Any = None

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
        """Precompute responses and tables for expressions of source and background; see `FoldedSpectra.of`."""
        in_source = folded(spectrum, data, range(data.num_sources), trials, tolerance)
        in_background = folded(background, data, range(data.num_sources, len(data)), trials, tolerance)
        ratio, scale, sky = np.asarray(data.region_ratio), data.region_scale, None
        background_errors = in_background.errors
        if scale is not None:
            sky = folded(background, data, data.source_row, trials, tolerance)
            background_errors = np.maximum(background_errors, sky.errors)
        errors = np.concatenate([in_source.errors, background_errors])
        return cls(data.statistic(statistic), in_source, errors, in_background, ratio, data.source_row, sky, scale)

    @property
    def num_sources(self) -> int:
        """Number of source regions."""
        return len(self.errors) - len(self.source_row)

    def expected(self, values: Mapping[str, Any], factor: Any = None) -> jax.Array:
        """Return the expected counts of source and background in every region, (M, G).

        Values are () or (N,) for the model of the source, and () or (M - N,) for that of the background; ``factor``
        (N,) is the calibration factor of each source region.
        """
        source, background = self.parts(values, factor)
        return source + background

    def parts(self, values: Mapping[str, Any], factor: Any = None) -> tuple[jax.Array, jax.Array]:
        """Return the expected counts of the source and those of the background in every region, (M, G) each."""
        source = super().expected(values, factor)
        in_background = self.background(values)
        scaled = in_background / self.ratio if self.sky is None else self.sky(values) / self.scale
        in_source = jnp.zeros_like(source).at[jnp.array(self.source_row)].set(scaled)
        empty = jnp.zeros_like(in_background)
        return jnp.concatenate([source, empty]), jnp.concatenate([in_source, in_background])
