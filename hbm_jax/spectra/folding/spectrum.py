"""Observed spectrum: counts in detector channels, with exposure, background and response."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbm_jax.spectra.folding.response import Response
from hbm_jax.validation import DataError, Floats


class GratingOrder(NamedTuple):
    """Arm and diffraction order of a grating spectrum, such as MEG -1.

    Attributes
    ----------
    arm : str
        HEG, MEG, LEG or ZERO (the undispersed image).
    order : int
        Diffraction order.
    """

    arm: str
    order: int

    def __str__(self) -> str:
        return f"{self.arm} {self.order:+d}"


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Observed counts in the channels of a detector.

    Attributes
    ----------
    name : str
        Name of the source or file, for messages and labels.
    counts : (num_channels,)
        Observed counts, 0 or more; counts with Gaussian errors, such as background-subtracted ones, may be negative.
        NaN in channels of bad quality for which the file has no valid counts.
    channels : (num_channels,)
        Channel numbers.
    exposure : float
        Exposure time [s].
    backscal, areascal : (num_channels,)
        Scales of the extraction region and of the effective area.
    quality : (num_channels,)
        0 for good channels.
    grouping : (num_channels,)
        1 where a group begins, -1 within a group, 0 for a channel that is not grouped.
    error : (num_channels,), optional
        Standard deviation of counts that are not Poisson, such as those of a modelled background.
    systematic : (num_channels,), optional
        Systematic error as a fraction of the counts (SYS_ERR).
    background : Spectrum, optional
        Spectrum of the background region, on the same channels.
    response : Response, optional
        Response of the instrument to the source.
    files : dict
        File names from the header, by keyword (BACKFILE, RESPFILE, ANCRFILE).
    warnings : tuple of str
        Anomalies of the files, one sentence each.
    instrument : str
        Values of TELESCOP, INSTRUME and DETNAM, with a space between them.
    order : GratingOrder, optional
        Arm and order of a grating spectrum (TG_PART and TG_M).
    """

    name: str
    counts: Floats
    channels: NDArray[np.int64]
    exposure: float
    backscal: Floats
    areascal: Floats
    quality: NDArray[np.int64]
    grouping: NDArray[np.int64]
    error: Floats | None = None
    systematic: Floats | None = None
    background: "Spectrum | None" = None
    response: Response | None = None
    files: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    instrument: str = ""
    order: GratingOrder | None = None

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        background = "" if self.background is None else f", background {np.nansum(self.background.counts):g}"
        return f"Spectrum({self.name}: {np.nansum(self.counts):g} counts in {self.exposure:g} s{background})"

    @property
    def background_ratio(self) -> Floats:
        """Ratio of the background expected in the background region to that in the source region, (num_channels,).

        Raises DataError if there is no background.
        """
        if self.background is None:
            raise DataError(f"{self.name}: expected a background; found none.")
        background = self.background
        with np.errstate(divide="ignore", invalid="ignore"):
            return (background.exposure * background.backscal * background.areascal) / (
                self.exposure * self.backscal * self.areascal
            )


def summed_background(backgrounds: Sequence[Spectrum]) -> Spectrum:
    """Return the sum of several background regions of one source, which have the same background per area and time.

    For Poisson counts the sum has all the information of the regions. Its exposure is that of the first region, and its
    BACKSCAL, with an AREASCAL of 1, is the sum of exposure x BACKSCAL x AREASCAL of the regions over this exposure. A
    channel is bad if it is bad in any region. Raises DataError if the regions have different channels, or if the counts
    of only some have Gaussian errors.

    Parameters
    ----------
    backgrounds : sequence of Spectrum
        One or more background regions; a single one is returned as it is.
    """
    first = backgrounds[0]
    if len(backgrounds) == 1:
        return first
    for region in backgrounds[1:]:
        if not np.array_equal(region.channels, first.channels):
            raise DataError(f"{region.name}: expected the channels of {first.name}, to which it is added.")
    has_errors = [region.error is not None for region in backgrounds]
    if any(has_errors) and not all(has_errors):
        names = [region.name for region in backgrounds]
        raise DataError(
            "backgrounds: expected Poisson counts in all regions that are added, or Gaussian errors in all; found "
            f"Gaussian errors only in {names[has_errors.index(True)]}."
        )
    scales = [region.exposure * region.backscal * region.areascal for region in backgrounds]
    variances = [region.error**2 for region in backgrounds if region.error is not None]
    return replace(
        first,
        name=" + ".join(region.name for region in backgrounds),
        counts=np.sum([region.counts for region in backgrounds], axis=0),
        error=np.sqrt(np.sum(variances, axis=0)) if variances else None,
        backscal=np.sum(scales, axis=0) / first.exposure,
        areascal=np.ones(len(first)),
        quality=np.max([region.quality for region in backgrounds], axis=0),
        systematic=None,
        response=None,
        warnings=tuple(text for region in backgrounds for text in region.warnings),
    )
