"""Container of gamma-ray bursts as counts: redshifts, and spectra of time intervals in several detectors."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.catalogues import HasSpectra
from hbm_jax.data.columns import BURST_REDSHIFT, check_values
from hbm_jax.data.containers import selected_rows
from hbm_jax.names import listed
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, frozen_array

RANGES = {"n": (8.0, 900.0), "b": (250.0, 40000.0)}  # keV; NaI and BGO detectors by the first letter of the name
# Largest difference between the interval boundaries of two detectors: in s, or relative to intervals longer than 1 s.
SAME_TIME = 1e-3
INTEGERS = ("interval_burst", "detector_burst", "spectrum_interval", "spectrum_detector", "reference")
ARRAYS = ("z", "start", "stop", *INTEGERS)

Range = tuple[float, float] | Sequence[tuple[float, float]]


def default_range(detector: str) -> tuple[float, float] | None:
    """Return a detector's default energy range [keV]: 8 to 900 for n..., 250 to 40000 for b..., else None."""
    return RANGES.get(detector[:1].lower()) if detector[1:2].isalnum() and len(detector) <= 3 else None


@dataclass(frozen=True, eq=False)
class BurstObservation:
    """Observation of one burst, before its spectra are stacked with those of other bursts.

    Attributes
    ----------
    name : str
        Name of the burst.
    z : float
        Redshift.
    start, stop : (num_intervals,)
        Boundaries of the time intervals [s].
    spectra : dict of str to list of Spectrum
        For each detector, one spectrum with its response per interval, or None for an interval without data.
    energies : dict of str to (low, high) or list of such
        Energy ranges to use [keV], by detector. Detectors that are not listed use `default_range`, or all energies if
        that is None.
    reference : str, optional
        Reference detector, whose effective area is not scaled; the first by default.
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
class BurstSpectra(HasSpectra):
    """Gamma-ray bursts: counts of every interval in every detector, with responses and redshifts.

    Build it with `of`, `hbm_jax.data.read_burst` or `hbm_jax.data.read_burst_spectra`; the constructor does not
    validate. Registered as a pytree. B is the number of bursts, I the total number of intervals, D the total number of
    detectors (a detector counts once per burst), and N the number of spectra, in the order of burst, detector,
    interval.

    Attributes
    ----------
    name : tuple of str
        Names of the bursts.
    detector : tuple of str
        Names of the D detectors.
    z : (B,)
        Redshifts.
    start, stop : (I,)
        Boundaries of the time intervals [s].
    interval_burst, detector_burst : (I,), (D,)
        Index of the burst to which each interval and each detector belongs.
    reference : (D,)
        1 for each burst's reference detector, whose effective area is not scaled; 0 for the others.
    spectrum_interval, spectrum_detector : (N,)
        Index of the interval and of the detector of each spectrum.
    spectra : SpectrumStack
        The spectra. Identical responses are stored once.
    left_out : tuple of (str, str)
        Names of bursts in the catalogue that were left out, each with the reason.
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
        """Build the container: check the bursts, select and group their channels, and stack their spectra.

        Raises DataError for no bursts, duplicate names, a redshift that is missing or out of range (0 to 20), an
        interval that does not end after its start, a detector whose number of spectra differs from the number of
        intervals, an interval without any spectrum, an unknown reference detector, and everything that
        `SpectrumStack.of` rejects.

        Parameters
        ----------
        bursts : iterable of BurstObservation
            At least one burst.
        grouping, group_by
            Method of `hbm_jax.spectra.group` by which channels are grouped, and its argument.
        bad_channels : bool
            True: include channels flagged as bad in the files.
        left_out : sequence of (str, str)
            Names of bursts of the catalogue that are not in `bursts`, each with the reason.
        """
        bursts = list(bursts)
        if not bursts:
            raise DataError("bursts: expected at least one; found none.")
        columns: dict[str, list] = {key: [] for key in ARRAYS}
        names: list[str] = []
        detectors: list[str] = []
        stacked: list[Spectrum] = []
        masks: list[NDArray[np.bool_]] = []
        for burst_index, burst in enumerate(bursts):
            reference = _check_burst(burst, names)
            first_interval = len(columns["start"])
            for detector, spectra in burst.spectra.items():
                energies = burst.energies.get(detector, default_range(detector))
                for row, spectrum in enumerate(spectra):
                    if spectrum is None:
                        continue
                    label = f"{burst.name} {detector} {row + 1}"
                    spectrum = dataclasses.replace(spectrum, name=label)
                    masks.append(noticed(spectrum, energies, keep_bad=bad_channels))
                    stacked.append(group(spectrum, grouping, group_by, noticed=masks[-1]))
                    columns["spectrum_interval"].append(first_interval + row)
                    columns["spectrum_detector"].append(len(detectors))
                detectors.append(detector)
                columns["detector_burst"].append(burst_index)
                columns["reference"].append(int(detector == reference))
            names.append(burst.name)
            columns["z"].append(float(burst.z))
            columns["start"] += [float(t) for t in np.atleast_1d(burst.start)]
            columns["stop"] += [float(t) for t in np.atleast_1d(burst.stop)]
            columns["interval_burst"] += [burst_index] * np.size(burst.start)
        unusual = check_values({"z": np.array(columns["z"])}, {"z": BURST_REDSHIFT}, {}, names)
        stack = SpectrumStack.of(stacked, masks, poisson=True)
        return cls(
            name=tuple(names),
            detector=tuple(detectors),
            spectra=dataclasses.replace(stack, warnings=(*stack.warnings, *unusual)),
            left_out=tuple(left_out),
            **{key: _frozen(key, value) for key, value in columns.items()},
        )

    def __repr__(self) -> str:
        return f"BurstSpectra({len(self)} bursts, {len(self.start)} intervals, {len(self.spectra)} spectra)"

    @property
    def interval_name(self) -> tuple[str, ...]:
        """Labels of the intervals, (I,): name of the burst, and number within the burst from 1."""
        burst = np.asarray(self.interval_burst)
        number = np.arange(len(burst)) - np.searchsorted(burst, burst) + 1
        return tuple(f"{self.name[b]} {n}" for b, n in zip(burst, number, strict=True))

    @property
    def detector_name(self) -> tuple[str, ...]:
        """Labels of the detectors, (D,): name of the burst and of the detector."""
        return tuple(f"{self.name[b]} {d}" for b, d in zip(self.detector_burst, self.detector, strict=True))

    def describe(self) -> str:
        """Return a paragraph on the sample: numbers of bursts and intervals, redshifts, energies and counts."""
        s = self.spectra
        counts = np.bincount(self.spectrum_interval, np.asarray(s.counts).sum(axis=1), minlength=len(self.start))
        num_intervals = np.bincount(self.interval_burst)
        low, high = np.nanmin(s.e_min), np.nanmax(s.e_max)
        text = (
            f"{len(self)} burst{'s' if len(self) > 1 else ''} at redshift {np.min(self.z):.4g} to {np.max(self.z):.4g} "
            f"with {num_intervals.min()} to {num_intervals.max()} intervals ({len(self.start)} in all) in "
            f"{len(self.detector)} detectors, {len(s)} spectra from {low:.3g} to {high:.4g} keV; {counts.min():.0f} to "
            f"{counts.max():.0f} counts per interval (median {np.median(counts):.0f}). Statistic of the backgrounds: "
            f"{s.default_statistic}."
        )
        return text + self._notes()

    def subset(self, rows: ArrayLike) -> "BurstSpectra":
        """Return the bursts selected by a boolean mask (B,) or by integer indices.

        Raises DataError if the mask has the wrong length, an index is out of range or repeated, or the selection is
        empty.
        """
        index = selected_rows(rows, len(self), "burst")
        if len(np.unique(index)) < len(index):
            raise DataError(f"subset: expected every burst once; found {index.tolist()}.")
        intervals, detectors = (
            np.concatenate([np.flatnonzero(np.asarray(burst_of) == b) for b in index])
            for burst_of in (self.interval_burst, self.detector_burst)
        )
        return self._select(index, intervals, detectors)

    def intervals(self, rows: ArrayLike) -> "BurstSpectra":
        """Return the intervals selected by indices from 0 to I - 1; bursts without selected intervals are left out."""
        rows = np.sort(np.asarray(rows, int))
        bursts = np.unique(np.asarray(self.interval_burst)[rows])
        used = np.isin(np.asarray(self.spectrum_interval), rows)
        detectors = np.unique(np.asarray(self.spectrum_detector)[used])
        return self._select(bursts, rows, detectors)

    def _select(self, bursts, intervals, detectors) -> "BurstSpectra":
        """Return the bursts, intervals and detectors with these indices, renumbered in this order."""
        detector_of, interval_of = np.asarray(self.spectrum_detector), np.asarray(self.spectrum_interval)
        spectra = np.concatenate(
            [np.flatnonzero((detector_of == d) & np.isin(interval_of, intervals)) for d in detectors]
        )
        columns = {
            "z": np.asarray(self.z)[bursts],
            "start": np.asarray(self.start)[intervals],
            "stop": np.asarray(self.stop)[intervals],
            "interval_burst": _renumbered(np.asarray(self.interval_burst)[intervals], bursts),
            "detector_burst": _renumbered(np.asarray(self.detector_burst)[detectors], bursts),
            "reference": np.asarray(self.reference)[detectors],
            "spectrum_interval": _renumbered(interval_of[spectra], intervals),
            "spectrum_detector": _renumbered(detector_of[spectra], detectors),
        }
        return dataclasses.replace(
            self,
            name=tuple(self.name[b] for b in bursts),
            detector=tuple(self.detector[d] for d in detectors),
            spectra=self.spectra.subset(spectra),
            **{key: _frozen(key, value) for key, value in columns.items()},  # type: ignore[arg-type]
        )

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "BurstSpectra":
        """Rebuild the container from the output of `to_dict`; every value is restored exactly."""
        return cls(
            name=tuple(str(n) for n in stored["name"]),
            detector=tuple(str(n) for n in stored["detector"]),
            spectra=SpectrumStack.from_dict(stored),
            left_out=cls._left_out(stored),
            **{key: _frozen(key, stored[key]) for key in ARRAYS},
        )

    def to_table(self):
        """Return an astropy ``Table`` with one row per interval: burst, redshift, times and total counts."""
        from astropy.table import Table

        burst = np.asarray(self.interval_burst)
        counts = np.bincount(self.spectrum_interval, np.asarray(self.spectra.counts).sum(axis=1), minlength=len(burst))
        columns = {"name": [self.name[b] for b in burst], "z": np.asarray(self.z)[burst]}
        return Table(
            columns | {"start": np.array(self.start), "stop": np.array(self.stop), "counts": counts.astype(int)}
        )


def _check_burst(burst: BurstObservation, names: Sequence[str]) -> str:
    """Return the name of the reference detector of a burst; raise DataError for an invalid burst."""
    name, num = burst.name, np.size(burst.start)
    if name in names:
        raise DataError(f"name: expected distinct names; found {name!r} twice.")
    if not (np.ndim(burst.z) == 0 and np.isfinite(burst.z)):
        raise DataError(f"{name}: z: expected a redshift; found {burst.z}.")
    start, stop = (np.atleast_1d(np.asarray(t, float)) for t in (burst.start, burst.stop))
    if start.ndim != 1 or not num or start.shape != stop.shape or not (stop > start).all():
        raise DataError(
            f"{name}: expected one or more intervals (start, stop) with stop > start; found {start} to {stop}."
        )
    if not burst.spectra:
        raise DataError(f"{name}: expected the spectra of at least one detector; found none.")
    for detector, spectra in burst.spectra.items():
        if len(spectra) != num:
            raise DataError(f"{name}, {detector}: expected {num} spectra, one per interval; found {len(spectra)}.")
    empty = [i for i in range(num) if all(spectra[i] is None for spectra in burst.spectra.values())]
    if empty:
        raise DataError(f"{name}, interval {empty[0] + 1}: expected a spectrum in at least one detector; found none.")
    options = {"reference": [burst.reference] if burst.reference else [], "energies": burst.energies}
    for kind, detectors in options.items():
        for detector in detectors:
            if detector not in burst.spectra:
                raise DataError(f"{name}: {kind}: expected one of {listed(burst.spectra)}; found {detector!r}.")
    return burst.reference or next(iter(burst.spectra))


def _renumbered(numbers: ArrayLike, kept: ArrayLike) -> list[int]:
    """Return the index in `kept` of each number."""
    index = {int(number): new for new, number in enumerate(np.asarray(kept))}
    return [index[int(number)] for number in np.asarray(numbers)]


def _frozen(key: str, values: Any) -> np.ndarray:
    """Return a read-only array: integers for indices, float64 for the rest."""
    return frozen_array(values, np.int64 if key in INTEGERS else np.float64)
