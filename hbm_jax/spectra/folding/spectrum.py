"""One observed spectrum: counts in channels, what the exposure was, its background and its response."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hbm_jax.spectra.folding.response import Response
from hbm_jax.validation import DataError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Counts in the channels of a detector.

    Attributes
    ----------
    name : str
        Of the source or the file, for messages and labels.
    counts : (num_channels,)
        Observed counts, 0 or more; NaN where a file holds none, which makes a channel of bad quality unusable.
    channels : (num_channels,)
        Numbers of the channels.
    exposure : float
        [s].
    backscal, areascal : (num_channels,)
        Scale of the extraction region and of the effective area.
    quality : (num_channels,)
        0 for good channels.
    grouping : (num_channels,)
        1 where a group begins, -1 within one, 0 where a channel is not grouped.
    error : (num_channels,), optional
        Standard deviation of the counts where they are not Poisson, as those of a modelled background.
    background : Spectrum, optional
        Of a region without the source, on the same channels.
    response : Response, optional
        Of the source.
    warnings : tuple of str
        What is unusual in the files, a sentence each.
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
    background: "Spectrum | None" = None
    response: Response | None = None
    files: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        behind = "" if self.background is None else f", background {np.nansum(self.background.counts):g}"
        return f"Spectrum({self.name}: {np.nansum(self.counts):g} counts in {self.exposure:g} s{behind})"

    @property
    def background_ratio(self) -> Floats:
        """Counts that the background region has for each one that the background gives in the source region, (n,).

        Raises
        ------
        DataError
            Without a background.
        """
        if self.background is None:
            raise DataError(f"{self.name}: expected a background; found none.")
        b = self.background
        with np.errstate(divide="ignore", invalid="ignore"):
            return (b.exposure * b.backscal * b.areascal) / (self.exposure * self.backscal * self.areascal)

    def with_response(self, response: Response) -> "Spectrum":
        """Return a copy with another response.

        Raises
        ------
        DataError
            If it has other channels.
        """
        if not np.array_equal(response.channels, self.channels):
            raise DataError(
                f"{self.name}: expected a response of the channels {self.channels[0]} to {self.channels[-1]}; found "
                f"one of {response.channels[0]} to {response.channels[-1]}."
            )
        return dataclasses.replace(self, response=response)
