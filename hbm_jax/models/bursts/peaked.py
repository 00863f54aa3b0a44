"""Spectra of bursts: model expressions with a peak energy, to which their energy flux is tied."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from hbm_jax import constants
from hbm_jax.models.varying import Varying, varying_of
from hbm_jax.names import did_you_mean
from hbm_jax.spectra.model.components import Band, Component, CutoffPowerLaw
from hbm_jax.spectra.model.composition import components_of
from hbm_jax.spectra.model.text import spectrum_from_text

PIVOT = 100.0  # keV
NAMED = {"band": Band(pivot=PIVOT), "cutoff": CutoffPowerLaw(pivot=PIVOT, peak=True)}
PEAK, AMPLITUDE, FLUX = "e_peak", "log10_amplitude", "log10_flux"
# Populations of the parameters of Band functions and cut-off power laws.
POPULATIONS = {
    PEAK: Varying(PEAK, "log10_E_peak", "log10", "keV", (2.6, 0.5), 0.5, 0.8, 0.05),
    "alpha": Varying("alpha", "alpha", "linear", "", (-0.8, 0.4), 0.4, 0.6, 0.05),
    "beta": Varying("beta", "beta", "linear", "", (-2.5, 0.4), 0.4, 0.5, 0.05),
    "photon_index": Varying("photon_index", "alpha", "negative", "", (-0.8, 0.4), 0.4, 0.6, 0.05),
}
# Population of the flux of any component except the one with the peak energy.
OTHER_FLUX = Varying(FLUX, FLUX, "linear", "erg/cm^2/s", (-6.5, 1.0), 0.5, 1.0, 0.1)
RESERVED = (FLUX, "gamma", "log10_N", "log10_luminosity", "effective_area", "counts")  # other sites of the program
HINGE = 0.05  # width of the smooth clip of an index at the bound of its domain
# Trial spectra, which bracket those of bursts: observed peak energies [keV], and indices.
_TRIALS = {
    PEAK: (20.0, 60.0, 200.0, 600.0, 2000.0),
    "alpha": (-1.6, -1.0, -0.3),
    "photon_index": (1.6, 1.0, 0.3),
    "beta": (-3.5, -2.6, -2.1),
}
_TRIAL_BAND, _TRIAL_FLUX = (1.0, 1e4), -6.0
_MIN_TRIALS = 45


@dataclass(frozen=True)
class PeakedSpectrum:
    """Model expression in which one component has a peak energy; the energy flux of that component is a parameter.

    Attributes
    ----------
    expression : Component
        The expression, with the component normalised by its amplitude.
    peak : Component
        The component with the peak energy.
    sites : tuple of Varying
        All parameters but the amplitude, each with its population: the peak energy in the rest frame first.
    """

    expression: Component
    peak: Component
    sites: tuple[Varying, ...]

    @classmethod
    def of(cls, spectrum: "Component | str | PeakedSpectrum") -> "PeakedSpectrum":
        """Read an expression, its text, or one of the names ``"band"`` and ``"cutoff"``.

        Raises ValueError if the text cannot be read, or unless one component has a parameter ``e_peak`` and is
        normalised by a flux or an amplitude.
        """
        return spectrum if isinstance(spectrum, PeakedSpectrum) else _read(spectrum)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites of an interval, the flux last."""
        return (*(varying.site for varying in self.sites), FLUX)

    def parameters(self, values: Mapping[str, Any], log10_stretch, low, high) -> dict[str, Any]:
        """Return the parameters of the expression in the observer's frame, (I,) each.

        Parameters
        ----------
        values : mapping of str to (I,) array
            Values of all sites, the flux included.
        log10_stretch : (I,)
            log10 of 1 + z.
        low, high : (I,)
            Observed band of the energy flux of the component with the peak [keV].
        """
        values = self.in_domain(values)
        values["log10_E_peak"] = values["log10_E_peak"] - log10_stretch
        parameters = {v.parameter: v.value(values[v.site]) for v in self.sites}
        amplitude = self.peak._prefixed(AMPLITUDE)
        unit = parameters | {amplitude: jnp.zeros_like(values[FLUX])}
        log10_unit = jnp.log10(constants.kev_in_erg * self.peak.integral(unit, low, high, 1))
        return parameters | {amplitude: values[FLUX] - log10_unit}

    def in_domain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values of sites with alpha softly clipped above -2, as a peak requires, and beta below alpha."""
        if not isinstance(self.peak, Band | CutoffPowerLaw):
            return dict(values)
        alpha = -2.0 + _soft_positive(values["alpha"] + 2.0)
        beta = {"beta": alpha - _soft_positive(alpha - values["beta"])} if isinstance(self.peak, Band) else {}
        return {**values, "alpha": alpha, **beta}

    @property
    def trial_expression(self) -> Component:
        """The expression with a flux in place of the amplitude, for the trial spectra of a fold."""

        def with_flux(part):
            return dataclasses.replace(part, norm=_TRIAL_BAND) if part == self.peak and hasattr(part, "norm") else part

        return self.expression.mapped(with_flux)

    @property
    def trials(self) -> dict[str, np.ndarray]:
        """Parameters of spectra that bracket those of bursts, (num_trials,) each."""
        indices = [name for name in _peak_populations(self.peak) if name in self.peak.own_parameters and name != PEAK]
        names = [PEAK, *indices]
        grid = np.meshgrid(*(_TRIALS[name] for name in names), indexing="ij")
        peak_values = {self.peak._prefixed(name): axis.ravel() for name, axis in zip(names, grid, strict=True)}
        rng, others = np.random.default_rng(0), [v for v in self.sites if v.parameter not in peak_values]
        # The grid is repeated until there are enough random values of the other parameters.
        num = grid[0].size * (-(-_MIN_TRIALS // grid[0].size) if others else 1)
        values = {name: np.resize(column, num) for name, column in peak_values.items()}
        values |= {v.parameter: np.asarray(v.spread(rng.uniform(-1.0, 1.0, num))) for v in others}
        norm = {FLUX: _TRIAL_FLUX} if hasattr(self.peak, "norm") else {AMPLITUDE: 0.0}
        return values | {self.peak._prefixed(name): np.full(num, value) for name, value in norm.items()}


def _read(spectrum: Any) -> PeakedSpectrum:
    """Return the expression with its peak and the populations of its parameters."""
    if isinstance(spectrum, str):
        try:
            spectrum = NAMED[spectrum] if spectrum in NAMED else spectrum_from_text(spectrum)
        except ValueError as error:
            raise ValueError(f"{error} Or {' or '.join(map(repr, NAMED))}{did_you_mean(spectrum, NAMED)}.") from None
    parts = components_of(spectrum) if isinstance(spectrum, Component) else ()
    peaks = [part for part in parts if PEAK in part.own_parameters]
    if len(peaks) != 1:
        raise ValueError(
            "spectrum of bursts: expected an expression in which one component has a peak energy "
            f"{PEAK}, such as Band() or CutoffPowerLaw(peak=True); found {spectrum}."
        )
    peak: Any = peaks[0]
    peak = dataclasses.replace(peak, norm="amplitude") if hasattr(peak, "norm") else peak
    if AMPLITUDE not in peak.own_parameters:
        raise ValueError(f"spectrum of bursts: expected a parameter {AMPLITUDE} of {peak}; found none.")
    expression = spectrum.mapped(lambda part: peak if part is peaks[0] else part)
    peak_parameters = {peak._prefixed(name): name for name in peak.own_parameters}
    populations = _peak_populations(peak)

    def varying(name):
        """Return the population of a parameter of the expression."""
        if peak_parameters.get(name) in populations:
            return dataclasses.replace(populations[peak_parameters[name]], parameter=name)
        if name.endswith(FLUX):
            return dataclasses.replace(OTHER_FLUX, parameter=name, site=name)
        return varying_of(name, expression.parameters[name])

    sites = [varying(name) for name in expression.parameters if peak_parameters.get(name) != AMPLITUDE]
    # The peak energy first, then the other parameters of its component.
    sites.sort(key=lambda v: (peak_parameters.get(v.parameter) != PEAK, v.parameter not in peak_parameters))
    names = [v.site for v in sites]
    repeated = [name for name in names if names.count(name) > 1 or name in RESERVED]
    if repeated:
        raise ValueError(
            f"spectrum of bursts: expected no second parameter named {repeated[0]!r}; give its component a label."
        )
    return PeakedSpectrum(expression, peak, tuple(sites))


def _peak_populations(component: Component) -> dict[str, Varying]:
    """Return the populations of parameters of a component with a peak that do not follow from default priors."""
    return POPULATIONS if isinstance(component, Band | CutoffPowerLaw) else {PEAK: POPULATIONS[PEAK]}


def _soft_positive(x):
    """Return a smooth positive function, about x for x well above 0 and about 0 for x below 0 (softplus)."""
    return HINGE * jnp.logaddexp(x / HINGE, 0.0)
