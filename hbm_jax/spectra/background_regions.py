"""Background regions as separate spectra, for fits with a model of the background."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.stack import SpectrumStack, indices_of
from hbm_jax.spectra.statistics.grouped_counts import SAME_RATIO
from hbm_jax.validation import DataError, frozen_array

BackgroundResponse = Literal["rmf", "source", "own", "sky"]
OWN = ("own", "sky")  # for which the background has a response of its own
SUFFIX = ", background"


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class RegionStack(SpectrumStack):
    """Spectra of N source regions, followed by those of the background regions of some of them.

    A `SpectrumStack` in which no spectrum has a background: the model predicts the counts of both regions. Build with
    `RegionStack.separated`, or with ``background_response=`` of `hbm_jax.data.read_grouped_spectra`.

    Attributes
    ----------
    source_row : tuple of int
        Index of the source region of each background region.
    region_ratio : (num_background_regions, G)
        Ratio of the background counts expected in the background region to those in the source region.
    region_scale : (num_background_regions, G), optional
        Ratio of the scales (BACKSCAL) of background and source region, if the background in the source region is seen
        with the response of the source; None if it has the spectrum of that in the background region.
    """

    source_row: tuple[int, ...] = field(default=(), metadata={"static": True})
    region_ratio: Any = None
    region_scale: Any = None
    distinctive_array: ClassVar[str] = "region_ratio"

    @property
    def num_sources(self) -> int:
        """Number of source regions."""
        return len(self) - len(self.source_row)

    @classmethod
    def separated(
        cls,
        spectra: Sequence[Spectrum],
        noticed: Sequence[ArrayLike] | None = None,
        response: BackgroundResponse = "rmf",
    ) -> "RegionStack":
        """Stack source regions and background regions.

        Raises DataError as `SpectrumStack.of`; if no spectrum has a background, one has Gaussian errors, or the ratio
        of the regions varies by more than 1 % within a group.

        Parameters
        ----------
        spectra, noticed
            As for `SpectrumStack.of`. Background regions have the groups and channels of their sources.
        response : {"rmf", "source", "own", "sky"}
            Response to the background. ``"rmf"``: the redistribution matrix of the source without its effective area,
            so that amplitudes of the model are counts/s/keV. ``"source"``: the response of the source. ``"own"``: that
            of the background region (``spectrum.background.response``); the counts in the source region have the same
            spectrum. ``"sky"``: the same in the background region, and the response of the source in the source region,
            as for emission of the sky that both regions see with different effective areas.
        """
        masks = [s.quality == 0 for s in spectra] if noticed is None else [np.asarray(m, bool) for m in noticed]
        rows = tuple(row for row, spectrum in enumerate(spectra) if spectrum.background is not None)
        if not rows:
            raise DataError("background regions: expected a spectrum with a background; found none.")
        with_backgrounds = SpectrumStack.of(spectra, masks)
        backgrounds = []
        for row in rows:
            spectrum, background = spectra[row], spectra[row].background
            assert background is not None
            if background.error is not None or spectrum.error is not None:
                raise DataError(f"{spectrum.name}: expected Poisson counts in both regions; found Gaussian errors.")
            used = np.asarray(with_backgrounds.used[row])
            if (np.asarray(with_backgrounds.ratio_spread[row])[used] > SAME_RATIO).any():
                raise DataError(
                    f"{spectrum.name}: expected one ratio of background to source region in each group; found ratios "
                    "that differ. Group fewer channels."
                )
            backgrounds.append(
                dataclasses.replace(
                    background, name=spectrum.name + SUFFIX, quality=spectrum.quality, grouping=spectrum.grouping,
                    response=_response(spectrum, response), background=None,
                )
            )  # fmt: skip
        sources = [dataclasses.replace(spectrum, background=None) for spectrum in spectra]
        stack = SpectrumStack.of([*sources, *backgrounds], [*masks, *(masks[row] for row in rows)])
        ratio = np.ones((len(rows), np.shape(stack.counts)[1]))
        ratio[:, : np.shape(with_backgrounds.ratio)[1]] = np.asarray(with_backgrounds.ratio)[list(rows)]
        parts = {item.name: getattr(stack, item.name) for item in dataclasses.fields(stack)}
        scale = frozen_array(_region_scale(spectra, stack, rows)) if response == "sky" else None
        return cls(**parts, source_row=rows, region_ratio=frozen_array(ratio), region_scale=scale)

    def subset(self, rows: ArrayLike) -> "RegionStack":
        """Return the stack of these source regions, by their indices or a mask, with their background regions."""
        index = indices_of(rows, self.num_sources)
        if not all(0 <= i < self.num_sources for i in index):
            raise DataError(f"subset: expected indices below {self.num_sources}, of source regions; found {index}.")
        # Pairs of the new row of a source and the number of its background region.
        pairs = [
            (new_row, region)
            for new_row, source in enumerate(index)
            for region, row in enumerate(self.source_row)
            if row == source
        ]
        regions = [region for _, region in pairs]
        subset: Any = SpectrumStack.subset(self, [*index, *(self.num_sources + region for region in regions)])
        num_groups = np.shape(subset.counts)[1]
        ratio, scale = (
            None if values is None else frozen_array(np.asarray(values)[regions][:, :num_groups])
            for values in (self.region_ratio, self.region_scale)
        )
        source_row = tuple(new_row for new_row, _ in pairs)
        return dataclasses.replace(subset, source_row=source_row, region_ratio=ratio, region_scale=scale)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return the contents as NumPy arrays for storage; see `SpectrumStack.to_dict`."""
        stored = super().to_dict()
        if self.region_scale is not None:
            stored["region_scale"] = np.array(self.region_scale)
        return stored | {"source_row": np.array(self.source_row), "region_ratio": np.array(self.region_ratio)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "RegionStack":
        """Build a stack from the arrays of `to_dict`; every value is restored exactly."""
        stack = SpectrumStack.of_arrays(stored)
        parts = {item.name: getattr(stack, item.name) for item in dataclasses.fields(stack)}
        rows = tuple(int(row) for row in stored["source_row"])
        ratio = frozen_array(stored["region_ratio"])
        scale = frozen_array(stored["region_scale"]) if "region_scale" in stored else None
        return cls(**parts, source_row=rows, region_ratio=ratio, region_scale=scale)


def _response(spectrum: Spectrum, kind: BackgroundResponse) -> Response:
    """Return the response to the background of a spectrum."""
    if kind in OWN:
        return _own_response(spectrum)
    response = spectrum.response
    if response is None:
        raise DataError(f"{spectrum.name}: expected a response; found none.")
    if kind not in ("rmf", "source"):
        raise DataError(f"background_response: expected 'rmf', 'source', 'own' or 'sky'; found {kind!r}.")
    return response if kind == "source" else Response.from_area(response.rmf, np.ones(len(response.area)))


def _own_response(spectrum: Spectrum) -> Response:
    """Return the response of the background region of a spectrum."""
    assert spectrum.background is not None
    response, name = spectrum.background.response, spectrum.name
    if response is None:
        raise DataError(
            f"{name}: expected a response of the background region; found none. Name one by background_rmf=PATH and "
            "background_arf=PATH, or in the header of the background (RESPFILE, ANCRFILE)."
        )
    if not np.array_equal(response.channels, spectrum.channels):
        raise DataError(f"{name}: expected a response of the background region in the channels of the spectrum.")
    return response


def _region_scale(spectra: Sequence[Spectrum], stack: SpectrumStack, rows: Sequence[int]) -> np.ndarray:
    """Return the mean ratio of the scales of background and source region in each group; 1 in padding."""
    scales = np.ones((len(rows), np.shape(stack.counts)[1]))
    for scale, row in zip(scales, rows, strict=True):
        background, grouping = spectra[row].background, stack.grouping[row]
        assert background is not None
        used = grouping >= 0
        ratio = background.backscal[used] / spectra[row].backscal[used]
        scale[: grouping.max() + 1] = np.bincount(grouping[used], ratio) / np.bincount(grouping[used])
    return scales
