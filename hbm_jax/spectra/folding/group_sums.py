"""Sums of a spectrum, its background and their errors over groups of channels."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.spectra.folding.response import NO_RESPONSE
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.statistics.marginal import neighbouring_mean
from hbm_jax.validation import DataError, Floats

NO_BACKGROUND = 1e12  # ratio without a background, as if no counts were observed in a very large region


def grouped_row(spectrum: Spectrum, grouping: NDArray[np.int64]) -> dict[str, Any]:
    """Return the quantities of one spectrum, summed or averaged over its groups.

    They are those of `hbm_jax.spectra.SpectrumStack`, each (num_groups,), the grouping, and warnings. Raise DataError
    without a response or used channels, or for counts of NaN.
    """
    name, num_groups = spectrum.name, int(grouping.max(initial=-1)) + 1
    if spectrum.response is None:
        raise DataError(f"{name}: expected a response; found none. {NO_RESPONSE}")
    if not num_groups:
        raise DataError(f"{name}: expected at least one used channel; found none.")
    used = grouping >= 0
    for kind, region in (("", spectrum), (" of the background", spectrum.background)):
        if region is not None and np.isnan(region.counts[used]).any():
            channel = region.channels[used][np.isnan(region.counts[used])][0]
            raise DataError(f"{name}: expected counts{kind} in every channel used; found NaN in channel {channel}.")
    sums = _GroupSums(used, grouping[used], num_groups)
    fraction = np.zeros(len(used)) if spectrum.systematic is None else spectrum.systematic
    row: dict[str, Any] = {
        "grouping": grouping,
        "counts": sums.total(spectrum.counts),
        "areascal": sums.mean(spectrum.areascal),
        "e_min": sums.extent(spectrum.response.e_min)[0],
        "e_max": sums.extent(spectrum.response.e_max)[1],
        "used": np.ones(num_groups, bool),
        "background": np.zeros(num_groups),
        "ratio": np.full(num_groups, NO_BACKGROUND),
        "ratio_spread": np.zeros(num_groups),
        "background_error": np.full(num_groups, np.nan),
        "background_mean": np.ones(num_groups),
        "error": np.full(num_groups, np.nan),
        "systematic": np.sqrt(sums.total((fraction * spectrum.counts) ** 2)),
        "warnings": [],
    }
    if spectrum.background is not None:
        row |= _grouped_background(spectrum, spectrum.background, sums)
    return row if spectrum.error is None else _with_errors(spectrum, spectrum.error, row, sums)


def _with_errors(spectrum: Spectrum, error: Floats, row: dict[str, Any], sums: "_GroupSums") -> dict[str, Any]:
    """Return the quantities of a spectrum of Gaussian counts, with the background subtracted.

    Groups whose error is 0 are left out, with a warning.
    """
    background, ratio = row["background"], row["ratio"]
    background_error = np.where(np.isnan(row["background_error"]), np.sqrt(background), row["background_error"])
    variance = sums.total(error**2) + row["systematic"] ** 2 + (background_error / ratio) ** 2
    if not variance.all():
        if not variance.any():
            raise DataError(f"{spectrum.name}, STAT_ERR: expected positive errors; found 0 in all channels used.")
        grouping = np.where(np.isin(row["grouping"], np.flatnonzero(variance == 0)), -1, row["grouping"])
        renumbered = np.where(grouping < 0, -1, np.searchsorted(np.unique(grouping[grouping >= 0]), grouping))
        text = (
            f"{spectrum.name}, STAT_ERR: {(variance == 0).sum()} groups of channels with an error of 0 are left out; "
            "group more channels to use them"
        )
        grouped = grouped_row(spectrum, renumbered)
        return grouped | {"warnings": [text]}
    num = sums.num
    absent = {"background": np.zeros(num), "ratio": np.full(num, NO_BACKGROUND), "ratio_spread": np.zeros(num)}
    absent |= {"background_error": np.full(num, np.nan), "background_mean": np.ones(num), "systematic": np.zeros(num)}
    return row | absent | {"counts": row["counts"] - background / ratio, "error": np.sqrt(variance)}


def _grouped_background(spectrum: Spectrum, background: Spectrum, sums: "_GroupSums") -> dict[str, Any]:
    """Return the quantities of the background of a spectrum, summed or averaged over the groups."""
    used, ratio = sums.used, spectrum.background_ratio
    if not (np.isfinite(ratio[used]) & (ratio[used] > 0)).all():
        raise DataError(
            f"{spectrum.name}: expected positive BACKSCAL and AREASCAL of spectrum and background in every channel "
            f"used; found a ratio of {ratio[used][~(ratio[used] > 0)][:1]}."
        )
    mean = sums.mean(ratio)
    low, high = sums.extent(ratio)
    row = {"ratio": mean, "ratio_spread": (high - low) / mean}
    if background.error is None:
        prior_mean = sums.in_all_channels(neighbouring_mean(background.counts[used]))
        return row | {"background": sums.total(background.counts), "background_mean": sums.total(prior_mean)}
    # Rescale each channel from its own ratio to the mean ratio of the group.
    scale = sums.in_all_channels(mean[sums.group] / ratio[used])
    error = np.sqrt(sums.total((scale * background.error) ** 2))
    return row | {"background": sums.total(scale * background.counts), "background_error": error}


class _GroupSums(NamedTuple):
    """Sums and extrema of values of all channels over the groups.

    Attributes
    ----------
    used : (num_channels,)
        Mask of the channels in groups.
    group : (num_used,)
        Group number of each used channel.
    num : int
        Number of groups.
    """

    used: NDArray[np.bool_]
    group: NDArray[np.int64]
    num: int

    def total(self, values: ArrayLike) -> Floats:
        """Return the sum of the values in each group."""
        return np.asarray(np.bincount(self.group, np.asarray(values, float)[self.used], minlength=self.num), float)

    def mean(self, values: ArrayLike) -> Floats:
        """Return the mean of the values in each group."""
        return self.total(values) / self.total(np.ones(len(self.used)))

    def extent(self, values: Floats) -> tuple[Floats, Floats]:
        """Return the smallest and the largest value in each group."""
        low, high = np.full(self.num, np.inf), np.full(self.num, -np.inf)
        np.minimum.at(low, self.group, values[self.used])
        np.maximum.at(high, self.group, values[self.used])
        return low, high

    def in_all_channels(self, values: Floats) -> Floats:
        """Return values of the used channels as an array of all channels, 0 in the others."""
        all_channels = np.zeros(len(self.used))
        all_channels[self.used] = values
        return all_channels
