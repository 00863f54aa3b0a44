"""Simulated gamma-ray bursts as counts: pulses that obey the rest-frame Golenetskii relation, in several detectors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.spectra import BurstObservation, default_range
from hbm_jax.spectra.folding.idealised import gbm_like_arf, gbm_like_rmf
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.model.components import Band, CutoffPowerLaw, photons
from hbm_jax.spectra.model.energetics import log10_sphere
from hbm_jax.spectra.ogip.type2 import write_pha2
from hbm_jax.spectra.ogip.writing import write_rmf
from hbm_jax.validation import DataError

__all__ = ["BURST_CATALOG", "BurstSpectraPopulation", "SimulatedBurstSpectra", "write_burst_spectra"]

BURST_CATALOG = "bursts.ecsv"
BAND = (1.0, 1e4)  # keV, at rest
_MOST = 200  # draws for each burst wanted, before a threshold is taken for impossible
_FINE = 8  # parts of each bin of photon energy in which photons are counted
EVOLUTIONS = ("hard to soft", "tracking", "none")


class SimulatedBurstSpectra(NamedTuple):
    """What was drawn.

    Attributes
    ----------
    bursts : list of BurstObservation
        With backgrounds and responses, not grouped; named ``sim001`` and so on. `BurstSpectra.of` stacks them.
    truth : dict of str to array
        The parameters of the population by the names that `hbm_jax.models.GolenetskiiCounts` gives them; ``gamma,
        log10_N`` (B,) of each burst; ``log10_E_peak`` (at rest [keV]), ``alpha``, ``beta``, ``log10_flux`` (I,) of each
        interval; ``effective_area`` (D - B,) of the detectors beside the reference; and ``num_drawn``: how many bursts
        were drawn until enough of them were detected.
    """

    bursts: list[BurstObservation]
    truth: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BurstSpectraPopulation:
    """A population of bursts whose intervals obey L = N (E_peak (1 + z) / 100 keV)^gamma.

    Pairs are means and standard deviations.

    Parameters
    ----------
    redshift : (float, float) or sequence of float
        Two numbers: uniform between them. More: exactly those, in turn.
    num_intervals : int or sequence of int
        Intervals a burst; of several numbers, in turn.
    gamma, log10_N : (float, float)
        Of the relations; N in erg/s.
    intrinsic_scatter : float
        Of log10 of the flux about a burst's relation.
    log10_E_peak : (float, float)
        Of the intervals' peak energies at rest [keV].
    evolution : str
        How the intervals of a burst follow each other: ``"hard to soft"``, ``"tracking"`` (a rise that takes a third of
        them, then the decay) or ``"none"``. It orders what is drawn and changes no distribution.
    alpha, beta : (float, float)
        Of the low- and high-energy indices.
    spectrum : str
        ``"band"``, or ``"cutoff"`` for a power law with exponential cut-off, without beta.
    duration : (float, float)
        Shortest and longest interval [s]; log-uniform between.
    detectors : mapping of str to str
        Names and kinds of detectors, ``"nai"`` or ``"bgo"`` of `hbm_jax.spectra.gbm_like_rmf`; the first one is the
        reference.
    background : mapping of str to float
        Counts per second by kind, over all channels.
    background_exposure : float
        Time over which the background was measured, relative to an interval. Its model has that Gaussian error.
    effective_area : float
        Scatter of ln of the detectors' true effective areas about those of the responses, but for the reference.
    threshold : float
        Least signal to noise, in the second-best detector, of the brightest interval of a burst that is detected;
        others are drawn anew.
    H0, Om0 : float
        The universe, flat.

    Raises
    ------
    ValueError
        For choices that make no sense.
    """

    redshift: Sequence[float] = (0.5, 3.0)
    num_intervals: int | Sequence[int] = 8
    gamma: tuple[float, float] = (1.5, 0.2)
    log10_N: tuple[float, float] = (52.0, 0.3)
    intrinsic_scatter: float = 0.1
    log10_E_peak: tuple[float, float] = (2.7, 0.25)
    evolution: str = "hard to soft"
    alpha: tuple[float, float] = (-0.8, 0.15)
    beta: tuple[float, float] = (-2.5, 0.2)
    spectrum: str = "band"
    duration: tuple[float, float] = (0.5, 2.0)
    detectors: Mapping[str, str] = field(default_factory=lambda: {"n0": "nai", "n1": "nai", "n3": "nai", "b0": "bgo"})
    background: Mapping[str, float] = field(default_factory=lambda: {"nai": 900.0, "bgo": 1500.0})
    background_exposure: float = 30.0
    effective_area: float = 0.05
    threshold: float = 8.0
    H0: float = 70.0
    Om0: float = 0.3

    def __post_init__(self):
        for name in ("gamma", "log10_N", "log10_E_peak", "alpha", "beta"):
            value = getattr(self, name)
            if len(value) != 2 or not value[1] >= 0:
                raise ValueError(
                    f"BurstSpectraPopulation: {name}: expected mean and standard deviation; found {value}."
                )
        for name, known in (("evolution", EVOLUTIONS), ("spectrum", ("band", "cutoff"))):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise ValueError(f"BurstSpectraPopulation: {name}: expected one of {known}; found {found!r}.")
        if not 0 < self.duration[0] <= self.duration[1]:
            raise ValueError(f"BurstSpectraPopulation: duration: expected two times in order; found {self.duration}.")
        if not self.detectors:
            raise ValueError("BurstSpectraPopulation: detectors: expected at least one; found none.")

    def draw(self, num: int, *, seed: int) -> SimulatedBurstSpectra:
        """Draw a sample.

        Parameters
        ----------
        num : int
            Number of bursts in it.
        seed : int
            Seed.

        Returns
        -------
        SimulatedBurstSpectra

        Raises
        ------
        DataError
            If next to no burst passes the threshold.

        Notes
        -----
        Photons are integrated over an eighth of each bin of a response at a time.
        """
        if num < 1:
            raise ValueError(f"BurstSpectraPopulation.draw: expected at least one burst; found {num}.")
        rng = np.random.default_rng(seed)
        rmfs = {kind: gbm_like_rmf(kind) for kind in set(self.detectors.values())}
        bursts: list[BurstObservation] = []
        kept: list[dict[str, Any]] = []
        num_drawn = 0
        while len(bursts) < num:
            if num_drawn >= _MOST * num:
                raise DataError(
                    f"threshold: expected some bursts of signal to noise {self.threshold:g}; found {len(bursts)} of "
                    f"{num_drawn} drawn. Make them brighter or nearer."
                )
            one = self._burst(rng, num_drawn, len(bursts))
            num_drawn += 1
            observed, significance = self._observe(rng, one, rmfs, f"sim{len(bursts) + 1:03d}")
            if significance >= self.threshold:
                bursts.append(observed)
                kept.append(one)
        truth = {k: np.concatenate([np.atleast_1d(one[k]) for one in kept]) for k in kept[0] if k not in ("z", "width")}
        return SimulatedBurstSpectra(bursts, truth | self._parameters() | {"num_drawn": num_drawn})

    def _parameters(self) -> dict[str, float]:
        """Parameters of the population by the names that the model gives them."""
        found: dict[str, float] = {}
        for key in ("gamma", "log10_N", "log10_E_peak", "alpha", *(["beta"] if self.spectrum == "band" else [])):
            mean, std = getattr(self, key)
            found |= {f"{key}_mean": mean, f"{key}_std": std}
        return found | {"intrinsic_scatter": self.intrinsic_scatter}

    def _burst(self, rng, number: int, place: int) -> dict[str, Any]:
        """Draw one burst, for a place in the sample: its relation, and the spectra of its intervals."""
        several = np.atleast_1d(self.num_intervals)
        num = int(several[place % len(several)])
        values = [float(v) for v in self.redshift]
        z = rng.uniform(*values) if len(values) == 2 else values[number % len(values)]
        peak = np.sort(rng.normal(*self.log10_E_peak, num))[::-1]
        if self.evolution == "tracking":
            rise = np.zeros(num, bool)
            rise[rng.permutation(np.arange(1, num))[: num // 3]] = True
            peak = np.concatenate([peak[rise][::-1], peak[~rise]])
        elif self.evolution == "none":
            peak = rng.permutation(peak)
        with jax.enable_x64(True):
            sphere = float(jax.jit(log10_sphere)(z, Cosmology.flat(H0=self.H0, Om0=self.Om0)))
        gamma, level = rng.normal(*self.gamma), rng.normal(*self.log10_N)
        flux = level - sphere + gamma * (peak - 2.0) + self.intrinsic_scatter * rng.normal(size=num)
        others = len(self.detectors) - 1
        one = {
            "z": z,
            "gamma": gamma,
            "log10_N": level,
            "log10_E_peak": peak,
            "alpha": np.maximum(rng.normal(*self.alpha, num), -1.95),
            "log10_flux": flux,
            "width": np.exp(rng.uniform(*np.log(self.duration), num)),
            "effective_area": np.exp(self.effective_area * rng.normal(size=others)),
        }
        return one | ({"beta": rng.normal(*self.beta, num)} if self.spectrum == "band" else {})

    def _observe(self, rng, one, rmfs, name: str) -> tuple[BurstObservation, float]:
        """Fold a burst, and draw counts and backgrounds; returns also its signal to noise."""
        z, num = one["z"], len(one["width"])
        stop = np.cumsum(one["width"])
        start = stop - one["width"]
        band = (BAND[0] / (1.0 + z), BAND[1] / (1.0 + z))
        shared = {"e_peak": 10.0 ** one["log10_E_peak"] / (1.0 + z), "log10_flux": one["log10_flux"]}
        if self.spectrum == "band":
            shape, values = Band(norm=band), shared | {"alpha": one["alpha"], "beta": one["beta"]}
        else:
            shape = CutoffPowerLaw(norm=band, pivot=100.0, peak=True)  # type: ignore[assignment]
            values = shared | {"photon_index": -one["alpha"]}
        spectra: dict[str, list[Spectrum | None]] = {}
        ratios = []
        areas = [1.0, *one["effective_area"]]
        for (detector, kind), factor in zip(self.detectors.items(), areas, strict=True):
            rmf = rmfs[kind]
            # Each detector looks its own way.
            area = gbm_like_arf(kind, rmf).area * rng.uniform(0.4, 1.0)
            response = Response.from_area(rmf, area)
            fine = np.exp(np.interp(np.arange(_FINE * (len(response.energy) - 1) + 1) / _FINE,
                                    np.arange(len(response.energy)), np.log(response.energy)))  # fmt: skip
            with jax.enable_x64(True):
                incident = np.asarray(photons(shape, fine)(values)).reshape(num, -1, _FINE).sum(axis=-1)
            rate = factor * response.fold(incident)
            behind = self._background(kind, response)
            inside = _inside(detector, response)
            own: list[Spectrum | None] = []
            ratio = []
            for row, exposure in enumerate(one["width"]):
                expected = behind * exposure
                error = np.sqrt(np.maximum(expected, 1e-3) / self.background_exposure)
                background = _spectrum(f"{name} background", response, exposure, rng.normal(expected, error), error)
                counts = rng.poisson((rate[row] + behind) * exposure).astype(float)
                spectrum = _spectrum(name, response, exposure, counts, None, background)
                own.append(spectrum)
                ratio.append((rate[row][inside].sum() * exposure) / math.sqrt(expected[inside].sum()))
            spectra[detector] = own
            ratios.append(max(ratio))
        best = sorted(ratios)[-min(2, len(ratios))]
        return BurstObservation(name, z, start, stop, spectra), best

    def _background(self, kind: str, response: Response):
        """Return counts per second in each channel: a falling power law."""
        middle = np.sqrt(response.e_min * response.e_max)
        shape = (response.e_max - response.e_min) * middle**-1.3
        return self.background[kind] * shape / shape.sum()


def _inside(detector: str, response: Response):
    """Channels of the detector's usual range."""
    low, high = default_range(detector) or (response.e_min[0], response.e_max[-1])
    return (response.e_min >= low) & (response.e_max <= high)


def _spectrum(name, response: Response, exposure: float, counts, error, background=None) -> Spectrum:
    num = len(counts)
    ones, none = np.ones(num), np.zeros(num, int)
    return Spectrum(
        name=name,
        counts=counts,
        channels=response.channels,
        exposure=float(exposure),
        backscal=ones,
        areascal=ones,
        quality=none,
        grouping=none,
        error=error,
        background=background,
        response=None if background is None else response,
    )


def write_burst_spectra(folder: str | Path, sample: SimulatedBurstSpectra, *, overwrite: bool = False) -> Path:
    """Write a simulated sample as files that `hbm_jax.data.read_burst_spectra` and others read.

    Parameters
    ----------
    folder : path
        To write into; made if need be: ``bursts.ecsv``, and a folder for each burst with PHA II, background (PHA II)
        and response (RSP) of each detector.
    sample : SimulatedBurstSpectra
        From `BurstSpectraPopulation.draw`.
    overwrite : bool
        Whether to replace files that are there.

    Returns
    -------
    path
        Of the catalogue. The true parameters of the population are in its header, those of each burst in columns that
        begin with ``true_``.

    Raises
    ------
    FileExistsError
        If the catalogue is there and not to be replaced.
    """
    from astropy.table import Table

    folder = Path(folder)
    catalog = folder / BURST_CATALOG
    if catalog.exists() and not overwrite:
        raise FileExistsError(f"{catalog}: expected a new file; found one that is there. Pass overwrite=True.")
    for burst in sample.bursts:
        own = folder / burst.name
        own.mkdir(parents=True, exist_ok=True)
        for detector, spectra in burst.spectra.items():
            every = [one for one in spectra if one is not None and one.background is not None]
            times: dict[str, Any] = {"start": burst.start, "stop": burst.stop}
            given: dict[str, Any] = {"overwrite": overwrite, "instrument": f"SIM_{detector}"}
            files: dict[str, Any] = {"background": f"{detector}_bak.pha", "rmf": f"{detector}.rsp"}
            write_pha2(own / f"{detector}.pha", every, **times, **files, **given)
            behind = [one.background for one in every if one.background is not None]
            write_pha2(own / f"{detector}_bak.pha", behind, **times, **given)
            assert every[0].response is not None
            write_rmf(own / f"{detector}.rsp", every[0].response, **given)
    num = len(sample.bursts)
    table = Table(
        {
            "name": [burst.name for burst in sample.bursts],
            "z": [float(burst.z) for burst in sample.bursts],
            "detectors": [" ".join(burst.spectra) for burst in sample.bursts],
            "true_gamma": np.asarray(sample.truth["gamma"]),
            "true_log10_N": np.asarray(sample.truth["log10_N"]),
        }
    )
    assert len(table) == num
    table.meta["truth"] = {key: float(value) for key, value in sample.truth.items() if not np.ndim(value)}
    table.write(catalog, overwrite=overwrite)
    return catalog
