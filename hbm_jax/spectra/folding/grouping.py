"""Which channels of a spectrum are used, and how they are grouped.

A group is a run of neighbouring channels that are all used: groups end where a range of energies ends, and at a channel
that is left out. Grouping sums channels and loses no counts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.validation import DataError, reject_unknown

__all__ = ["METHODS", "fwhm", "group", "groups", "noticed", "optimal_widths"]

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

# What the amount of each method is; None for methods without one.
METHODS: dict[str, str | None] = {
    "file": None,
    "none": None,
    "min_counts": "counts of a group",
    "min_signal_to_noise": "signal to noise of a group",
    "channels_per_group": "channels of a group",
    "width": "width of a group [keV]",
    "optimal": None,
}
ROUNDING = 1e-6  # relative, of energies of channels, which files hold in single precision
TURN = 2.119  # of x in Kaastra & Bleeker's fit, below which bins are as wide as the resolution


def noticed(
    spectrum: Spectrum,
    energies: Sequence[float] | Sequence[Sequence[float]] | None = None,
    *,
    keep_bad: bool = False,
) -> Mask:
    """Say which channels are used.

    Parameters
    ----------
    spectrum : Spectrum
        With a response, if there are energies.
    energies : (low, high) or list of such pairs, optional
        Ranges in keV of the channels' nominal energies. A channel is used if it lies wholly within one of them. All
        energies by default. Ranges that touch at the edge of a channel are one range.
    keep_bad : bool
        Keep channels that the file marks as bad (QUALITY other than 0), which are left out otherwise, those that are
        bad in the background included. Channels without a number of counts (NaN) are never kept.

    Returns
    -------
    (num_channels,) of bool

    Raises
    ------
    DataError
        For a range that is not a pair of increasing numbers or that holds no whole channel, if no channel is good, and
        for energies without a response.
    """
    good = np.ones(len(spectrum), bool)
    for one in (spectrum, spectrum.background):
        if one is not None:
            good &= ~np.isnan(one.counts) & (keep_bad | (one.quality == 0))
    if not good.any():
        raise DataError(f"{spectrum.name}: expected good channels; found QUALITY other than 0 in all {len(good)}.")
    if energies is None:
        return good
    response = _response(spectrum, "ranges of energy")
    used = np.zeros(len(spectrum), bool)
    for low, high in _ranges(energies):
        inside = (response.e_min >= low * (1 - ROUNDING)) & (response.e_max <= high * (1 + ROUNDING)) & good
        if not inside.any():
            raise DataError(
                f"{spectrum.name}: expected good channels wholly within {low:g} to {high:g} keV; found none (channels "
                f"cover {response.e_min.min():g} to {response.e_max.max():g} keV)."
            )
        used |= inside
    return used


def group(
    spectrum: Spectrum, method: str = "file", amount: float | None = None, *, noticed: ArrayLike | None = None
) -> Spectrum:
    """Return a spectrum with its channels grouped anew.

    Parameters
    ----------
    spectrum : Spectrum
        Counts are untouched: only ``grouping`` is replaced.
    method : str
        ``"file"``: as the file says. ``"none"``: each channel alone. ``"min_counts"``, ``"min_signal_to_noise"``: until
        a group has the amount. ``"channels_per_group"``, ``"width"``: until it has that many channels, or the next one
        would make it wider than that [keV]. ``"optimal"``: no wider than loses no information (`optimal_widths`).
    amount : float, optional
        Of the methods with ``min_``, ``channels_per_group`` and ``width``.
    noticed : (num_channels,) of bool, optional
        Channels that are used, as from `noticed`; the good ones by default.

    Returns
    -------
    Spectrum
        ``grouping`` is 1 where a group begins, -1 within one and 0 in channels that are not used.

    Raises
    ------
    DataError
        For an unknown method, an amount that is missing or makes no sense, and for ``"optimal"`` or ``"width"`` without
        a response.

    Notes
    -----
    Channels left over at the end of a run, that do not reach the least counts or signal to noise, join the group before
    them; a run that does not reach it at all is one group. Leftovers of fixed widths are a smaller last group. Optimal
    groups grow from the low end of a run as long as they are no wider than the least width of all their channels.

    Signal to noise is S / sqrt(N + B / r^2) with S = N - B / r, of N counts, B counts of the background and r how many
    of those stand for one in the source region. Gaussian errors, where there are some, replace sqrt(N) or sqrt(B).
    """
    reject_unknown([method], list(METHODS), "method of grouping")
    _check_amount(method, amount)
    used = _used(spectrum, noticed)
    numbers = groups(spectrum, used) if method == "file" else np.full(len(spectrum), -1)
    if method != "file":
        ends_of = _ends(spectrum, method, amount or 0.0, used)
        count = 0
        for low, high in _runs(used):
            for end in ends_of(low, high):
                numbers[low:end], low, count = count, end, count + 1
    grouping = np.where(used, -1, 0)
    grouping[np.unique(numbers, return_index=True)[1]] = 1
    return dataclasses.replace(spectrum, grouping=np.where(used, grouping, 0))


def groups(spectrum: Spectrum, noticed: ArrayLike | None = None) -> NDArray[np.int64]:
    """Return the number of the group of each channel.

    Parameters
    ----------
    spectrum : Spectrum
        Its ``grouping`` is taken: 1 begins a group, -1 goes on with it, 0 is a group of one channel.
    noticed : (num_channels,) of bool, optional
        Channels that are used, as from `noticed`; the good ones by default. A group that is cut keeps what is used of
        it, in pieces if there is a gap.

    Returns
    -------
    (num_channels,) of int
        From 0, going up; -1 in channels that are not used.

    Raises
    ------
    DataError
        If `noticed` is no mask of the channels or holds none.

    Examples
    --------
    Counts in groups: ``np.bincount(number[number >= 0], weights=spectrum.counts[number >= 0])``.
    """
    used = _used(spectrum, noticed)
    before = np.concatenate([[False], used[:-1]])
    begins = used & ((spectrum.grouping != -1) | ~before)
    return np.where(used, np.cumsum(begins) - 1, -1)


def fwhm(response: Response) -> Floats:
    """Return the full width at half maximum of the response to a photon of each channel's nominal energy.

    Parameters
    ----------
    response : Response
        Of an instrument.

    Returns
    -------
    (num_channels,)
        In channels, at least 1. Channels beyond the energies of the response have the width of the last that are not.

    Notes
    -----
    The width is that of the highest peak in the row of the matrix that holds the energy, with linear interpolation to
    half of the maximum.
    """
    matrix = response.matrix
    filled = np.flatnonzero(matrix.max(axis=1).toarray().ravel() > 0)
    middle = 0.5 * (response.e_min + response.e_max)
    rows = np.clip(np.searchsorted(response.energy, middle, side="right") - 1, 0, matrix.shape[0] - 1)
    after = np.clip(np.searchsorted(filled, rows), 0, len(filled) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(filled[before] - rows) < np.abs(filled[after] - rows)
    rows, inverse = np.unique(filled[np.where(nearer, before, after)], return_inverse=True)
    return np.array([_half_width(matrix[[row]].toarray()[0]) for row in rows])[inverse]


def _half_width(profile: Floats) -> float:
    """Full width at half maximum of the highest peak [channels]."""
    peak = int(profile.argmax())
    half = 0.5 * profile[peak]
    width = 0.0
    for side in (profile[peak:], profile[peak::-1]):
        below = np.flatnonzero(side < half)
        if below.size:
            one = int(below[0])
            width += one - 1 + (side[one - 1] - half) / (side[one - 1] - side[one])
        else:
            width += len(side) - 0.5  # the detector ends within the peak
    return max(width, 1.0)


def optimal_widths(spectrum: Spectrum, noticed: ArrayLike | None = None) -> Floats:
    """Return how wide a group may be around each channel without losing information, in channels.

    Parameters
    ----------
    spectrum : Spectrum
        With a response.
    noticed : (num_channels,) of bool, optional
        Channels that are used, as from `noticed`; the good ones by default.

    Returns
    -------
    (num_channels,)
        Delta of Kaastra & Bleeker 2016 (A&A 587, A151), at least 1: the full width at half maximum times 1 for
        x <= 2.119 and (0.08 + 7.0 / x + 1.8 / x^2) / (1 + 5.9 / x) above, with x = ln(N_r (1 + 0.2 ln R)), N_r the
        counts within one width around the channel and R the number of widths in the channels that are used.

    Raises
    ------
    DataError
        Without a response.
    """
    used = _used(spectrum, noticed)
    width = fwhm(_response(spectrum, "optimal groups"))
    num_elements = max(float((1 / width[used]).sum()), 1.0)
    edges = np.arange(len(used) + 1) - 0.5
    total = np.concatenate([[0.0], np.cumsum(np.where(used, spectrum.counts, 0.0))])
    center = np.arange(len(used))
    within = np.interp(center + 0.5 * width, edges, total) - np.interp(center - 0.5 * width, edges, total)
    x = np.log(np.maximum(within * (1 + 0.2 * np.log(num_elements)), 1.0))
    x = np.maximum(x, TURN)
    factor = np.minimum((0.08 + 7.0 / x + 1.8 / x**2) / (1 + 5.9 / x), 1.0)
    return np.maximum(np.where(x <= TURN, 1.0, factor) * width, 1.0)


def _ends(spectrum: Spectrum, method: str, amount: float, used: Mask) -> Callable[[int, int], Iterator[int]]:
    """Return the rule that cuts a run of channels into groups: a function of its ends."""
    if method == "none":
        return lambda low, high: iter(range(low + 1, high + 1))
    if method == "channels_per_group":
        return lambda low, high: iter([*range(low + int(amount), high, int(amount)), high])
    if method in ("min_counts", "min_signal_to_noise"):
        net, variance = _signal(spectrum) if method == "min_signal_to_noise" else (spectrum.counts, None)
        return lambda low, high: _until_enough(low, high, net, variance, amount)
    if method == "width":
        response = _response(spectrum, "groups of a width in keV")
        low_at, high_at = response.e_min.tolist(), response.e_max.tolist()
        return lambda low, high: _while_narrow(
            low,
            high,
            # Energies of the channels of grating spectra go down.
            lambda a, b: (
                max(high_at[a], high_at[b]) * (1 - ROUNDING) - min(low_at[a], low_at[b]) * (1 + ROUNDING) <= amount
            ),
        )
    allowed = np.floor(optimal_widths(spectrum, used) * (1 + ROUNDING))
    return lambda low, high: _while_narrow(low, high, lambda a, b: b - a + 1 <= allowed[a : b + 1].min())


def _until_enough(low: int, high: int, net: Floats, variance: Floats | None, amount: float) -> Iterator[int]:
    """Return the ends of groups that reach an amount; what is left at the end joins the last one."""
    ends, signal, noise = [], 0.0, 0.0
    for channel in range(low, high):
        signal += net[channel]
        noise += 0.0 if variance is None else variance[channel]
        if signal >= amount * (1.0 if variance is None else np.sqrt(noise)) and signal > 0:
            ends.append(channel + 1)
            signal = noise = 0.0
    return iter([*ends[:-1], high])


def _while_narrow(low: int, high: int, fits: Callable[[int, int], bool]) -> Iterator[int]:
    """Return the ends of groups that grow as long as they fit, of one channel at least."""
    begin = low
    for channel in range(low + 1, high):
        if not fits(begin, channel):
            yield channel
            begin = channel
    yield high


def _signal(spectrum: Spectrum) -> tuple[Floats, Floats]:
    """Return counts less the background in each channel, and their variance."""
    net, variance = spectrum.counts, spectrum.counts if spectrum.error is None else spectrum.error**2
    if spectrum.background is None:
        return net, variance
    behind, ratio = spectrum.background, spectrum.background_ratio
    known = np.isfinite(ratio) & (ratio > 0)  # elsewhere there is no background, or no source region
    share = np.where(known, 1 / np.where(known, ratio, 1.0), 0.0)
    error = behind.counts if behind.error is None else behind.error**2
    return net - share * behind.counts, variance + share**2 * error


def _runs(used: Mask) -> list[tuple[int, int]]:
    """Begin and end of every run of neighbouring channels that are used."""
    steps = np.diff(np.concatenate([[0], used.astype(int), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _used(spectrum: Spectrum, mask: ArrayLike | None) -> Mask:
    """Mask of the channels that are used."""
    if mask is None:
        return noticed(spectrum)
    used = np.asarray(mask)
    if used.dtype != bool or used.shape != (len(spectrum),) or not used.any():
        raise DataError(
            f"{spectrum.name}: noticed: expected a mask of {len(spectrum)} channels, some of them true; found "
            f"{used.dtype} of shape {used.shape}{', all of them false' if used.dtype == bool else ''}."
        )
    return used


def _response(spectrum: Spectrum, purpose: str) -> Response:
    if spectrum.response is None:
        raise DataError(f"{spectrum.name}: expected a response, for {purpose}; found none.")
    return spectrum.response


def _ranges(energies) -> list[tuple[float, float]]:
    """Pairs of energies."""
    try:
        pairs = np.atleast_2d(np.asarray(energies, dtype=float))
    except (TypeError, ValueError):
        pairs = np.zeros((0, 2))
    if pairs.ndim != 2 or not pairs.size or pairs.shape[1] != 2 or not (pairs[:, 0] < pairs[:, 1]).all():
        raise DataError(f"energies: expected (low, high) in keV, low below high, or a list of such; found {energies}.")
    return [(float(low), float(high)) for low, high in pairs]


def _check_amount(method: str, amount: float | None) -> None:
    what = METHODS[method]
    if what is None:
        if amount is not None:
            raise DataError(f"grouping {method!r}: expected no amount; found {amount}.")
        return
    least = 1.0 if method in ("min_counts", "channels_per_group") else 0.0
    number = float(amount) if isinstance(amount, (int, float, np.number)) and not isinstance(amount, bool) else np.nan
    valid = np.isfinite(number) and (number >= least if least else number > 0)
    if not valid or (method == "channels_per_group" and number % 1):
        kind = (
            "a whole number of 1 or more" if method == "channels_per_group" else ("1 or more" if least else "above 0")
        )
        raise DataError(f"grouping {method!r}: expected the {what}, {kind}; found {amount}.")
