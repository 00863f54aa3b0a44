"""Additive components of spectral models."""

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.spectra.model import shapes
from hbm_jax.spectra.model.absorbers import Absorption, Constant, Whim, _redshift
from hbm_jax.spectra.model.composition import Component, Parameter, Product, Sum, Values
from hbm_jax.spectra.model.photons import photons
from hbm_jax.spectra.model.quadrature import check_band, interpolation_weights
from hbm_jax.validation import concrete

__all__ = [
    "Absorption", "Band", "BlackBody", "BrokenPowerLaw", "Component", "Constant", "CutoffPowerLaw", "GaussianLine",
    "LogParabola", "Parameter", "PowerLaw", "Product", "Sum", "Whim", "photons",
]  # fmt: skip

Norm = Literal["amplitude"] | tuple[float, float]
_LN10 = math.log(10.0)
_LOG_KEV = math.log(constants.kev_in_erg)
# photons/cm^2/s/keV^3 for a radius of 1 km at 10 kpc: XSPEC's value. Physical constants give 1.0380e-3, 0.35 % more.
_BLACK_BODY = 1.0344e-3


@dataclass(frozen=True)
class _Additive(Component):
    """Additive component: a spectral shape, normalised by its amplitude or by its energy flux in a band."""

    _: KW_ONLY
    norm: Norm = (0.3, 10.0)
    pivot: float = 1.0
    z: Any = 0.0
    flux_prior: ClassVar[str] = "Normal(-11.0, 2.0)"
    amplitude: ClassVar[Parameter] = Parameter(
        "photons/cm^2/s/keV", "Normal(-3.0, 2.0)", "photon flux density of the low-energy power law at the pivot energy"
    )
    smooth: ClassVar[bool] = True
    shape_parameters: ClassVar[dict[str, Parameter]]
    # The spectrum of amplitude 1 is unit * pivot^unit_power * exp(_log_shape), with energies in units of the pivot.
    unit: ClassVar[float] = 1.0
    unit_power: ClassVar[float] = 0.0

    def __post_init__(self):
        if not (np.ndim(self.pivot) == 0 and 0 < self.pivot < math.inf):
            raise ValueError(f"pivot: expected a positive energy [keV]; found {self.pivot}.")
        object.__setattr__(self, "z", _redshift(self.z))
        if isinstance(self.norm, str) and self.norm == "amplitude":
            return
        if isinstance(self.norm, str) or np.shape(self.norm) != (2,):
            raise ValueError(f"norm: expected 'amplitude' or a band (low, high) [keV]; found {self.norm!r}.")
        low, high = (float(limit) for limit in self.norm)
        check_band(low, high, "norm")
        object.__setattr__(self, "norm", (low, high))

    def _of_source(self, index):
        return dataclasses.replace(self, z=self.z[index]) if isinstance(self.z, tuple) else self

    @property
    def _pivot(self) -> Any:
        """Observed pivot energy [keV], (N,) for N redshifts."""
        return self.pivot / (1.0 + np.asarray(self.z)) if isinstance(self.z, tuple) else self.pivot / (1.0 + self.z)

    @property
    def _pivot_column(self) -> Any:
        """Observed pivot energy [keV] that broadcasts against energies, (N, 1) for N redshifts."""
        return self._pivot[:, None] if isinstance(self.z, tuple) else self._pivot

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        if self.norm == "amplitude":
            return self.shape_parameters | {"log10_amplitude": self.amplitude}
        band = f"{self.norm[0]:g} to {self.norm[1]:g} keV"
        flux = Parameter("erg/cm^2/s", self.flux_prior, f"unabsorbed energy flux in the observed band {band}")
        return self.shape_parameters | {"log10_flux": flux}

    def _log_shape(self, x: Any, energy: Any, params: dict[str, jax.Array]) -> jax.Array:
        """Return the logarithm of the shape at x = ln(E / pivot) and energy = E / pivot."""
        raise NotImplementedError

    def _log_integral(self, middle: Any, width: Any, power: int, params: dict[str, jax.Array]) -> jax.Array:
        """Return the logarithm of the integral of energy^power times the shape over a band in x; here by quadrature."""
        columns = {name: jnp.expand_dims(value, -1) for name, value in params.items()}

        def integrand(x):
            return (power + 1.0) * x + self._log_shape(x, jnp.exp(x), columns)

        return jnp.log(width) + shapes.log_mean(integrand, middle, width)

    def _log_scale(self, params: dict[str, jax.Array]) -> jax.Array:
        """Return the logarithm of the factor that normalises the shape."""
        if self.norm == "amplitude":
            return _LN10 * params["log10_amplitude"] + math.log(self.unit) + self.unit_power * math.log(self.pivot)
        log10_flux = params["log10_flux"]
        band = _band(*self.norm, self._pivot, log10_flux.dtype)
        # The flux in keV/cm^2/s is the factor times pivot^2 times the integral of energy times shape over the band.
        log_pivot = _log_pivot(self._pivot, log10_flux.dtype)
        return _LN10 * log10_flux - (_LOG_KEV + 2.0 * log_pivot) - self._log_integral(*band, 1, params)

    def _tables(self, energy):
        """Return ln(E / pivot) and E / pivot."""
        return _log_energy(energy, self._pivot_column), energy / self._pivot_column

    def _log(self, tables, values):
        params = self._unprefixed(values)
        x, energy = (jnp.asarray(table, next(iter(params.values())).dtype) for table in tables)
        scale = self._log_scale(params)[..., None]
        return scale + self._log_shape(x, energy, {name: value[..., None] for name, value in params.items()})

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Return the integral as in `Component.integral`; the band may be traced."""
        check_band(low, high)
        params = self._unprefixed(values)
        scale = self._log_scale(params)
        log = self._log_integral(*_band(low, high, self._pivot, scale.dtype), power, params)
        return jnp.exp(scale + log + (power + 1.0) * _log_pivot(self._pivot, scale.dtype))

    def _limits(self, edges):
        """Return middle and width of the bins in ln(E / pivot)."""
        logs = np.log(edges / self._pivot_column)
        return 0.5 * (logs[..., 1:] + logs[..., :-1]), np.diff(logs)

    def _integrals(self, limits, values):
        """Return the photons in the bins, (..., K)."""
        params = self._unprefixed(values)
        # dE is the pivot energy times d(E / pivot).
        scale = self._log_scale(params)[..., None]
        scale = scale + _log_pivot(self._pivot_column, scale.dtype)
        middle, width = (jnp.asarray(column, scale.dtype) for column in limits)
        log = self._log_integral(middle, width, 0, {name: value[..., None] for name, value in params.items()})
        return jnp.exp(scale + log)


def _log_pivot(pivot: Any, dtype: Any) -> Any:
    """Return the logarithm of one pivot energy, or of those of several sources."""
    return math.log(pivot) if np.ndim(pivot) == 0 else jnp.asarray(np.log(pivot), dtype)


def _log_energy(energy: Any, pivot: Any) -> Any:
    """Return ln(energy / pivot), in double precision unless the energy is traced."""
    numbers = concrete(energy)
    return jnp.log(jnp.asarray(energy) / pivot) if numbers is None else np.log(numbers / pivot)


def _band(low: Any, high: Any, pivot: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return the middle and width of a band in ln(E / pivot)."""
    low, high = _log_energy(low, pivot), _log_energy(high, pivot)
    return jnp.asarray(0.5 * (low + high), dtype), jnp.asarray(high - low, dtype)


_INDEX = Parameter("", "Normal(2.0, 1.0)", "photon index: photons/keV fall as E^-photon_index")


@dataclass(frozen=True)
class PowerLaw(_Additive):
    """Power law, N(E) proportional to E^-photon_index.

    Integrals and all their derivatives are finite at every photon index, including the energy flux at index 2 and the
    photon flux at index 1. Raises ValueError if the norm, the pivot energy or the redshift is invalid.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    norm : "amplitude" or (float, float)
        Normalisation. ``"amplitude"``: the parameter is ``log10_amplitude``, the photon flux density at the pivot
        energy [photons/cm^2/s/keV]. An observed band (low, high) [keV]: the parameter is ``log10_flux``, the unabsorbed
        energy flux in that band [erg/cm^2/s].
    pivot : float
        Pivot energy [keV].
    z : float or tuple
        Redshift of the source. A tuple gives one for each source; energies then have one row per source. Energies of
        parameters and the pivot are those in the frame of the source; the observed spectrum is N(E (1 + z)), as in
        XSPEC's zpowerlw. The band of ``norm`` is observed.

    Examples
    --------
    >>> spectrum = PowerLaw()
    >>> on_grid = spectrum.on([0.5, 1.0, 2.0])
    >>> on_grid({"photon_index": 2.0, "log10_flux": -11.0}).shape
    (3,)
    """

    integrable: ClassVar[bool] = True
    shape_parameters: ClassVar[dict[str, Parameter]] = {"photon_index": _INDEX}

    def _log_shape(self, x, energy, params):
        return -params["photon_index"] * x

    def _log_integral(self, middle, width, power, params):
        return jnp.log(width) + shapes.log_mean_power(power + 1.0 - params["photon_index"], middle, width)


@dataclass(frozen=True)
class BrokenPowerLaw(_Additive):
    """Broken power law.

    Continuous at the break. The derivative of the flux density at energy E with respect to ``energy_break`` is
    discontinuous at ``energy_break`` = E; that of the photons in a bin is continuous.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is that of the low-energy power law at the pivot energy, as in XSPEC's bknpower,
        even if the break lies below the pivot.

    Examples
    --------
    >>> list(BrokenPowerLaw(norm="amplitude").parameters)
    ['photon_index', 'photon_index_high', 'energy_break', 'log10_amplitude']
    """

    smooth: ClassVar[bool] = False
    integrable: ClassVar[bool] = True
    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "photon_index": dataclasses.replace(_INDEX, help="photon index below the break"),
        "photon_index_high": dataclasses.replace(_INDEX, help="photon index above the break"),
        "energy_break": Parameter("keV", "LogNormal(0.7, 1.0)", "break energy"),
    }

    def _arguments(self, params):
        log_break = jnp.log(params["energy_break"]) - math.log(self.pivot)
        return params["photon_index"], params["photon_index_high"], log_break

    def _log_shape(self, x, energy, params):
        low, high, log_break = self._arguments(params)
        return -low * jnp.minimum(x, log_break) - high * jnp.maximum(x - log_break, 0.0)

    def _log_integral(self, middle, width, power, params):
        return shapes.log_broken_power_law_integral(middle, width, power, *self._arguments(params))


@dataclass(frozen=True)
class CutoffPowerLaw(_Additive):
    """Power law with an exponential cut-off, E^-photon_index exp(-E / e_cut).

    With ``e_peak`` the domain is photon_index <= 2: E^2 N(E) of a steeper spectrum has no peak, and the result is NaN.
    At photon_index = 2 there is no cut-off. The energy flux in the band ``norm`` is computed with 64 quadrature nodes;
    ``tests/spectra/test_energetics.py`` asserts its error.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is that of the power law without the cut-off, as in XSPEC's cutoffpl.
    peak : bool
        True: use the parameter ``e_peak`` = (2 - photon_index) e_cut, the energy at which E^2 N(E) is largest, instead
        of ``e_cut``.

    Examples
    --------
    >>> list(CutoffPowerLaw(peak=True).parameters)
    ['photon_index', 'e_peak', 'log10_flux']
    """

    _: KW_ONLY
    peak: bool = False

    @property
    def shape_parameters(self) -> dict[str, Parameter]:  # type: ignore[override]
        """Photon index, and energy of the cut-off or the peak."""
        if not self.peak:
            cut = Parameter("keV", "LogNormal(2.3, 1.5)", "cut-off energy")
            return {"photon_index": _INDEX, "e_cut": cut}
        return {
            "photon_index": dataclasses.replace(_INDEX, prior="TruncatedNormal(1.0, 0.5, high=2.0)"),
            "e_peak": Parameter("keV", "LogNormal(2.3, 1.5)", "energy at which E^2 N(E) is largest"),
        }

    def _log_shape(self, x, energy, params):
        index = params["photon_index"]
        rate = (2.0 - index) / params["e_peak"] if self.peak else 1.0 / params["e_cut"]
        return -index * x - jnp.where(rate >= 0.0, rate, jnp.nan) * self.pivot * energy


@dataclass(frozen=True)
class LogParabola(_Additive):
    """Power law whose index changes with the logarithm of energy, (E / pivot)^-(alpha + beta log10(E / pivot)).

    The energy flux in the band ``norm`` is computed with 64 quadrature nodes: its relative error is below 1e-12 for
    bands of four decades and a curvature ``beta`` from -3 to 3 (``tests/spectra/test_more_components.py``).

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is that at the pivot energy, as in XSPEC's logpar.

    Examples
    --------
    >>> list(LogParabola(norm="amplitude").parameters)
    ['alpha', 'beta', 'log10_amplitude']
    """

    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "alpha": dataclasses.replace(_INDEX, help="photon index at the pivot energy"),
        "beta": Parameter("", "Normal(0.0, 1.0)", "half the change of the photon index per decade of energy"),
    }

    def _log_shape(self, x, energy, params):
        return -(params["alpha"] + params["beta"] / _LN10 * x) * x


@dataclass(frozen=True)
class Band(_Additive):
    """Band function of gamma-ray bursts: E^alpha exp(-E / E_0) below a break and E^beta above it.

    Band et al. 1993, ApJ 413, 281. ``alpha`` and ``beta`` are signed photon indices; ``e_peak`` = (2 + alpha) E_0 is
    the energy at which E^2 N(E) is largest, if beta < -2. The break is at (alpha - beta) E_0, where the function and
    all its first derivatives are continuous. Domain: alpha >= -2, alpha >= beta, e_peak > 0; NaN elsewhere. At alpha =
    -2 cut-off and break are at infinity; the limit is E^-2, with a finite gradient. At alpha = beta the break is at 0;
    the limit is E^beta. Its gradient is finite and correct for a norm by flux; that of a norm by amplitude is infinite,
    and its finite part is returned.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is that of E^alpha at the pivot energy, as in XSPEC's grbm.

    Examples
    --------
    >>> Band(norm=(8.0, 1000.0)).parameters["e_peak"].unit
    'keV'
    """

    _: KW_ONLY
    norm: Norm = (10.0, 1000.0)
    pivot: float = 100.0
    flux_prior: ClassVar[str] = "Normal(-6.0, 2.0)"
    amplitude: ClassVar[Parameter] = dataclasses.replace(_Additive.amplitude, prior="Normal(-2.0, 2.0)")
    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "alpha": Parameter("", "TruncatedNormal(-1.0, 0.5, low=-2.0)", "low-energy photon index, E^alpha"),
        "beta": Parameter("", "TruncatedNormal(-2.5, 0.5, high=-2.0)", "high-energy photon index, E^beta"),
        "e_peak": Parameter("keV", "LogNormal(5.3, 1.0)", "energy at which E^2 N(E) is largest"),
    }

    def _arguments(self, params):
        return params["alpha"], params["beta"], params["e_peak"] / self.pivot

    def _log_shape(self, x, energy, params):
        return shapes.log_band(x, energy, *self._arguments(params))

    def _log_integral(self, middle, width, power, params):
        return shapes.log_band_integral(middle, width, power, *self._arguments(params))


@dataclass(frozen=True)
class BlackBody(_Additive):
    """Black body, A(E) = 1.0344e-3 K E^2 / (exp(E / kT) - 1).

    1.0344e-3 is the value of XSPEC, so that K is that of bbodyrad. Physical constants give 1.0380e-3, and therefore a
    radius smaller by 0.17 %.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is K = (R / km)^2 / (D / 10 kpc)^2, as in XSPEC's bbodyrad, for any pivot.

    Examples
    --------
    >>> list(BlackBody(norm="amplitude").parameters)
    ['kT', 'log10_amplitude']
    """

    amplitude: ClassVar[Parameter] = Parameter("(km / 10 kpc)^2", "Normal(2.0, 2.0)", "(radius over distance)^2")
    unit: ClassVar[float] = _BLACK_BODY
    unit_power: ClassVar[float] = 2.0
    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "kT": Parameter("keV", "LogNormal(-1.0, 1.0)", "temperature in the frame of the source")
    }

    def _log_shape(self, x, energy, params):
        return shapes.log_black_body(x, energy, params["kT"] / self.pivot)


@dataclass(frozen=True)
class GaussianLine(_Additive):
    """Emission line with a Gaussian profile in energy.

    ``energy`` and ``sigma`` are those in the frame of the source [keV]; the result is NaN for a negative sigma. At any
    width, including 0, `photons` and `hbm_jax.models.SpectralFit` count all photons of the line, and absorbers act at
    the energies of the line (``tests/spectra/test_line_widths.py``). A response does not resolve energies within a bin,
    so the likelihood of a line much narrower than the bins is constant in ``energy`` within each bin: use a sigma of
    about one bin width if the line energy is a free parameter. The derivative with respect to the energy of a line of
    zero width is that within a bin (0 without absorbers); it does not include the move of the photons to the next bin.
    All other derivatives are exact.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    norm : "amplitude" or (float, float)
        ``"amplitude"`` (the default): ``log10_amplitude``, the photon flux of the whole line [photons/cm^2/s], as in
        XSPEC's gauss. A band, as in `PowerLaw`: ``log10_flux``, the energy flux of the line within that band.
    pivot : float
        Has no effect.
    z : float or tuple
        Redshift of the source, as in `PowerLaw`. The observed photon flux is the amplitude divided by 1 + z, as in
        XSPEC's zgauss.

    Examples
    --------
    >>> list((PowerLaw() + GaussianLine("fe")).parameters)
    ['photon_index', 'log10_flux', 'fe_energy', 'fe_sigma', 'fe_log10_amplitude']
    """

    _: KW_ONLY
    norm: Norm = "amplitude"
    narrow: ClassVar[bool] = True
    localised: ClassVar[bool] = True
    smooth: ClassVar[bool] = False
    integrable: ClassVar[bool] = True
    flux_prior: ClassVar[str] = "Normal(-13.0, 2.0)"
    amplitude: ClassVar[Parameter] = Parameter("photons/cm^2/s", "Normal(-5.0, 2.0)", "photon flux of the whole line")
    unit_power: ClassVar[float] = -1.0
    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "energy": Parameter("keV", "LogNormal(1.5, 0.7)", "line energy in the frame of the source"),
        "sigma": Parameter("keV", "LogNormal(-2.3, 0.7)", "standard deviation of the line in the frame of the source"),
    }

    def _arguments(self, params):
        return params["energy"] / self.pivot, params["sigma"] / self.pivot

    def _log_shape(self, x, energy, params):
        return shapes.log_gaussian_line(energy, *self._arguments(params))

    def _log_integral(self, middle, width, power, params):
        return shapes.log_gaussian_line_integral(middle, width, power, *self._arguments(params))

    def _limits(self, edges):
        return edges / self._pivot_column  # energies, not logarithms: adjacent bins share an edge and lose no photon

    def _integrals(self, limits, values):
        def fractions(*line):
            """Return the fractions of the line, and no moments."""
            return shapes.gaussian_line_fractions(*line), ()

        photons, _ = self._photons(limits, values, fractions)
        return photons

    @staticmethod
    def _sum_of_integrals(components, limits, values):
        """Return the photons of lines in bins; lines of one source in many bins are evaluated together."""
        lines = [line._scaled(values) for line in components]
        shapes_of_lines = [np.shape(array) for line in lines for array in line]
        num = limits.shape[-1]
        if num < shapes.MANY_EDGES or any(math.prod(shape) != 1 for shape in (limits.shape[:-1], *shapes_of_lines)):
            return Component._sum_of_integrals(components, limits, values)
        columns = zip(*lines, strict=True)
        log_scale, centre, sigma = (jnp.stack([jnp.reshape(array, ()) for array in column]) for column in columns)
        edges = jnp.asarray(limits, log_scale.dtype).reshape(-1)
        total = shapes.sum_of_gaussian_lines(edges, jnp.exp(log_scale), centre, sigma)
        return total.reshape(*np.broadcast_shapes(limits.shape, *shapes_of_lines)[:-1], num - 1)

    def _integrals_and_weights(self, limits, tables, values):
        photons, moments = self._photons(limits, values, shapes.gaussian_line_moments)
        return photons, interpolation_weights(moments)

    def _weight_tables(self, edges):
        return None

    def _photons(self, edges, values, function):
        """Return the photons in bins, and the moments of the photons in each.

        ``function`` of (edges, centre, sigma) returns the fraction of the line in each bin, and the moments.
        """
        log_scale, *line = self._scaled(values)
        fractions, moments = function(jnp.asarray(edges, log_scale.dtype), *line)
        return jnp.exp(log_scale) * fractions, moments

    def _scaled(self, values):
        """Return the logarithm of the photons of the whole line, its centre and sigma over the pivot, (..., 1)."""
        params = self._unprefixed(values)
        # dE is the pivot energy times d(E / pivot).
        log_scale = self._log_scale(params)[..., None]
        log_scale = log_scale + _log_pivot(self._pivot_column, log_scale.dtype)
        return log_scale, *self._arguments({name: value[..., None] for name, value in params.items()})
