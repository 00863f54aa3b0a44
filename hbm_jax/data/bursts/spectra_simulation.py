"""Simulated count spectra of gamma-ray bursts that obey the rest-frame Golenetskii relation, in several detectors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.data.bursts.spectra import BurstObservation, default_range
from hbm_jax.data.drawn_spectra import channel_rates, ungrouped
from hbm_jax.data.populations import (
    EVOLUTIONS,
    draw_until,
    log10_areas,
    moments,
    new_catalogue,
    redshift,
    require,
    require_choice,
    require_moments,
    require_ranges,
    write_catalogue,
)
from hbm_jax.spectra.folding.idealised import gbm_like_arf, gbm_like_rmf
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.model.components import Band, Component, CutoffPowerLaw
from hbm_jax.spectra.model.energetics import energy_flux
from hbm_jax.spectra.ogip.type2 import write_pha2
from hbm_jax.spectra.ogip.writing import write_rmf

BURST_CATALOG = "bursts.ecsv"
BAND = (1.0, 1e4)  # keV, rest frame, of the flux


class SimulatedBurstSpectra(NamedTuple):
    """Simulated bursts and their true parameters.

    Attributes
    ----------
    bursts : list of BurstObservation
        Bursts named ``sim001`` and so on, with backgrounds and responses, not grouped. `BurstSpectra.of` stacks them.
    truth : dict of str to array
        Population parameters, named as in `hbm_jax.models.GolenetskiiCounts`; ``gamma, log10_N`` (B,) of each burst;
        ``log10_E_peak`` (rest frame [keV]), ``alpha``, ``beta``, ``log10_flux`` (I,) of each interval;
        ``effective_area`` (D - B,) of the detectors other than the reference; and ``num_drawn``, the number of bursts
        drawn, including those not detected.
    """

    bursts: list[BurstObservation]
    truth: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BurstSpectraPopulation:
    """A population of bursts whose intervals obey L = N (E_peak (1 + z) / 100 keV)^gamma, with the observed E_peak.

    Pairs of numbers are a mean and a standard deviation, unless stated otherwise. Raises ValueError for invalid values.

    Parameters
    ----------
    redshift : (float, float) or sequence of float
        Two numbers: uniform between them. More than two: these values, cyclically.
    num_intervals, gamma, log10_N, intrinsic_scatter, evolution, H0, Om0
        As in `BurstPopulation`.
    log10_E_peak : (float, float)
        Peak energies of the intervals in the rest frame [keV].
    alpha, beta : (float, float)
        Low- and high-energy photon indices.
    spectrum : str
        ``"band"``, or ``"cutoff"`` for a power law with exponential cut-off, which has no beta.
    duration : (float, float)
        Shortest and longest interval [s]; log-uniform between them.
    detectors : mapping of str to str
        Names and types of the detectors, ``"nai"`` or ``"bgo"`` as in `hbm_jax.spectra.gbm_like_rmf`; the first is the
        reference.
    background : mapping of str to float
        Background rate summed over all channels [count/s], by type of detector.
    background_exposure : float
        Exposure of the background measurement relative to that of an interval; it sets the Gaussian error of the
        background.
    effective_area : float
        Scatter of ln(true effective area / effective area of the response) of the detectors other than the reference.
    threshold : float
        Detection threshold on the signal-to-noise ratio: each detector has the ratio of its brightest interval, and a
        burst is drawn again if the second largest of these is below the threshold.
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
        require_moments(self, "gamma", "log10_N", "log10_E_peak", "alpha", "beta")
        require_choice(self, "evolution", EVOLUTIONS)
        require_choice(self, "spectrum", ("band", "cutoff"))
        require_ranges(self, "times", "duration")
        require(self, ("detectors",), "at least one", bool)

    def draw(self, num: int, *, seed: int) -> SimulatedBurstSpectra:
        """Draw a sample of ``num`` bursts; their spectra are integrated more finely than in fits (`channel_rates`).

        Raises DataError if hardly any burst passes the threshold.
        """
        rng = np.random.default_rng(seed)
        rmfs = {kind: gbm_like_rmf(kind) for kind in set(self.detectors.values())}

        def draw_burst(num_drawn: int, num_accepted: int) -> tuple[BurstObservation, dict[str, Any]] | None:
            burst = self._burst(rng, num_drawn, num_accepted)
            observation, signal_to_noise = self._observe(rng, burst, rmfs, f"sim{num_accepted + 1:03d}")
            return (observation, burst) if signal_to_noise >= self.threshold else None

        drawn, num_drawn = draw_until(
            num,
            draw_burst,
            f"threshold: expected bursts with a signal-to-noise ratio of at least {self.threshold:g}; found "
            "{accepted} of {drawn} drawn. Make the bursts brighter or nearer.",
        )
        bursts, values = zip(*drawn, strict=True)
        names = [key for key in values[0] if key not in ("z", "width")]
        truth = {key: np.concatenate([np.atleast_1d(burst[key]) for burst in values]) for key in names}
        varying = ("gamma", "log10_N", "log10_E_peak", "alpha", *(["beta"] if self.spectrum == "band" else []))
        numbers = {"intrinsic_scatter": self.intrinsic_scatter, "num_drawn": num_drawn}
        return SimulatedBurstSpectra(list(bursts), truth | moments(self, *varying) | numbers)

    def _burst(self, rng, number: int, index: int) -> dict[str, Any]:
        """Draw burst `number`, for position `index` in the sample: its relation and the spectra of its intervals."""
        num_intervals = np.atleast_1d(self.num_intervals)
        num = int(num_intervals[index % len(num_intervals)])
        z = redshift(rng, self.redshift, number)
        peak = np.sort(rng.normal(*self.log10_E_peak, num))[::-1]
        if self.evolution == "tracking":  # a third of the intervals in the rise
            rise = np.zeros(num, bool)
            rise[rng.permutation(np.arange(1, num))[: num // 3]] = True
            peak = np.concatenate([peak[rise][::-1], peak[~rise]])
        elif self.evolution == "none":
            peak = rng.permutation(peak)
        log10_area = float(log10_areas(z, self.H0, self.Om0))
        gamma, log10_N = rng.normal(*self.gamma), rng.normal(*self.log10_N)
        # The flux in the relation of the class: `peak` is log10 of the peak energy in the rest frame, pivot 100 keV.
        flux = log10_N - log10_area + gamma * (peak - 2.0) + self.intrinsic_scatter * rng.normal(size=num)
        burst = {
            "z": z,
            "gamma": gamma,
            "log10_N": log10_N,
            "log10_E_peak": peak,
            "alpha": np.maximum(rng.normal(*self.alpha, num), -1.95),  # E^2 N(E) has no peak for alpha <= -2
            "log10_flux": flux,
            "width": np.exp(rng.uniform(*np.log(self.duration), num)),
            "effective_area": np.exp(self.effective_area * rng.normal(size=len(self.detectors) - 1)),
        }
        return burst | ({"beta": rng.normal(*self.beta, num)} if self.spectrum == "band" else {})

    def _observe(self, rng, burst, rmfs, name: str) -> tuple[BurstObservation, float]:
        """Draw counts and backgrounds of a burst; return the observation and its signal-to-noise ratio."""
        z = burst["z"]
        stop = np.cumsum(burst["width"])
        start = stop - burst["width"]
        shape, values = self._spectrum(burst)
        spectra: dict[str, list[Spectrum | None]] = {}
        max_ratios = []
        areas = [1.0, *burst["effective_area"]]
        for (detector, kind), factor in zip(self.detectors.items(), areas, strict=True):
            rmf = rmfs[kind]
            # Detectors point in different directions, hence the random factor.
            response = Response.from_area(rmf, gbm_like_arf(kind, rmf).area * rng.uniform(0.4, 1.0))
            rate = factor * channel_rates(shape, response, values)
            background_rate = self._background(kind, response)
            low, high = default_range(detector) or (response.e_min[0], response.e_max[-1])
            in_range = (response.e_min >= low) & (response.e_max <= high)
            spectra[detector], ratios = [], []
            for interval, exposure in enumerate(burst["width"]):
                expected = background_rate * exposure
                error = np.sqrt(np.maximum(expected, 1e-3) / self.background_exposure)
                measured = rng.normal(expected, error)
                background = ungrouped(f"{name} background", response.channels, exposure, measured, error=error)
                counts = rng.poisson((rate[interval] + background_rate) * exposure)
                fields: dict[str, Any] = {"background": background, "response": response}
                spectra[detector].append(ungrouped(name, response.channels, exposure, counts, **fields))
                ratios.append((rate[interval][in_range].sum() * exposure) / math.sqrt(expected[in_range].sum()))
            max_ratios.append(max(ratios))
        signal_to_noise = sorted(max_ratios)[-min(2, len(max_ratios))]
        return BurstObservation(name, z, start, stop, spectra), signal_to_noise

    def _spectrum(self, burst) -> tuple[Component, dict[str, Any]]:
        """Return the spectral component of a burst, and its parameters in the intervals."""
        is_band = self.spectrum == "band"
        shape = Band(norm="amplitude") if is_band else CutoffPowerLaw(norm="amplitude", pivot=100.0, peak=True)
        values = {"alpha": burst["alpha"], "beta": burst["beta"]} if is_band else {"photon_index": -burst["alpha"]}
        values["e_peak"] = 10.0 ** burst["log10_E_peak"] / (1.0 + burst["z"])
        low, high = (energy / (1.0 + burst["z"]) for energy in BAND)
        with jax.enable_x64(True):
            unit = energy_flux(shape, values | {"log10_amplitude": np.zeros(len(burst["alpha"]))}, low, high)
            return shape, values | {"log10_amplitude": burst["log10_flux"] - np.log10(unit)}

    def _background(self, kind: str, response: Response):
        """Return the background rate in each channel [count/s], a falling power law of energy."""
        energy = np.sqrt(response.e_min * response.e_max)
        shape = (response.e_max - response.e_min) * energy**-1.3
        return self.background[kind] * shape / shape.sum()


def write_burst_spectra(folder: str | Path, sample: SimulatedBurstSpectra, *, overwrite: bool = False) -> Path:
    """Write a simulated sample as OGIP files, which `hbm_jax.data.read_burst_spectra` and other software can read.

    Parameters
    ----------
    folder : path
        Output folder, created if missing. The files are the catalogue ``bursts.ecsv``, and one folder per burst with
        the spectra (PHA II), backgrounds (PHA II) and response (RSP) of each detector.
    sample, overwrite
        As for `hbm_jax.data.write_afterglows`; so are the result, true parameters and errors.
    """
    catalogue = new_catalogue(folder, BURST_CATALOG, overwrite)
    for burst in sample.bursts:
        burst_folder = catalogue.parent / burst.name
        burst_folder.mkdir(parents=True, exist_ok=True)
        for detector, all_spectra in burst.spectra.items():
            spectra = [spectrum for spectrum in all_spectra if spectrum is not None]
            backgrounds = [spectrum.background for spectrum in spectra if spectrum.background is not None]
            times: dict[str, Any] = {"start": burst.start, "stop": burst.stop}
            options: dict[str, Any] = {"overwrite": overwrite, "instrument": f"SIM_{detector}"}
            files: dict[str, Any] = {"background": f"{detector}_bak.pha", "rmf": f"{detector}.rsp"}
            write_pha2(burst_folder / f"{detector}.pha", spectra, **times, **files, **options)
            write_pha2(burst_folder / files["background"], backgrounds, **times, **options)
            assert spectra[0].response is not None
            write_rmf(burst_folder / files["rmf"], spectra[0].response, **options)
    columns = {
        "name": [burst.name for burst in sample.bursts],
        "z": [float(burst.z) for burst in sample.bursts],
        "detectors": [" ".join(burst.spectra) for burst in sample.bursts],
    }
    true_columns = {key: sample.truth[key] for key in ("gamma", "log10_N")}
    return write_catalogue(catalogue, columns, sample.truth, true_columns, overwrite)
