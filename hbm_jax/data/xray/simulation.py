"""Simulated populations of X-ray afterglows, from redshifts and luminosities to counts in channels."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.cosmology import Cosmology, differential_comoving_volume
from hbm_jax.data.drawn_spectra import channel_rates, ungrouped
from hbm_jax.data.populations import (
    draw_until,
    log10_areas,
    moments,
    redshift,
    require,
    require_choice,
    require_moments,
)
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.model.components import Absorption, PowerLaw, Whim

BAND = (0.3, 10.0)  # keV, band of fluxes, luminosities and the minimum counts
STAR_FORMATION = "star formation"
H0, Om0 = 70.0, 0.3  # of the simulations


class SimulatedAfterglows(NamedTuple):
    """Simulated afterglows and their true parameters.

    Attributes
    ----------
    spectra : list of Spectrum
        Spectra named ``sim001`` and so on, with background and response, not grouped.
    columns : dict of str to (N,) array
        Columns ``name, z, nh_mw`` of the catalogue.
    truth : dict of str to array
        ``photon_index, log10_flux, log10_luminosity, log10_nh`` of each source, the population parameters, and
        ``num_drawn``, the number of sources drawn, including those with too few counts.
    """

    spectra: list[Spectrum]
    columns: dict[str, Any]
    truth: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AfterglowPopulation:
    """A population of absorbed power laws.

    Pairs of numbers are a mean and a standard deviation, unless stated otherwise. Raises ValueError for an unknown
    redshift distribution or host, or numbers out of range.

    Parameters
    ----------
    redshift : str or (float, float) or sequence of float
        ``"star formation"``: density in z, from 0.1 to 8, proportional to the star-formation rate of Madau & Dickinson
        (2014, ARA&A 52, 415) times the differential comoving volume, divided by 1 + z. Two numbers: uniform between
        them. More than two: these values, cyclically.
    photon_index : (float, float)
        Photon index of the power law.
    log10_flux : (float, float), optional
        Unabsorbed flux from 0.3 to 10 keV in the observer's frame [erg/cm^2/s]; if given, it replaces the luminosity.
    log10_luminosity : (float, float)
        Luminosity from 0.3 to 10 keV in the rest frame [erg/s].
    host : str
        ``"log-normal"``: log10_nh is the logarithm of the column density. ``"cloud"``: sources at random positions in
        a uniform spherical cloud, seen from a random direction; log10_nh is that of a path along its diameter.
    log10_nh, log10_nh_mw : (float, float)
        Column densities of host and Milky Way [1e22 cm^-2].
    log10_n0, log10_T, metallicity : float
        Logarithms of the density at redshift 0 [cm^-3] and of the temperature [K], and metallicity of the WHIM; no WHIM
        if log10_n0 is None.
    exposure : float
        Exposure [s].
    background : float
        Background rate in the source region, 0.3 to 10 keV [count/s].
    background_ratio : float
        Size of the background region relative to the source region.
    min_counts : int
        Minimum number of counts from 0.3 to 10 keV, background included; sources with fewer are drawn again.
    log10_flux_limit : (float, float), optional
        Limit of log10 of the unabsorbed flux, and the standard deviation of the normal distribution function about it
        that is the probability of detection; sources that are not detected are drawn again.
    abundances : str
        Abundance table of all absorbers.

    Examples
    --------
    >>> sample = AfterglowPopulation(log10_n0=-7.0).draw(10, seed=1)
    >>> len(sample.spectra)
    10
    """

    redshift: str | Sequence[float] = STAR_FORMATION
    photon_index: tuple[float, float] = (2.0, 0.15)
    log10_flux: tuple[float, float] | None = None
    log10_luminosity: tuple[float, float] = (47.3, 0.5)
    host: str = "log-normal"
    log10_nh: tuple[float, float] = (-0.3, 0.5)
    log10_nh_mw: tuple[float, float] = (-1.4, 0.3)
    log10_n0: float | None = None
    log10_T: float = 6.0
    metallicity: float = 0.3
    exposure: float = 20_000.0
    background: float = 1e-3
    background_ratio: float = 20.0
    min_counts: int = 100
    log10_flux_limit: tuple[float, float] | None = None
    abundances: str = "wilm"

    def __post_init__(self):
        if isinstance(self.redshift, str):
            require(self, ("redshift",), f"{STAR_FORMATION!r}, a range or a list", lambda name: name == STAR_FORMATION)
        require_choice(self, "host", ("log-normal", "cloud"))
        require(self, ("exposure", "background_ratio"), "a positive number", lambda value: value > 0)
        flux = tuple(name for name in ("log10_flux", "log10_flux_limit") if getattr(self, name) is not None)
        require_moments(self, "photon_index", *flux, "log10_luminosity", "log10_nh", "log10_nh_mw")

    def draw(self, num: int, *, seed: int, response: Response | None = None) -> SimulatedAfterglows:
        """Draw a sample of ``num`` sources; their spectra are integrated more finely than in fits (`channel_rates`).

        The response is by default an idealised one similar to that of Swift XRT. Raises DataError if hardly any source
        has enough counts.
        """
        response = Response.of(rmf := xrt_like_rmf(), xrt_like_arf(rmf)) if response is None else response
        rng = np.random.default_rng(seed)
        in_band = (response.e_min >= BAND[0]) & (response.e_max <= BAND[1])

        def draw_source(num_drawn: int, num_accepted: int) -> tuple[Spectrum, dict[str, float]] | None:
            source = self._source(rng, num_drawn)
            if self.log10_flux_limit is not None and source["log10_flux"] < rng.normal(*self.log10_flux_limit):
                return None
            spectrum = self._spectrum(rng, source, response, f"sim{num_accepted + 1:03d}")
            return (spectrum, source) if spectrum.counts[in_band].sum() >= self.min_counts else None

        limit = self.log10_flux_limit
        sought = f"{self.min_counts} counts" + ("" if limit is None else f" and a log10_flux above {limit[0]:g}")
        accepted, num_drawn = draw_until(
            num,
            draw_source,
            f"min_counts: expected some sources with {sought}; found {{accepted}} of {{drawn}} drawn. "
            "Make the sources brighter, or the exposure longer.",
        )
        spectra, sources = zip(*accepted, strict=True)
        drawn = {key: np.array([source[key] for source in sources]) for key in sources[0]}
        columns = {"name": [s.name for s in spectra], "z": drawn.pop("z"), "nh_mw": drawn.pop("nh_mw")}
        return SimulatedAfterglows(list(spectra), columns, drawn | self._parameters() | {"num_drawn": num_drawn})

    def _parameters(self) -> dict[str, float]:
        """Return the population parameters, named as in the model."""
        varying = ["photon_index", *(["log10_flux"] if self.log10_flux is not None else [])]
        parameters = moments(self, *varying, *(["log10_nh"] if self.host == "log-normal" else []))
        if self.log10_n0 is not None:
            parameters |= {"log10_n0": self.log10_n0, "log10_T": self.log10_T, "metallicity": self.metallicity}
        return parameters

    def _source(self, rng, number: int) -> dict[str, float]:
        """Draw redshift, spectral parameters and column densities of a source."""
        z = self._redshift(rng, number)
        index = rng.normal(*self.photon_index)
        # Flux and luminosity refer to the same band, one in the observer's frame and the other in the rest frame.
        offset = float(log10_areas(z, H0, Om0)) + (index - 2.0) * math.log10(1.0 + z)
        if self.log10_flux is not None:
            flux = rng.normal(*self.log10_flux)
        else:
            flux = rng.normal(*self.log10_luminosity) - offset
        column = rng.normal(*self.log10_nh)
        if self.host == "cloud":
            column += math.log10(_path_out_of_sphere(rng))
        source = {"z": z, "photon_index": index, "log10_flux": flux, "log10_luminosity": flux + offset}
        return source | {"log10_nh": column, "nh_mw": 10.0 ** rng.normal(*self.log10_nh_mw)}

    def _redshift(self, rng, number: int) -> float:
        """Draw a redshift, or return that of source `number` from a list of redshifts."""
        if not isinstance(self.redshift, str):
            return redshift(rng, self.redshift, number)
        z, cumulative = _cumulative_burst_rate()
        return float(np.interp(rng.uniform(0.0, cumulative[-1]), cumulative, z))

    def _spectrum(self, rng, source: dict[str, float], response: Response, name: str) -> Spectrum:
        """Draw the counts of a source, and of its background region."""
        z = source["z"]
        spectrum = Absorption("mw", abundances=self.abundances) * Absorption("host", z=z, abundances=self.abundances)
        if self.log10_n0 is not None:
            spectrum = spectrum * Whim(
                z=z, cosmology=_cosmology(), metallicity=self.metallicity, abundances=self.abundances, double=True
            )
        spectrum = spectrum * PowerLaw(norm=BAND)
        values: dict[str, Any] = source | {"mw_nh": source["nh_mw"], "host_nh": 10.0 ** source["log10_nh"]}
        values |= {"log10_n0": self.log10_n0, "log10_T": self.log10_T}
        rate = channel_rates(spectrum, response, {name: [value] for name, value in values.items()})[0]
        # A background that is flat, with a rise towards low energies.
        width = response.e_max - response.e_min
        shape = width * (1.0 + 0.5 / np.maximum(0.5 * (response.e_min + response.e_max), 0.2))
        in_band = (response.e_min >= BAND[0]) & (response.e_max <= BAND[1])
        background_rate = self.background * shape / shape[in_band].sum()
        background_counts = rng.poisson(background_rate * self.background_ratio * self.exposure)
        background = ungrouped(
            f"{name} background", response.channels, self.exposure, background_counts, backscal=self.background_ratio
        )
        counts = rng.poisson((rate + background_rate) * self.exposure)
        return ungrouped(name, response.channels, self.exposure, counts, background=background, response=response)


@functools.cache
def _cumulative_burst_rate() -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of redshifts, and the unnormalised cumulative burst rate on it."""
    z = np.linspace(0.1, 8.0, 400)
    volume = precomputed(lambda: np.asarray(jax.jit(lambda z: differential_comoving_volume(z, _cosmology()))(z)))
    rate = (1.0 + z) ** 2.7 / (1.0 + ((1.0 + z) / 2.9) ** 5.6) * volume / (1.0 + z)
    return z, np.append(0.0, np.cumsum(0.5 * (rate[1:] + rate[:-1])))


def _cosmology() -> Cosmology:
    """Return the cosmology of the simulations."""
    return Cosmology.flat(H0=H0, Om0=Om0)


def _path_out_of_sphere(rng) -> float:
    """Draw the path length out of a sphere, from a random position in a random direction, in units of the diameter."""
    radius, cosine = rng.uniform() ** (1.0 / 3.0), rng.uniform(-1.0, 1.0)
    return 0.5 * (math.sqrt(1.0 - radius**2 * (1.0 - cosine**2)) - radius * cosine)
