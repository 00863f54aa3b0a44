"""The container of gamma-ray bursts as counts: spectra of intervals in several detectors, and redshifts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import BURST_REDSHIFT, check_values
from hbm_jax.names import listed
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, frozen_array

__all__ = ["BurstObservation", "BurstSpectra", "default_range"]

RANGES = {"n": (8.0, 900.0), "b": (250.0, 40000.0)}  # keV, of NaI and BGO detectors, by the first letter of the name
SAME_TIME = 1e-3  # s, between the intervals of two detectors, or that part of the interval if it is more
INTEGERS = ("interval_burst", "detector_burst", "spectrum_interval", "spectrum_detector", "reference")
ARRAYS = ("z", "start", "stop", *INTEGERS)

Range = tuple[float, float] | Sequence[tuple[float, float]]


def default_range(detector: str) -> tuple[float, float] | None:
    """Range of energies [keV] to use of a detector by its name: 8 to 900 for n..., 250 to 40000 for b..., else None."""
    return RANGES.get(detector[:1].lower()) if detector[1:2].isalnum() and len(detector) <= 3 else None


@dataclass(frozen=True, eq=False)
class BurstObservation:
    """One burst as it was observed, before its spectra are stacked with those of others.

    Attributes
    ----------
    name : str
        Of the burst.
    z : float
        Its redshift.
    start, stop : (num_intervals,)
        Intervals [s].
    spectra : dict of str to list of Spectrum
        By detector, one spectrum an interval, each with its response. A detector may lack intervals: None there.
    energies : dict of str to (low, high) or list of such
        Which energies to use of each detector [keV]; those of `default_range`, or all, where there is none.
    reference : str, optional
        Detector to whose effective area those of the others are relative; the first by default.
    """

    name: str
    z: float
    start: Any
    stop: Any
    spectra: Mapping[str, Sequence[Spectrum | None]]
    energies: Mapping[str, Range] = field(default_factory=dict)
    reference: str | None = None


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class BurstSpectra:
    """Gamma-ray bursts: counts of every interval in every detector, with their instruments and redshifts.

    Build one with `of`, `hbm_jax.data.read_burst` or `hbm_jax.data.read_burst_spectra`; the constructor itself checks
    nothing. A pytree. B bursts have I intervals together and D detectors together (the same detector counts anew in
    each burst), and there are N spectra, in the order of burst, detector, interval.

    Attributes
    ----------
    name : tuple of str
        Of the bursts.
    detector : tuple of str
        Names of the D detectors.
    z : (B,)
        Redshifts.
    start, stop : (I,)
        Intervals [s].
    interval_burst, detector_burst : (I,), (D,)
        Number of the burst of each.
    reference : (D,)
        1 for the detector of each burst to whose effective area the others are relative, 0 for those.
    spectrum_interval, spectrum_detector : (N,)
        Which interval and which detector a spectrum is of.
    spectra : SpectrumStack
        What was counted. Responses that are the same are held once.
    left_out : tuple of (str, str)
        Bursts of the catalogue that were left out, and why.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    detector: tuple[str, ...] = field(metadata={"static": True})
    z: Any
    start: Any
    stop: Any
    interval_burst: Any
    detector_burst: Any
    reference: Any
    spectrum_interval: Any
    spectrum_detector: Any
    spectra: SpectrumStack
    left_out: tuple[tuple[str, str], ...] = field(default=(), metadata={"static": True})

    @classmethod
    def of(
        cls,
        bursts: Iterable[BurstObservation],
        *,
        grouping: str = "none",
        group_by: float | None = None,
        bad_channels: bool = False,
        left_out: Sequence[tuple[str, str]] = (),
    ) -> "BurstSpectra":
        """Check bursts, choose and group their channels, and stack them.

        Parameters
        ----------
        bursts : iterable of BurstObservation
            One or more.
        grouping, group_by
            How channels are grouped: a method of `hbm_jax.spectra.group` and what it needs.
        bad_channels : bool
            Whether to use channels that files mark as bad, too.
        left_out : sequence of (str, str)
            Bursts that were left out before, and why.

        Raises
        ------
        DataError
            For no bursts, names that are not different, a redshift that is missing or out of range (0 to 20), intervals
            that do not end after they begin, a detector with another number of spectra than there are intervals, an
            interval without any spectrum, a reference that is no detector, and all that `SpectrumStack.of` refuses.
        """
        bursts = list(bursts)
        if not bursts:
            raise DataError("bursts: expected at least one; found none.")
        columns: dict[str, list] = {key: [] for key in ARRAYS}
        names: list[str] = []
        detectors: list[str] = []
        stacked: list[Spectrum] = []
        masks: list[NDArray[np.bool_]] = []
        for number, burst in enumerate(bursts):
            reference = _checked(burst, names)
            before = len(columns["start"])
            for detector, spectra in burst.spectra.items():
                energies = burst.energies.get(detector, default_range(detector))
                for place, spectrum in enumerate(spectra):
                    if spectrum is None:
                        continue
                    label = f"{burst.name} {detector} {place + 1}"
                    spectrum = dataclasses.replace(spectrum, name=label)
                    masks.append(noticed(spectrum, energies, keep_bad=bad_channels))
                    stacked.append(group(spectrum, grouping, group_by, noticed=masks[-1]))
                    columns["spectrum_interval"].append(before + place)
                    columns["spectrum_detector"].append(len(detectors))
                detectors.append(detector)
                columns["detector_burst"].append(number)
                columns["reference"].append(int(detector == reference))
            names.append(burst.name)
            columns["z"].append(float(burst.z))
            columns["start"] += [float(t) for t in np.atleast_1d(burst.start)]
            columns["stop"] += [float(t) for t in np.atleast_1d(burst.stop)]
            columns["interval_burst"] += [number] * np.size(burst.start)
        unusual = check_values({"z": np.array(columns["z"])}, {"z": BURST_REDSHIFT}, {}, names)
        stack = SpectrumStack.of(stacked, masks)
        return cls(
            name=tuple(names),
            detector=tuple(detectors),
            spectra=dataclasses.replace(stack, warnings=(*stack.warnings, *unusual)),
            left_out=tuple(left_out),
            **{key: _frozen(key, value) for key, value in columns.items()},
        )

    def __len__(self) -> int:
        return len(self.name)

    def __repr__(self) -> str:
        return f"BurstSpectra({len(self)} bursts, {len(self.start)} intervals, {len(self.spectra)} spectra)"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unusual in the redshifts and the files, a sentence each."""
        return self.spectra.warnings

    @property
    def interval_name(self) -> tuple[str, ...]:
        """Labels of the intervals, (I,): burst and number within it, from 1."""
        burst = np.asarray(self.interval_burst)
        place = np.arange(len(burst)) - np.searchsorted(burst, burst) + 1
        return tuple(f"{self.name[b]} {p}" for b, p in zip(burst, place, strict=True))

    @property
    def detector_name(self) -> tuple[str, ...]:
        """Labels of the detectors, (D,): burst and detector."""
        return tuple(f"{self.name[b]} {d}" for b, d in zip(self.detector_burst, self.detector, strict=True))

    def describe(self) -> str:
        """Return one paragraph: how many bursts, at which redshifts, with which data."""
        s = self.spectra
        counts = np.bincount(self.spectrum_interval, np.asarray(s.counts).sum(axis=1), minlength=len(self.start))
        per = np.bincount(self.interval_burst)
        low, high = np.nanmin(s.e_min), np.nanmax(s.e_max)
        text = (
            f"{len(self)} burst{'s' if len(self) > 1 else ''} at redshift {np.min(self.z):.4g} to {np.max(self.z):.4g} "
            f"with {per.min()} to {per.max()} intervals ({len(self.start)} in all) in {len(self.detector)} detectors, "
            f"{len(s)} spectra from {low:.3g} to {high:.4g} keV; {counts.min():.0f} to {counts.max():.0f} counts an "
            f"interval (median {np.median(counts):.0f}). Statistic of the backgrounds: {s.default_statistic}."
        )
        if self.left_out:
            text += f" Left out: {'; '.join(f'{name} ({why})' for name, why in self.left_out)}"
        return text + "".join(f" Warning: {told}." for told in self.warnings)

    def subset(self, rows: ArrayLike) -> "BurstSpectra":
        """Return the bursts picked by a boolean mask (B,) or by integer indices.

        Raises
        ------
        DataError
            If the mask has another length, an index is out of range or twice there, or nothing is left.
        """
        index, num = np.asarray(rows), len(self)
        if index.dtype.kind == "b" and index.shape == (num,):
            index = np.flatnonzero(index)
        if index.dtype.kind not in "iu" or index.ndim != 1 or not index.size or (np.abs(index + 0.5) > num).any():
            raise DataError(f"subset: expected a mask of shape ({num},) or indices of {num} bursts; found {rows!r}.")
        index = index % num
        if len(np.unique(index)) < len(index):
            raise DataError(f"subset: expected every burst once; found {index.tolist()}.")
        of_intervals, of_detectors = (
            np.concatenate([np.flatnonzero(np.asarray(of) == b) for b in index])
            for of in (self.interval_burst, self.detector_burst)
        )
        return self._picked(index, of_intervals, of_detectors)

    def intervals(self, rows: ArrayLike) -> "BurstSpectra":
        """Return some intervals of the bursts, by indices into all (I,); bursts without any are left out."""
        rows = np.sort(np.asarray(rows, int))
        bursts = np.unique(np.asarray(self.interval_burst)[rows])
        used = np.isin(np.asarray(self.spectrum_interval), rows)
        detectors = np.unique(np.asarray(self.spectrum_detector)[used])
        return self._picked(bursts, rows, detectors)

    def _picked(self, bursts, intervals, detectors) -> "BurstSpectra":
        place_of_burst, place_of_interval, place_of_detector = (
            {int(old): new for new, old in enumerate(kept)} for kept in (bursts, intervals, detectors)
        )
        of_detector, of_interval = np.asarray(self.spectrum_detector), np.asarray(self.spectrum_interval)
        spectra = np.concatenate(
            [np.flatnonzero((of_detector == d) & np.isin(of_interval, intervals)) for d in detectors]
        )
        columns = {
            "z": np.asarray(self.z)[bursts],
            "start": np.asarray(self.start)[intervals],
            "stop": np.asarray(self.stop)[intervals],
            "interval_burst": [place_of_burst[int(b)] for b in np.asarray(self.interval_burst)[intervals]],
            "detector_burst": [place_of_burst[int(b)] for b in np.asarray(self.detector_burst)[detectors]],
            "reference": np.asarray(self.reference)[detectors],
            "spectrum_interval": [place_of_interval[int(i)] for i in of_interval[spectra]],
            "spectrum_detector": [place_of_detector[int(d)] for d in of_detector[spectra]],
        }
        return dataclasses.replace(
            self,
            name=tuple(self.name[b] for b in bursts),
            detector=tuple(self.detector[d] for d in detectors),
            spectra=self.spectra.subset(spectra),
            **{key: _frozen(key, value) for key, value in columns.items()},  # type: ignore[arg-type]
        )

    def replace_observations(self, counts: ArrayLike) -> "BurstSpectra":
        """Return a copy with other counts in the source regions, (N, G), for example simulated ones.

        Raises
        ------
        DataError
            For another shape, or counts that are negative or not whole.
        """
        return dataclasses.replace(self, spectra=self.spectra.replace_observations(counts))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage."""
        own = {"name": np.array(self.name), "detector": np.array(self.detector)}
        own |= {key: np.array(getattr(self, key)) for key in ARRAYS}
        own["left_out"] = np.array([list(pair) for pair in self.left_out], dtype=str).reshape(-1, 2)
        return own | self.spectra.to_dict()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "BurstSpectra":
        """Build the container from what `to_dict` returned; every value comes back exactly."""
        return cls(
            name=tuple(str(n) for n in stored["name"]),
            detector=tuple(str(n) for n in stored["detector"]),
            spectra=SpectrumStack.from_dict(stored),
            left_out=tuple((str(n), str(why)) for n, why in np.asarray(stored["left_out"]).reshape(-1, 2)),
            **{key: _frozen(key, stored[key]) for key in ARRAYS},
        )

    def to_table(self):
        """Return an astropy ``Table``: a row an interval, with its burst, redshift, times and total counts."""
        from astropy.table import Table

        burst = np.asarray(self.interval_burst)
        counts = np.bincount(self.spectrum_interval, np.asarray(self.spectra.counts).sum(axis=1), minlength=len(burst))
        return Table(
            {
                "name": [self.name[b] for b in burst],
                "z": np.asarray(self.z)[burst],
                "start": np.array(self.start),
                "stop": np.array(self.stop),
                "counts": counts.astype(int),
            }
        )


def _checked(burst: BurstObservation, names: Sequence[str]) -> str:
    """Refuse a burst that cannot be; returns the name of its reference detector."""
    name, num = burst.name, np.size(burst.start)
    if name in names:
        raise DataError(f"name: expected different names; found {name!r} twice.")
    if not (np.ndim(burst.z) == 0 and np.isfinite(burst.z)):
        raise DataError(f"{name}: z: expected a redshift; found {burst.z}.")
    start, stop = (np.atleast_1d(np.asarray(t, float)) for t in (burst.start, burst.stop))
    if start.ndim != 1 or not num or start.shape != stop.shape or not (stop > start).all():
        raise DataError(f"{name}: expected intervals (start, stop) in which time goes on; found {start} to {stop}.")
    if not burst.spectra:
        raise DataError(f"{name}: expected the spectra of at least one detector; found none.")
    for detector, spectra in burst.spectra.items():
        if len(spectra) != num:
            raise DataError(f"{name}, {detector}: expected {num} spectra, one an interval; found {len(spectra)}.")
    alone = [i for i in range(num) if all(spectra[i] is None for spectra in burst.spectra.values())]
    if alone:
        raise DataError(f"{name}, interval {alone[0] + 1}: expected a spectrum of some detector; found none.")
    for kind, given in (("reference", [burst.reference] if burst.reference else []), ("energies", burst.energies)):
        for detector in given:
            if detector not in burst.spectra:
                raise DataError(f"{name}: {kind}: expected one of {listed(burst.spectra)}; found {detector!r}.")
    return burst.reference or next(iter(burst.spectra))


def _frozen(key: str, values: Any) -> np.ndarray:
    if key not in INTEGERS:
        return frozen_array(values)
    out = np.array(values, dtype=np.int64)
    out.flags.writeable = False
    return out
