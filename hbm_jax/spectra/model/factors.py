"""Multiplicative components: breaks, edges, lines, partial covering, wabs, and scaling to a flux or luminosity."""

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from hbm_jax import constants
from hbm_jax.cosmology import Cosmology
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.absorbers import Absorption, _at_redshift, _Multiplicative, _redshift
from hbm_jax.spectra.model.composition import Parameter, floating, split_terms
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.spectra.model.photons import require_source
from hbm_jax.spectra.model.quadrature import LINE_WIDTH, WIDTH, check_band, integrals, pieces_of_bands

__all__ = [
    "Edge", "FluxScale", "GaussianAbsorption", "HighEnergyCutoff", "LowEnergyCutoff", "LuminosityScale",
    "PartialAbsorption", "Wabs",
]  # fmt: skip

_LN10 = math.log(10.0)
_LOG_KEV = math.log(constants.kev_in_erg)

_COLUMN = Parameter("1e22/cm^2", "LogNormal(-1.5, 1.5)", "hydrogen column density")
# Morrison & McCammon 1983, ApJ 270, 119, table 2: lower limit [keV], and c0, c1, c2 of the cross section
# (c0 + c1 E + c2 E^2) / E^3 [1e-24 cm^2 per hydrogen atom].
_WABS = np.array([
    (0.03, 17.3, 608.1, -2150.0), (0.1, 34.6, 267.9, -476.1), (0.284, 78.1, 18.8, 4.3), (0.4, 71.4, 66.8, -51.4),
    (0.532, 95.5, 145.8, -61.1), (0.707, 308.9, -380.6, 294.0), (0.867, 120.6, 169.3, -47.7),
    (1.303, 141.3, 146.8, -31.5), (1.84, 202.7, 104.7, -17.0), (2.471, 342.7, 18.7, 0.0), (3.21, 352.2, 18.7, 0.0),
    (4.038, 433.9, -2.4, 0.75), (7.111, 629.0, 30.9, 0.0), (8.331, 701.2, 25.2, 0.0),
])  # fmt: skip
_MAX_WABS = 10.0  # keV: beyond, the cross section falls as E^-3, as in XSPEC


@dataclass(frozen=True)
class _AtRedshift(_Multiplicative):
    """Factor that is a function of the energy in the frame of the source or absorber, and of its parameters."""

    _: KW_ONLY
    z: Any = 0.0

    def __post_init__(self):
        object.__setattr__(self, "z", _redshift(self.z))

    def _of_source(self, index):
        return dataclasses.replace(self, z=self.z[index]) if isinstance(self.z, tuple) else self

    def _without_tables(self):
        """Return the component with another redshift, the same for all sources."""
        return dataclasses.replace(self, z=0.0)

    def _tables(self, energy):
        return _at_redshift(energy, self.z)

    def _log(self, tables, values):
        params = self._unprefixed(values)
        energy = jnp.asarray(tables, next(iter(params.values())).dtype)
        return self._log_factor(energy, {name: value[..., None] for name, value in params.items()})

    def _log_factor(self, energy: Any, params: dict[str, Any]) -> Any:
        """Return the logarithm of the factor at energies in the frame of the source."""
        raise NotImplementedError


@dataclass(frozen=True)
class HighEnergyCutoff(_AtRedshift):
    """Exponential cut-off above an energy: exp((e_cut - E) / e_fold) for E > e_cut, 1 below; XSPEC's highecut.

    The slope is discontinuous at ``e_cut``.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    z : float or tuple
        Redshift of the source, or one for each source. Energies of parameters are those in the frame of the source.

    Examples
    --------
    >>> list(HighEnergyCutoff().parameters)
    ['e_cut', 'e_fold']
    """

    smooth: ClassVar[bool] = False
    has_moving_feature: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {
        "e_cut": Parameter("keV", "LogNormal(2.3, 1.0)", "energy above which the spectrum is cut off"),
        "e_fold": Parameter("keV", "LogNormal(2.7, 1.0)", "folding energy of the cut-off"),
    }

    def _log_factor(self, energy, params):
        return jnp.where(energy > params["e_cut"], (params["e_cut"] - energy) / params["e_fold"], 0.0)


@dataclass(frozen=True)
class LowEnergyCutoff(_AtRedshift):
    """Exponential roll-off at low energies, exp(-e_cut / E); XSPEC's expabs.

    Parameters
    ----------
    label, z
        As in `HighEnergyCutoff`.

    Examples
    --------
    >>> list(LowEnergyCutoff().parameters)
    ['e_cut']
    """

    absorbs: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {
        "e_cut": Parameter("keV", "LogNormal(0.0, 1.0)", "e-folding energy of the absorption")
    }

    def _log_factor(self, energy, params):
        return -params["e_cut"] / energy


@dataclass(frozen=True)
class Edge(_AtRedshift):
    """Absorption edge, exp(-max_tau (E / energy)^-3) at and above its energy, 1 below; XSPEC's edge and zedge.

    The factor is discontinuous at ``energy``. The derivative with respect to ``energy`` does not include the motion of
    the discontinuity: fix the energy of the edge, or give it a narrow prior and check the verdict. The derivative with
    respect to ``max_tau`` is exact.

    Parameters
    ----------
    label, z
        As in `HighEnergyCutoff`.

    Examples
    --------
    >>> list(Edge("o").parameters)
    ['o_energy', 'o_max_tau']
    """

    absorbs: ClassVar[bool] = True
    smooth: ClassVar[bool] = False
    has_moving_feature: ClassVar[bool] = True
    localised: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {
        "energy": Parameter("keV", "LogNormal(1.5, 0.7)", "energy of the edge in the frame of the absorber"),
        "max_tau": Parameter("", "HalfNormal(1.0)", "optical depth at the edge"),
    }

    def _log_factor(self, energy, params):
        return jnp.where(energy >= params["energy"], -params["max_tau"] * (params["energy"] / energy) ** 3, 0.0)


@dataclass(frozen=True)
class GaussianAbsorption(_AtRedshift):
    """Absorption line whose optical depth is a Gaussian of energy; XSPEC's gabs.

    exp(-strength N(E | energy, sigma)), with the normal density N. The optical depth at the centre of the line is
    strength / (sigma sqrt(2 pi)). Domain: sigma > 0.

    Parameters
    ----------
    label, z
        As in `HighEnergyCutoff`.

    Examples
    --------
    >>> list(GaussianAbsorption().parameters)
    ['energy', 'sigma', 'strength']
    """

    absorbs: ClassVar[bool] = True
    smooth: ClassVar[bool] = False
    has_moving_feature: ClassVar[bool] = True
    localised: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {
        "energy": Parameter("keV", "LogNormal(1.5, 0.7)", "line energy in the frame of the absorber"),
        "sigma": Parameter("keV", "LogNormal(-2.3, 0.7)", "standard deviation of the line"),
        "strength": Parameter("keV", "HalfNormal(1.0)", "optical depth integrated over energy"),
    }

    def _log_factor(self, energy, params):
        sigma = jnp.where(params["sigma"] > 0.0, params["sigma"], jnp.nan)
        u = (energy - params["energy"]) / sigma
        return -params["strength"] / (sigma * math.sqrt(2.0 * math.pi)) * jnp.exp(-0.5 * u * u)


@dataclass(frozen=True)
class PartialAbsorption(Absorption):
    """Cold matter that covers a fraction of the source, 1 - fraction + fraction exp(-nh sigma); pcfabs and zpcfabs.

    Parameters
    ----------
    label, z, model, abundances, grains, molecules
        As in `Absorption`. XSPEC's components have the cross section of ``model="phabs"``.

    Examples
    --------
    >>> list(PartialAbsorption("pc").parameters)
    ['pc_nh', 'pc_fraction']
    """

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Column density and covered fraction, and the redshift if it is not fixed."""
        column, *others = super().own_parameters.items()
        fraction = ("fraction", Parameter("", "Uniform(0.0, 1.0)", "covered fraction of the source"))
        return dict([column, fraction, *others])

    @property
    def logarithmic(self) -> bool:
        """Always False: the logarithm has no finite gradient where nothing is transmitted."""
        return False

    def _evaluate(self, tables, values):
        fraction = self._unprefixed(values)["fraction"][..., None]
        return 1.0 + fraction * jnp.expm1(self._log(tables, values))


@dataclass(frozen=True)
class Wabs(_AtRedshift):
    """Absorption by cold matter with the cross sections of Morrison & McCammon (1983), XSPEC's wabs and zwabs.

    For comparison with published fits: the abundances are those of Anders & Ebihara (1982). The cross section is that
    of XSPEC's wabs to 2e-5 from 0.1 to 10 keV, and to 1e-3 up to 20 keV (``tests/spectra/test_more_components.py``);
    above 10 keV it falls as E^-3. `on` raises ValueError for energies below 0.03 keV in the frame of the absorber.

    Parameters
    ----------
    label, z
        As in `HighEnergyCutoff`.

    Examples
    --------
    >>> list(Wabs("mw").parameters)
    ['mw_nh']
    """

    absorbs: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {"nh": _COLUMN}

    def _tables(self, energy):
        """Return the cross section [1e-22 cm^2 per H]."""
        energy = np.asarray(_at_redshift(energy, self.z))
        if not (energy >= _WABS[0, 0] * (1.0 - 1e-6)).all():
            raise ValueError(f"{self}: expected energies above 0.03 keV at the absorber; found {energy.min():g} keV.")
        row = np.maximum(np.searchsorted(_WABS[:, 0], energy, side="right") - 1, 0)
        c0, c1, c2 = (_WABS[row, column] for column in (1, 2, 3))
        low = np.minimum(energy, _MAX_WABS)
        return 0.01 * (c0 + c1 * low + c2 * low**2) / energy**3  # from 1e-24 to 1e-22 cm^2

    def _log_factor(self, energy, params):
        return -params["nh"] * energy  # the table is the cross section

    def discontinuities(self, low: float, high: float) -> np.ndarray:
        """Return the energies of the absorption edges [keV]."""
        stretch = 1.0 + np.unique(np.ravel(self.z))
        edges = np.unique(np.append(_WABS[1:, 0], _MAX_WABS) / stretch[:, None])
        return edges[(edges > low) & (edges < high)]


@dataclass(frozen=True)
class FluxScale(_Multiplicative):
    """Factor that scales an expression to the energy flux ``log10_flux`` in a band, XSPEC's cflux.

    One normalisation of the expression has no effect and must be fixed, as in XSPEC:
    ``priors={"log10_amplitude": 0.0}``. Raises ValueError if the expression is not additive, or the band is invalid.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    of : Component
        The additive expression to be scaled. The factor multiplies this expression: ``FluxScale(of=a) * a``, which in
        text is ``cflux(a)``.
    band : (float, float)
        Observed band [keV].

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import Absorption, PowerLaw
    >>> bare = PowerLaw(norm="amplitude")
    >>> list((FluxScale(of=bare, band=(0.5, 2.0)) * bare * Absorption()).parameters)
    ['log10_flux', 'photon_index', 'log10_amplitude', 'nh']
    """

    flat: ClassVar[bool] = True
    _: KW_ONLY
    of: Any = None
    band: tuple[float, float] = (0.5, 10.0)

    def __post_init__(self):
        require_source(self.of, type(self).__name__, "cflux")
        if np.shape(self.band) != (2,):
            raise ValueError(f"band: expected two energies (low, high) [keV]; found {self.band!r}.")
        low, high = (float(limit) for limit in self.band)
        check_band(low, high)
        object.__setattr__(self, "band", (low, high))

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """The flux."""
        band = f"{self.band[0]:g} to {self.band[1]:g} keV"
        return {"log10_flux": Parameter("erg/cm^2/s", "Normal(-11.0, 2.0)", f"energy flux in the observed band {band}")}

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The flux, and the parameters of the expression."""
        return super().parameters | self.of.parameters

    @property
    def shared_parameters(self) -> frozenset[str]:
        """Names of the parameters of the expression."""
        return frozenset(self.of.parameters)

    def mapped(self, change):
        """Return the factor with each component of its expression changed."""
        return change(dataclasses.replace(self, of=self.of.mapped(change)))

    def _without_tables(self):
        """Return the component with another band, the same for all sources."""
        return dataclasses.replace(self, band=(1.0, 2.0))

    def _observed_band(self) -> tuple[float, float]:
        return self.band

    def _log10_area(self) -> float:
        """Return log10 of the area [cm^2] that relates the parameter to a flux; 0 for a flux."""
        return 0.0

    def _tables(self, energy):
        """Return ones at the energies, the function for the flux of the expression, and `_log10_area`."""
        rows = np.shape(energy)[:-1]
        low, high = (np.full(rows, limit) for limit in self._observed_band())
        smooth, lines = split_terms(self.of, lambda part: part.integrable and not part.smooth)
        edges = pieces_of_bands(self.of, low, high, LINE_WIDTH if lines else WIDTH)
        return np.ones(np.shape(energy)), integrals(smooth, lines, edges, 1), np.asarray(self._log10_area())

    def _log(self, tables, values):
        """Return ln of the wanted flux over the flux of the expression, equal at all energies."""
        ones, flux, log10_area = tables
        params = floating(self, values)
        log10_scaled = self._unprefixed(values)[next(iter(self.own_parameters))]
        unscaled = jnp.sum(flux(params), axis=-1)  # keV/cm^2/s
        log = _LN10 * (log10_scaled - jnp.asarray(log10_area, unscaled.dtype)) - _LOG_KEV - jnp.log(unscaled)
        return log[..., None] * jnp.asarray(ones, log.dtype)


@dataclass(frozen=True)
class LuminosityScale(FluxScale):
    """Factor that scales an expression to the luminosity ``log10_luminosity`` in a rest-frame band, XSPEC's clumin.

    Parameters
    ----------
    label, of
        As in `FluxScale`; in text ``clumin(a, z=0.5)``.
    band : (float, float)
        Band in the frame of the source [keV].
    z : float, tuple or None
        Redshift of the source, above 0; a tuple gives one for each source. None if a population of sources provides
        redshifts, as `hbm_jax.models.SpectralPopulation` does.
    cosmology : Cosmology
        Background cosmology, by default with H0 = 70 km/s/Mpc and Om0 = 0.27, as in XSPEC.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> bare = PowerLaw(norm="amplitude")
    >>> list((LuminosityScale(of=bare, z=0.5) * bare).parameters)
    ['log10_luminosity', 'photon_index', 'log10_amplitude']
    """

    _: KW_ONLY
    z: Any = 0.0
    cosmology: Cosmology = dataclasses.field(default_factory=lambda: Cosmology.flat(H0=70.0, Om0=0.27))

    def __post_init__(self):
        super().__post_init__()
        if self.z is None:
            return
        object.__setattr__(self, "z", _redshift(self.z))
        if not np.min(self.z) > 0.0:
            raise ValueError(f"z: expected a redshift above 0, as in clumin(powerlaw, z=0.5); found {self.z}.")

    def _of_source(self, index):
        return dataclasses.replace(self, z=self.z[index]) if isinstance(self.z, tuple) else self

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """The luminosity."""
        band = f"{self.band[0]:g} to {self.band[1]:g} keV of the source"
        return {"log10_luminosity": Parameter("erg/s", "Normal(44.0, 3.0)", f"luminosity in the band {band}")}

    def _observed_band(self):
        if self.z is None:
            raise ValueError("clumin: expected a redshift, as in clumin(powerlaw, z=0.5); found None.")
        stretch = 1.0 + np.asarray(self.z)
        return self.band[0] / stretch, self.band[1] / stretch

    def _log10_area(self):
        return precomputed(lambda: np.asarray(log10_sphere_area(np.asarray(self.z), self.cosmology)))

    def _without_tables(self):
        """Return the component with another band and redshift, the same for all sources."""
        return dataclasses.replace(self, band=(1.0, 2.0), z=1.0)
