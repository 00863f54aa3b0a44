"""Observed spectrum: counts in detector channels, with exposure, background and response."""

from dataclasses import dataclass, field
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
