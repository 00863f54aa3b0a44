"""Selection and grouping of the channels of a spectrum.

A group consists of adjacent used channels: no group extends across an unused channel or the limit of an energy range.
The counts of a group are the sum over its channels.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.spectra.folding.response import NO_RESPONSE, Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.validation import DataError, Floats, reject_unknown

__all__ = ["METHODS", "fwhm", "group", "groups", "noticed", "optimal_widths"]

Mask = NDArray[np.bool_]

# Meaning and domain of the amount for each method; None for methods without an amount.
METHODS: dict[str, tuple[str, str, Callable[[float], bool]] | None] = {
    "file": None,
    "none": None,
    "min_counts": ("minimum counts per group", "1 or more", lambda amount: amount >= 1),
    "min_signal_to_noise": ("minimum signal-to-noise ratio per group", "above 0", lambda amount: amount > 0),
    "channels_per_group": (
        "number of channels per group", "a whole number of 1 or more", lambda amount: amount >= 1 and amount % 1 == 0
    ),
    "width": ("maximum width of a group [keV]", "above 0", lambda amount: amount > 0),
    "optimal": None,
}  # fmt: skip
ROUNDING = 1e-6  # relative tolerance of channel energies, which files store in single precision
TURN = 2.119  # x of Kaastra & Bleeker (2016) below which the optimal bin width is the resolution


def noticed(
    spectrum: Spectrum, energies: Sequence[float] | Sequence[Sequence[float]] | None = None, *, keep_bad: bool = False
) -> Mask:
    """Return the mask of the channels to use, (num_channels,).

    Raises DataError if a range is not a pair of increasing numbers or contains no channel entirely, if no channel is
    good, or if `energies` is given for a spectrum without a response.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum, with a response if `energies` is given.
    energies : (low, high) or list of such pairs, optional
        Ranges of nominal channel energies [keV]; default: all energies. A channel is used if it lies entirely within
        one range. Ranges that touch at a channel edge act as one range.
    keep_bad : bool
        True: also use channels marked as bad (QUALITY other than 0) in the spectrum or its background, except those
        with counts of NaN.
    """
    good = np.ones(len(spectrum), bool)
    for region in (spectrum, spectrum.background):
        if region is not None:
            good &= ~np.isnan(region.counts) & (keep_bad | (region.quality == 0))
    if not good.any():
        raise DataError(f"{spectrum.name}: expected good channels; found QUALITY other than 0 in all {len(good)}.")
    if energies is None:
        return good
    response = _response(spectrum, "ranges of energy")
    used = np.zeros(len(spectrum), bool)
    for low, high in _ranges(energies):
        inside = _within(response, low, high) & good
        if not inside.any():
            raise DataError(
                f"{spectrum.name}: expected good channels entirely within {low:g} to {high:g} keV; found none "
                f"(channels cover {response.e_min.min():g} to {response.e_max.max():g} keV)."
            )
        used |= inside
    return used


def num_flagged(spectrum: Spectrum, energies: Sequence[float] | Sequence[Sequence[float]] | None = None) -> int:
    """Return the number of channels that `noticed` leaves out because of QUALITY, within the ranges of energies [keV].

    Raises DataError as `noticed`, for ranges that are not pairs of increasing numbers or a spectrum without a response.
    """
    flagged = np.zeros(len(spectrum), bool)
    for region in (spectrum, spectrum.background):
        if region is not None:
            flagged |= region.quality != 0
    if energies is None:
        return int(flagged.sum())
    response = _response(spectrum, "ranges of energy")
    in_ranges = np.any([_within(response, low, high) for low, high in _ranges(energies)], axis=0)
    return int((flagged & in_ranges).sum())


def _within(response: Response, low: float, high: float) -> Mask:
    """Return the mask of the channels that lie entirely within a range of energies [keV]."""
    return (response.e_min >= low * (1 - ROUNDING)) & (response.e_max <= high * (1 + ROUNDING))


def group(
    spectrum: Spectrum, method: str = "file", amount: float | None = None, *, noticed: ArrayLike | None = None
) -> Spectrum:
    """Return a copy of a spectrum with a new grouping of its channels.

    Raises DataError if the method is unknown, the amount is missing or invalid, or ``"optimal"`` or ``"width"`` is used
    without a response. In the result ``grouping`` is 1 where a group begins, -1 within a group and 0 in unused
    channels.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum to group. Only ``grouping`` is replaced.
    method : str
        ``"file"``: the grouping of the file. ``"none"``: every channel is a group. ``"min_counts"``,
        ``"min_signal_to_noise"``: groups reach at least the amount. ``"channels_per_group"``: groups of that many
        channels. ``"width"``: groups at most that wide [keV]. ``"optimal"``: groups as wide as possible without loss of
        information (`optimal_widths`).
    amount : float, optional
        Amount for ``"min_counts"``, ``"min_signal_to_noise"``, ``"channels_per_group"`` and ``"width"``.
    noticed : (num_channels,) of bool, optional
        Channels to use, as returned by `noticed`. Default: the good ones.

    Notes
    -----
    Groups do not extend across unused channels. Channels at the end of a run of used channels that do not reach the
    minimum counts or signal-to-noise ratio join the previous group; a run that does not reach it at all is one group.
    With ``"channels_per_group"`` and ``"width"`` the last group of a run may be smaller. Optimal groups grow from the
    low end of a run while they are no wider than the smallest optimal width of their channels.

    The signal-to-noise ratio is S / sqrt(N + B / r^2) with S = N - B / r, for N counts, B counts in the background
    region and r = ``spectrum.background_ratio``. Gaussian errors replace sqrt(N) and sqrt(B) where the counts have
    them.
    """
    reject_unknown([method], list(METHODS), "method of grouping")
    _check_amount(method, amount)
    used = _used(spectrum, noticed)
    if method == "file":
        begins = _begins(spectrum, used)
    else:
        begins, group_ends = np.zeros(len(spectrum), bool), _ends(spectrum, method, amount or 0.0, used)
        for start, stop in _runs(used):
            begins[[start, *group_ends(start, stop)][:-1]] = True  # the end of a group is the start of the next
    return dataclasses.replace(spectrum, grouping=np.where(begins, 1, np.where(used, -1, 0)))


def groups(spectrum: Spectrum, noticed: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return the group number of each channel, (num_channels,), increasing from 0; -1 for unused channels.

    Raises DataError if `noticed` is not a mask of the channels or selects none.

    Parameters
    ----------
    spectrum, noticed
        As in `group`. In ``spectrum.grouping`` 1 begins a group, -1 continues it, 0 is a group of a single channel. A
        group keeps only its used channels, and is divided where an unused channel lies between them.

    Examples
    --------
    Counts in groups: ``np.bincount(number[number >= 0], weights=spectrum.counts[number >= 0])``.
    """
    used = _used(spectrum, noticed)
    return np.where(used, np.cumsum(_begins(spectrum, used)) - 1, -1)


def _begins(spectrum: Spectrum, used: Mask) -> Mask:
    """Return the mask of the used channels at which the groups of a spectrum begin."""
    return used & ((spectrum.grouping != -1) | ~np.concatenate([[False], used[:-1]]))


def fwhm(response: Response) -> Floats:
    """Return the full width at half maximum, in channels, at the nominal energy of each channel, (num_channels,).

    It is that of the highest peak in the matrix row of the nominal energy, with linear interpolation at half of the
    maximum, and at least 1. Channels outside the energy range of the response have the width at its nearest end.
    """
    matrix = response.matrix
    nonzero_rows = np.flatnonzero(matrix.max(axis=1).toarray().ravel() > 0)
    middle = 0.5 * (response.e_min + response.e_max)
    rows = np.clip(np.searchsorted(response.energy, middle, side="right") - 1, 0, matrix.shape[0] - 1)
    after = np.clip(np.searchsorted(nonzero_rows, rows), 0, len(nonzero_rows) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(nonzero_rows[before] - rows) < np.abs(nonzero_rows[after] - rows)
    rows, inverse = np.unique(nonzero_rows[np.where(nearer, before, after)], return_inverse=True)
    profiles = matrix[rows]
    widths, profile = np.empty(len(rows)), np.zeros(matrix.shape[1])
    for row, (start, stop) in enumerate(itertools.pairwise(profiles.indptr)):
        channels = profiles.indices[start:stop]
        profile[channels] = profiles.data[start:stop]
        widths[row] = _full_width(profile)
        profile[channels] = 0.0
    return widths[inverse]


def _full_width(profile: Floats) -> float:
    """Return the full width at half maximum of the highest peak [channels]."""
    peak = int(profile.argmax())
    half = 0.5 * profile[peak]
    width = 0.0
    for side in (profile[peak:], profile[peak::-1]):
        below = np.flatnonzero(side < half)
        if below.size:
            index = int(below[0])
            width += index - 1 + (side[index - 1] - half) / (side[index - 1] - side[index])
        else:
            width += len(side) - 0.5  # the peak extends beyond the last channel
    return max(width, 1.0)


def optimal_widths(spectrum: Spectrum, noticed: ArrayLike | None = None) -> Floats:
    """Return the largest group width around each channel without loss of information [channels], (num_channels,).

    It is the optimal bin width of Kaastra & Bleeker (2016, A&A 587, A151): the full width at half maximum of the
    response, times (0.08 + 7.0 / x + 1.8 / x^2) / (1 + 5.9 / x) where x > 2.119. Here x = ln(N_r (1 + 0.2 ln R)), N_r
    is the number of counts within one full width around the channel, and R the number of full widths in the used
    channels. Raises DataError if the spectrum has no response. The width is at least 1.

    Parameters
    ----------
    spectrum, noticed
        As in `group`; the spectrum has a response.
    """
    used = _used(spectrum, noticed)
    width = fwhm(_response(spectrum, "optimal groups"))
    num_elements = max(float((1 / width[used]).sum()), 1.0)
    edges = np.arange(len(used) + 1) - 0.5
    total = np.concatenate([[0.0], np.cumsum(np.where(used, spectrum.counts, 0.0))])
    channel = np.arange(len(used))
    within = np.interp(channel + 0.5 * width, edges, total) - np.interp(channel - 0.5 * width, edges, total)
    x = np.log(np.maximum(within * (1 + 0.2 * np.log(num_elements)), 1.0))
    x = np.maximum(x, TURN)
    factor = np.minimum((0.08 + 7.0 / x + 1.8 / x**2) / (1 + 5.9 / x), 1.0)
    return np.maximum(np.where(x <= TURN, 1.0, factor) * width, 1.0)


def _ends(spectrum: Spectrum, method: str, amount: float, used: Mask) -> Callable[[int, int], Iterator[int]]:
    """Return a function that divides a run of channels into groups and returns their ends."""
    if method == "none":
        return lambda start, stop: iter(range(start + 1, stop + 1))
    if method == "channels_per_group":
        return lambda start, stop: iter([*range(start + int(amount), stop, int(amount)), stop])
    if method in ("min_counts", "min_signal_to_noise"):
        net, variance = _signal(spectrum) if method == "min_signal_to_noise" else (spectrum.counts, None)
        return lambda start, stop: _ends_of_amount(start, stop, net, variance, amount)
    if method == "width":
        response = _response(spectrum, "groups of a width in keV")
        e_min, e_max = response.e_min.tolist(), response.e_max.tolist()

        def is_narrow(first: int, last: int) -> bool:  # channel energies of grating spectra decrease
            return (
                max(e_max[first], e_max[last]) * (1 - ROUNDING) - min(e_min[first], e_min[last]) * (1 + ROUNDING)
                <= amount
            )

        return lambda start, stop: _ends_while(start, stop, is_narrow)
    allowed = np.floor(optimal_widths(spectrum, used) * (1 + ROUNDING))
    return lambda start, stop: _ends_while(
        start, stop, lambda first, last: last - first + 1 <= allowed[first : last + 1].min()
    )


def _ends_of_amount(start: int, stop: int, net: Floats, variance: Floats | None, amount: float) -> Iterator[int]:
    """Return the ends of groups that reach an amount; remaining channels join the last group."""
    ends, signal, noise = [], 0.0, 0.0
    for channel in range(start, stop):
        signal += net[channel]
        noise += 0.0 if variance is None else variance[channel]
        if signal >= amount * (1.0 if variance is None else np.sqrt(noise)) and signal > 0:
            ends.append(channel + 1)
            signal = noise = 0.0
    return iter([*ends[:-1], stop])


def _ends_while(start: int, stop: int, is_allowed: Callable[[int, int], bool]) -> Iterator[int]:
    """Yield the ends of the longest groups for which ``is_allowed(first, last)`` is true; one channel always is."""
    begin = start
    for channel in range(start + 1, stop):
        if not is_allowed(begin, channel):
            yield channel
            begin = channel
    yield stop


def _signal(spectrum: Spectrum) -> tuple[Floats, Floats]:
    """Return the background-subtracted counts in each channel and their variance."""
    net, variance = spectrum.counts, spectrum.counts if spectrum.error is None else spectrum.error**2
    if spectrum.background is None:
        return net, variance
    background, ratio = spectrum.background, spectrum.background_ratio
    has_background = np.isfinite(ratio) & (ratio > 0)  # elsewhere a scale (BACKSCAL or AREASCAL) is 0
    scale = np.where(has_background, 1 / np.where(has_background, ratio, 1.0), 0.0)
    background_variance = background.counts if background.error is None else background.error**2
    return net - scale * background.counts, variance + scale**2 * background_variance


def _runs(used: Mask) -> list[tuple[int, int]]:
    """Return start and stop of every run of adjacent used channels."""
    steps = np.diff(np.concatenate([[0], used.astype(int), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _used(spectrum: Spectrum, mask: ArrayLike | None) -> Mask:
    """Return the validated mask of used channels, by default that of `noticed`."""
    if mask is None:
        return noticed(spectrum)
    used = np.asarray(mask)
    if used.dtype != bool or used.shape != (len(spectrum),) or not used.any():
        raise DataError(
            f"{spectrum.name}: noticed: expected a mask of {len(spectrum)} channels, at least one of them true; found "
            f"{used.dtype} of shape {used.shape}{', all false' if used.dtype == bool and not used.any() else ''}."
        )
    return used


def _response(spectrum: Spectrum, purpose: str) -> Response:
    """Return the response of a spectrum; raise DataError if it has none."""
    if spectrum.response is None:
        raise DataError(f"{spectrum.name}: expected a response, for {purpose}; found none. {NO_RESPONSE}")
    return spectrum.response


def _ranges(energies) -> list[tuple[float, float]]:
    """Return energy ranges as a list of pairs."""
    try:
        pairs = np.atleast_2d(np.asarray(energies, dtype=float))
    except (TypeError, ValueError):
        pairs = np.zeros((0, 2))
    if pairs.ndim != 2 or not pairs.size or pairs.shape[1] != 2 or not (pairs[:, 0] < pairs[:, 1]).all():
        raise DataError(f"energies: expected (low, high) in keV, low below high, or a list of pairs; found {energies}.")
    return [(float(low), float(high)) for low, high in pairs]


def _check_amount(method: str, amount: float | None) -> None:
    """Raise DataError unless the amount is valid for the method."""
    allowed = METHODS[method]
    if allowed is None:
        if amount is not None:
            raise DataError(f"grouping {method!r}: expected no amount; found {amount}.")
        return
    quantity, domain, is_valid = allowed
    number = float(amount) if isinstance(amount, (int, float, np.number)) and not isinstance(amount, bool) else np.nan
    if not (np.isfinite(number) and is_valid(number)):
        raise DataError(f"grouping {method!r}: expected the {quantity}, {domain}; found {amount}.")
