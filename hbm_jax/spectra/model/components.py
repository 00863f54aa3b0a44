"""Components of photon spectra: what shines, what absorbs, and photons in bins of energy."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.spectra.model import shapes
from hbm_jax.spectra.model.absorbers import Absorption, Constant, Whim
from hbm_jax.spectra.model.composition import (
    Component,
    Parameter,
    Product,
    Sum,
    Values,
    check_band,
    gauss,
    pieces,
    separated,
)
from hbm_jax.spectra.model.lines import in_bins

__all__ = [
    "Absorption",
    "Band",
    "BlackBody",
    "BrokenPowerLaw",
    "Component",
    "Constant",
    "CutoffPowerLaw",
    "GaussianLine",
    "Parameter",
    "PowerLaw",
    "Product",
    "Sum",
    "Whim",
    "photons",
]

Norm = Literal["amplitude"] | tuple[float, float]
_LN10 = math.log(10.0)
_LOG_KEV = math.log(constants.kev_in_erg)
# photons/cm^2/s/keV^3 for 1 km at 10 kpc, as XSPEC has it. The constants of nature make it 1.0380e-3, 0.35 % more.
_BLACK_BODY = 1.0344e-3


@dataclass(frozen=True)
class _Light(Component):
    """An additive component: a shape, and one of two normalisations."""

    _: KW_ONLY
    norm: Norm = (0.3, 10.0)
    pivot: float = 1.0
    flux_prior: ClassVar[str] = "Normal(-11.0, 2.0)"
    amplitude: ClassVar[Parameter] = Parameter(
        "photons/cm^2/s/keV", "Normal(-3.0, 2.0)", "density of the low-energy power law at the pivot energy"
    )
    unit: ClassVar[float] = 1.0  # of the amplitude

    def __post_init__(self):
        if not (np.ndim(self.pivot) == 0 and 0 < self.pivot < math.inf):
            raise ValueError(f"pivot: expected a positive energy [keV]; found {self.pivot}.")
        if isinstance(self.norm, str) and self.norm == "amplitude":
            return
        if isinstance(self.norm, str) or np.shape(self.norm) != (2,):
            raise ValueError(f"norm: expected 'amplitude' or a band (low, high) [keV]; found {self.norm!r}.")
        low, high = (float(end) for end in self.norm)
        check_band(low, high, "norm")
        object.__setattr__(self, "norm", (low, high))

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        if self.norm == "amplitude":
            return self._shape_parameters() | {"log10_amplitude": self.amplitude}
        band = f"{self.norm[0]:g} to {self.norm[1]:g} keV"
        flux = Parameter("erg/cm^2/s", self.flux_prior, f"unabsorbed energy flux, {band} as observed")
        return self._shape_parameters() | {"log10_flux": flux}

    def _shape_parameters(self) -> dict[str, Parameter]:
        raise NotImplementedError

    def _shape(self, x: Any, energy: Any, given: dict[str, jax.Array]) -> jax.Array:
        """Ln of the shape at x = ln(E / pivot) and energy = E / pivot."""
        raise NotImplementedError

    def _log_integral(self, middle: Any, width: Any, power: int, given: dict[str, jax.Array]) -> jax.Array:
        """Ln of the integral of the shape over a band in x."""
        raise NotImplementedError

    def _log_scale(self, given: dict[str, jax.Array]) -> jax.Array:
        """Ln of what the shape is multiplied by."""
        if self.norm == "amplitude":
            return _LN10 * given["log10_amplitude"] + math.log(self.unit)
        norm = given["log10_flux"]
        band = _band(*self.norm, self.pivot, norm.dtype)
        return _LN10 * norm - (_LOG_KEV + 2.0 * math.log(self.pivot)) - self._log_integral(*band, 1, given)

    def _tables(self, energy):
        logs = jnp.log if isinstance(energy, jax.core.Tracer) else np.log
        return logs(energy / self.pivot), energy / self.pivot

    def _evaluate(self, tables, values):
        given = self._own(values)
        x, energy = (jnp.asarray(table, next(iter(given.values())).dtype) for table in tables)
        scale = self._log_scale(given)[..., None]
        return jnp.exp(scale + self._shape(x, energy, {name: value[..., None] for name, value in given.items()}))

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """As for every component; the band may be traced here."""
        check_band(low, high)
        given = self._own(values)
        scale = self._log_scale(given)
        log = self._log_integral(*_band(low, high, self.pivot, scale.dtype), power, given)
        return jnp.exp(scale + log + (power + 1.0) * math.log(self.pivot))

    def _in_bins(self, bands, values):
        """Integrals over bins given as middles and widths, (..., num_bins)."""
        given = self._own(values)
        scale = self._log_scale(given)[..., None] + math.log(self.pivot)
        middle, width = (jnp.asarray(column, scale.dtype) for column in bands)
        log = self._log_integral(middle, width, 0, {name: value[..., None] for name, value in given.items()})
        return jnp.exp(scale + log)


def _band(low: Any, high: Any, pivot: float, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Middle and width of a band in ln(E / pivot); in double precision where it is known."""
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        low, high = jnp.log(jnp.asarray(low) / pivot), jnp.log(jnp.asarray(high) / pivot)
    else:
        low, high = np.log(np.asarray(low, float) / pivot), np.log(np.asarray(high, float) / pivot)
    return jnp.asarray(0.5 * (low + high), dtype), jnp.asarray(high - low, dtype)


_INDEX = Parameter("", "Normal(2.0, 1.0)", "photon index: photons/keV fall as E^-photon_index")


@dataclass(frozen=True)
class PowerLaw(_Light):
    """Power law, E^-photon_index.

    Parameters
    ----------
    label : str
        Prefix of the parameters' names.
    norm : "amplitude" or (float, float)
        What the normalisation is: ``log10_amplitude``, the density at the pivot energy [photons/cm^2/s/keV]; or, for a
        band (low, high) [keV], ``log10_flux``, the energy flux in it [erg/cm^2/s], unabsorbed and as observed.
    pivot : float
        [keV].

    Raises
    ------
    ValueError
        For a norm or a pivot that is none.

    Notes
    -----
    Every index is as good as the others: energy flux at index 2 and photons at index 1 have no 0/0, in value and in
    every derivative.

    Examples
    --------
    >>> spectrum = PowerLaw()
    >>> on_grid = spectrum.on([0.5, 1.0, 2.0])
    >>> on_grid({"photon_index": 2.0, "log10_flux": -11.0}).shape
    (3,)
    """

    def _shape_parameters(self):
        return {"photon_index": _INDEX}

    def _shape(self, x, energy, given):
        return shapes.power_law(x, given["photon_index"])

    def _log_integral(self, middle, width, power, given):
        return shapes.power_law_integral(middle, width, power, given["photon_index"])


@dataclass(frozen=True)
class BrokenPowerLaw(_Light):
    """Two power laws that meet at a break.

    Parameters
    ----------
    label, norm, pivot
        As in `PowerLaw`; the amplitude is that of the lower power law at the pivot, as in XSPEC's bknpower, also where
        the break lies below it.

    Notes
    -----
    Continuous. A density has a kink in ``energy_break`` where that is the energy itself; photons in a bin have none.

    Examples
    --------
    >>> list(BrokenPowerLaw(norm="amplitude").parameters)
    ['photon_index', 'photon_index_high', 'energy_break', 'log10_amplitude']
    """

    def _shape_parameters(self):
        return {
            "photon_index": dataclasses.replace(_INDEX, help="photon index below the break"),
            "photon_index_high": dataclasses.replace(_INDEX, help="photon index above the break"),
            "energy_break": Parameter("keV", "LogNormal(0.7, 1.0)", "energy of the break"),
        }

    def _arguments(self, given):
        log_break = jnp.log(given["energy_break"]) - math.log(self.pivot)
        return given["photon_index"], given["photon_index_high"], log_break

    def _shape(self, x, energy, given):
        return shapes.broken_power_law(x, *self._arguments(given))

    def _log_integral(self, middle, width, power, given):
        return shapes.broken_power_law_integral(middle, width, power, *self._arguments(given))


@dataclass(frozen=True)
class CutoffPowerLaw(_Light):
    """Power law with an exponential cut-off, E^-photon_index exp(-E / e_cut).

    Parameters
    ----------
    label, norm, pivot
        As in `PowerLaw`; the amplitude is that of the power law without its cut-off, as in XSPEC's cutoffpl.
    peak : bool
        Whether the parameter is ``e_peak`` = (2 - photon_index) e_cut, where E^2 N(E) is largest, in place of
        ``e_cut``.

    Notes
    -----
    With ``e_peak`` the domain is photon_index <= 2, and NaN beyond: there is no peak. At 2 the cut-off is gone. The
    energy flux of ``norm`` is a quadrature of 64 nodes; for its error see ``tests/spectra/test_energetics.py``.

    Examples
    --------
    >>> list(CutoffPowerLaw(peak=True).parameters)
    ['photon_index', 'e_peak', 'log10_flux']
    """

    _: KW_ONLY
    peak: bool = False

    def _shape_parameters(self):
        if not self.peak:
            cut = Parameter("keV", "LogNormal(2.3, 1.5)", "energy of the cut-off")
            return {"photon_index": _INDEX, "e_cut": cut}
        return {
            "photon_index": dataclasses.replace(_INDEX, prior="TruncatedNormal(1.0, 0.5, high=2.0)"),
            "e_peak": Parameter("keV", "LogNormal(2.3, 1.5)", "energy at which E^2 N(E) is largest"),
        }

    def _arguments(self, given):
        index = given["photon_index"]
        rate = (2.0 - index) / given["e_peak"] if self.peak else 1.0 / given["e_cut"]
        return index, jnp.where(rate >= 0.0, rate, jnp.nan) * self.pivot

    def _shape(self, x, energy, given):
        return shapes.cutoff_power_law(x, energy, *self._arguments(given))

    def _log_integral(self, middle, width, power, given):
        return shapes.cutoff_power_law_integral(middle, width, power, *self._arguments(given))


@dataclass(frozen=True)
class Band(_Light):
    """The function of Band et al. 1993 (ApJ 413, 281) for bursts: E^alpha exp(-E / E_0) that goes over to E^beta.

    Parameters
    ----------
    label, norm, pivot
        As in `PowerLaw`; the amplitude is that of E^alpha at the pivot, as in XSPEC's grbm.

    Notes
    -----
    ``alpha`` and ``beta`` are photon indices with their sign, ``e_peak`` = (2 + alpha) E_0 is where E^2 N(E) is largest
    if beta < -2. The break is at (alpha - beta) E_0; there the function and all first derivatives are continuous.
    Domain: alpha >= -2, alpha >= beta, e_peak > 0; NaN elsewhere. At alpha = -2 the cut-off and the break go to
    infinity: the limit is E^-2, with finite gradient. At alpha = beta there is nothing below the break: the limit is
    E^beta, whose gradient is finite and right with a norm by flux; an amplitude has an infinite slope there, of which
    the finite part is returned.

    Examples
    --------
    >>> Band(norm=(8.0, 1000.0)).parameters["e_peak"].unit
    'keV'
    """

    _: KW_ONLY
    norm: Norm = (10.0, 1000.0)
    pivot: float = 100.0
    flux_prior: ClassVar[str] = "Normal(-6.0, 2.0)"
    amplitude: ClassVar[Parameter] = dataclasses.replace(_Light.amplitude, prior="Normal(-2.0, 2.0)")

    def _shape_parameters(self):
        return {
            "alpha": Parameter("", "TruncatedNormal(-1.0, 0.5, low=-2.0)", "low-energy photon index, E^alpha"),
            "beta": Parameter("", "TruncatedNormal(-2.5, 0.5, high=-2.0)", "high-energy photon index, E^beta"),
            "e_peak": Parameter("keV", "LogNormal(5.3, 1.0)", "energy at which E^2 N(E) is largest"),
        }

    def _arguments(self, given):
        return given["alpha"], given["beta"], given["e_peak"] / self.pivot

    def _shape(self, x, energy, given):
        return shapes.band(x, energy, *self._arguments(given))

    def _log_integral(self, middle, width, power, given):
        return shapes.band_integral(middle, width, power, *self._arguments(given))


@dataclass(frozen=True)
class BlackBody(_Light):
    """Black body, A(E) = 1.0344e-3 K E^2 / (exp(E / kT) - 1).

    Parameters
    ----------
    label, norm, pivot
        As in `PowerLaw`; the amplitude is K = (R / km)^2 / (D / 10 kpc)^2 as in XSPEC's bbodyrad, whatever the pivot.

    Notes
    -----
    The number is XSPEC's, so that K is; the constants of nature make it 1.0380e-3, and a radius 0.17 % smaller.

    Examples
    --------
    >>> list(BlackBody(norm="amplitude").parameters)
    ['kT', 'log10_amplitude']
    """

    amplitude: ClassVar[Parameter] = Parameter("(km / 10 kpc)^2", "Normal(2.0, 2.0)", "(radius over distance)^2")

    @property
    def unit(self) -> float:  # type: ignore[override]
        """Of the amplitude, where energies are in units of the pivot."""
        return _BLACK_BODY * self.pivot**2

    def _shape_parameters(self):
        return {"kT": Parameter("keV", "LogNormal(-1.0, 1.0)", "temperature as observed")}

    def _shape(self, x, energy, given):
        return shapes.black_body(x, energy, given["kT"] / self.pivot)

    def _log_integral(self, middle, width, power, given):
        return shapes.black_body_integral(middle, width, power, given["kT"] / self.pivot)


@dataclass(frozen=True)
class GaussianLine(_Light):
    """Emission line, normal in energy.

    Parameters
    ----------
    label : str
        Prefix of the parameters' names.
    norm : "amplitude" or (float, float)
        ``log10_amplitude`` [photons/cm^2/s] of the whole line, as in XSPEC's gauss, by default; or, for a band, as in
        `PowerLaw`, ``log10_flux`` of what lies in it.
    pivot : float
        Without effect.

    Notes
    -----
    ``energy`` and ``sigma`` are as observed [keV]; sigma is above 0. However narrow the line is, its photons in bins
    (`photons`) are those of a formula, times the mean of its absorbers over each bin, and it is folded on all bins of a
    response (`hbm_jax.models.SpectralFit`). A response says nothing of where in a bin a photon is: for a line much
    narrower than a bin, the likelihood is flat in ``energy`` within each bin, so give it a sigma of about a bin's width
    where its energy is free.

    Examples
    --------
    >>> list((PowerLaw() + GaussianLine("fe")).parameters)
    ['photon_index', 'log10_flux', 'fe_energy', 'fe_sigma', 'fe_log10_amplitude']
    """

    _: KW_ONLY
    norm: Norm = "amplitude"
    narrow: ClassVar[bool] = True
    flux_prior: ClassVar[str] = "Normal(-13.0, 2.0)"
    amplitude: ClassVar[Parameter] = Parameter("photons/cm^2/s", "Normal(-5.0, 2.0)", "photons of the whole line")

    @property
    def unit(self) -> float:  # type: ignore[override]
        """Of the amplitude, where energies are in units of the pivot."""
        return 1.0 / self.pivot

    def _shape_parameters(self):
        return {
            "energy": Parameter("keV", "LogNormal(1.5, 0.7)", "energy of the line as observed"),
            "sigma": Parameter("keV", "LogNormal(-2.3, 0.7)", "standard deviation of the line as observed"),
        }

    def _arguments(self, given):
        return given["energy"] / self.pivot, given["sigma"] / self.pivot

    def _shape(self, x, energy, given):
        return shapes.gaussian_line(energy, *self._arguments(given))

    def _log_integral(self, middle, width, power, given):
        return shapes.gaussian_line_integral(middle, width, power, *self._arguments(given))


CLOSED = PowerLaw | BrokenPowerLaw  # whose photons in a bin are a formula, beside those of lines


def photons(spectrum: Component, edges: ArrayLike) -> Callable[[Values], jax.Array]:
    """Set up photons in bins of energy.

    Parameters
    ----------
    spectrum : Component
        Additive; a factor alone is integrated all the same.
    edges : (num_bins + 1,)
        Edges of the bins [keV], positive and increasing.

    Returns
    -------
    callable
        Takes values as those of `Component.on`, and returns photons/cm^2/s in each bin, (..., num_bins). Also a pytree.

    Raises
    ------
    ValueError
        For edges that are not positive and increasing.

    Notes
    -----
    Closed forms for power laws, broken or not, lines, and their sums; for everything else four Gauss nodes in ln E in
    each bin, which is cut at jumps and kinks of the spectrum and where it is wider than 0.1 in ln E. The error of an
    absorbed power law is below 1e-9 of the photons in a bin where the optical depth is 5 or less, and below 1e-9 of all
    photons anywhere. A break at a free energy costs up to 1e-4 (``tests/spectra/test_components.py`` and
    ``test_energetics.py``). Absorbers of a line are means over each bin.

    Examples
    --------
    >>> in_bins = photons(PowerLaw() * Absorption(), np.linspace(0.3, 10.0, 98))
    >>> in_bins({"photon_index": 2.0, "log10_flux": -11.0, "nh": 0.1}).shape
    (97,)
    """
    edges = np.asarray(edges, dtype=float)
    if edges.ndim != 1 or len(edges) < 2 or not edges[0] > 0 or not (np.diff(edges) > 0).all():
        raise ValueError(
            f"edges: expected at least two positive energies [keV] that increase; found {edges.tolist()[:5]}."
        )
    smooth, lines = separated(spectrum)
    of_lines = tuple(in_bins(line, edges[:-1], edges[1:]) for line in lines)
    if smooth is None:
        return Partial(_total, of_lines)
    parts = [part for part in _terms(smooth) if isinstance(part, CLOSED)]
    if len(parts) == len(_terms(smooth)):
        logs = [np.log(edges / part.pivot) for part in parts]
        bands = [(0.5 * (x[1:] + x[:-1]), np.diff(x)) for x in logs]
        closed = tuple(Partial(part._in_bins, band) for part, band in zip(parts, bands, strict=True))
        return Partial(_total, (*closed, *of_lines))
    rest = _by_quadrature(smooth, edges)
    return Partial(_total, (rest, *of_lines)) if lines else rest


def _by_quadrature(spectrum: Component, edges: np.ndarray) -> Partial:
    """Photons in bins by Gauss nodes."""
    cuts = pieces(spectrum, edges)
    energy, weights = gauss(cuts)
    # Bins of one piece take a sum over its nodes, the others a small matrix: no scatter.
    bin_of_piece = np.searchsorted(edges, cuts[:-1], side="right") - 1
    num_pieces = np.bincount(bin_of_piece, minlength=len(edges) - 1)
    plain = num_pieces[bin_of_piece] == 1
    split = np.flatnonzero(num_pieces > 1)
    matrix = np.equal.outer(split, bin_of_piece[~plain])[:, :, None] * weights[~plain]
    order = np.argsort(np.concatenate([np.flatnonzero(num_pieces == 1), split]))
    nodes = np.concatenate([energy[plain].ravel(), energy[~plain].ravel()])
    return Partial(
        _quadrature, spectrum.on(nodes), weights[plain], matrix.reshape(len(split), weights[~plain].size), order
    )


def _terms(spectrum):
    return spectrum.parts if isinstance(spectrum, Sum) else (spectrum,)


def _total(parts, values):
    return functools.reduce(jnp.add, (part(values) for part in parts))


def _quadrature(on_nodes, weights, matrix, order, values):
    density = on_nodes(values)
    plain, split = density[..., : weights.size], density[..., weights.size :]
    plain = jnp.sum(plain.reshape(*plain.shape[:-1], *weights.shape) * jnp.asarray(weights, density.dtype), axis=-1)
    split = jnp.matmul(split, jnp.asarray(matrix, density.dtype).T, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([plain, split], axis=-1)[..., order]
