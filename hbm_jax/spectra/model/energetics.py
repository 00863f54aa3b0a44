"""Fluxes, luminosities and energies of a spectral model, for parameter values such as posterior draws.

Parameter values and z broadcast against each other, and the result has their common shape (...). All functions can be
compiled and differentiated. Band limits and z may be traced if the spectrum has no absorbers.

Fluxes of `PowerLaw` and `BrokenPowerLaw` are closed forms; for other spectra see `Component.integral`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.cosmology import Cosmology
from hbm_jax.cosmology.distances import luminosity_distance
from hbm_jax.names import choose
from hbm_jax.spectra.folding.area_errors import without_instrument
from hbm_jax.spectra.model.components import GaussianLine
from hbm_jax.spectra.model.composition import Component, Line, Values, split_terms
from hbm_jax.spectra.model.quadrature import check_band
from hbm_jax.validation import concrete

__all__ = [
    "energy_flux", "equivalent_width", "isotropic_energy", "k_correction", "log10_luminosity", "log10_sphere_area",
    "luminosity", "photon_flux",
]  # fmt: skip

Band = tuple[ArrayLike, ArrayLike]


def photon_flux(
    spectrum: Component, values: Values, low: ArrayLike, high: ArrayLike, *, unabsorbed: bool = False
) -> jax.Array:
    """Return the photon flux in a band [photons/cm^2/s], (...).

    Raises ValueError if the band is invalid, a parameter value is missing, or the spectrum has no additive component.

    Parameters
    ----------
    spectrum : Component
        Spectral model with an additive component.
    values : mapping
        Parameter names to values (...).
    low, high : scalar or (...)
        Limits of the observed band [keV].
    unabsorbed : bool
        True: remove the absorbers.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 2.0, "log10_amplitude": 0.0}
    >>> round(float(photon_flux(PowerLaw(norm="amplitude"), values, 0.5, 1.0)), 6)  # 1/0.5 - 1/1
    1.0
    """
    return _additive(spectrum, unabsorbed).integral(values, low, high, 0)


def energy_flux(
    spectrum: Component, values: Values, low: ArrayLike, high: ArrayLike, *, unabsorbed: bool = False
) -> jax.Array:
    """Return the energy flux in a band [erg/cm^2/s], (...).

    Relative error without absorbers: 1e-12 for bands of up to four decades, if cut-off energies and temperatures are at
    least 0.03 times the lower limit. With absorbers: 1e-9, or 1e-4 if the break of a `BrokenPowerLaw` lies in the band,
    because the quadrature does not divide its pieces there (``tests/spectra/test_energetics.py``).

    Parameters
    ----------
    spectrum, values, low, high, unabsorbed
        As in `photon_flux`, which raises the same errors.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 1.7, "log10_flux": -11.0}
    >>> round(float(energy_flux(PowerLaw(norm=(0.3, 10.0)), values, 0.3, 10.0)) * 1e11, 5)
    1.0
    """
    return constants.kev_in_erg * _additive(spectrum, unabsorbed).integral(values, low, high, 1)


def k_correction(
    spectrum: Component, values: Values, z: ArrayLike, *, rest: Band, observed: Band, unabsorbed: bool = True
) -> jax.Array:
    """Return the ratio of the energy flux in a rest-frame band to that in an observed band, (...).

    Equation 4 of Bloom, Frail & Sari (2001, AJ 121, 2879); for a power law and equal bands (1 + z)^(photon_index - 2).

    Parameters
    ----------
    spectrum, values, unabsorbed
        As in `photon_flux`, which raises the same errors.
    z : scalar or (...)
        Redshift of the source.
    rest : (low, high)
        Band in the rest frame of the source [keV], observed at (low, high) / (1 + z).
    observed : (low, high)
        Band in which the flux was measured [keV].

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 3.0, "log10_flux": -11.0}
    >>> round(float(k_correction(PowerLaw(), values, 1.0, rest=(1.0, 9.0), observed=(1.0, 9.0))), 6)
    2.0
    """
    source = _additive(spectrum, unabsorbed)
    check_band(*rest, "rest")
    check_band(*observed, "observed")
    return source.integral(values, *_observed(rest, z), 1) / source.integral(values, *observed, 1)


def log10_sphere_area(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return log10 of 4 pi d_L^2 [cm^2], the ratio of luminosity to flux, (...); -inf at z = 0.

    Parameters
    ----------
    z : (...)
        Redshift; its domain is that of `hbm_jax.cosmology.distances`.
    cosmology : Cosmology
        Background cosmology.

    Examples
    --------
    >>> round(float(log10_sphere_area(1.0, Cosmology.flat(H0=70.0, Om0=0.3))), 3)
    57.718
    """
    log10_cm2_per_mpc2 = math.log10(4.0 * math.pi) + 2.0 * math.log10(100.0 * constants.megaparsec)
    return log10_cm2_per_mpc2 + 2.0 * jnp.log10(luminosity_distance(z, cosmology))


def log10_luminosity(
    spectrum: Component, values: Values, z: ArrayLike, cosmology: Cosmology, *, rest: Band, unabsorbed: bool = True
) -> jax.Array:
    """Return log10 of the `luminosity` [erg/s], with the same parameters; it does not overflow in single precision."""
    check_band(*rest, "rest")
    flux = energy_flux(spectrum, values, *_observed(rest, z), unabsorbed=unabsorbed)
    return jnp.log10(flux) + log10_sphere_area(z, cosmology)


def luminosity(
    spectrum: Component, values: Values, z: ArrayLike, cosmology: Cosmology, *, rest: Band, unabsorbed: bool = True
) -> jax.Array:
    """Return the isotropic luminosity in a rest-frame band, 4 pi d_L^2 times the flux in its observed band.

    Parameters
    ----------
    spectrum, values, z, rest, unabsorbed
        As in `k_correction`, which raises the same errors.
    cosmology : Cosmology
        Background cosmology.

    Returns
    -------
    (...)
        [erg/s], always in double precision, because single precision overflows above 3e38. Gradients with respect to
        parameters in single precision overflow; those of `log10_luminosity` do not.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 2.0, "log10_flux": -11.0}
    >>> flat = Cosmology.flat(H0=70.0, Om0=0.3)
    >>> f"{luminosity(PowerLaw(), values, 1.0, flat, rest=(0.3, 10.0)):.3g}"
    '5.22e+46'
    """
    check_band(*rest, "rest")
    with jax.enable_x64(True):
        double = {name: jnp.asarray(value, float) for name, value in values.items() if name in spectrum.parameters}
        flux = energy_flux(spectrum, double, *_observed(rest, z), unabsorbed=unabsorbed)
        return flux * 10.0 ** log10_sphere_area(jnp.asarray(z, float), cosmology)


def isotropic_energy(fluence: ArrayLike, z: ArrayLike, cosmology: Cosmology, k: ArrayLike = 1.0) -> jax.Array:
    """Return the isotropic-equivalent energy, 4 pi d_L^2 fluence k / (1 + z).

    Parameters
    ----------
    fluence : (...)
        Energy fluence in the observed band [erg/cm^2].
    z : (...)
        Redshift of the source.
    cosmology : Cosmology
        Background cosmology.
    k : (...)
        `k_correction` from the observed band to a rest-frame band.

    Returns
    -------
    (...)
        [erg], in double precision as for `luminosity`. The factor 1 / (1 + z) corrects for the time dilation of the
        interval over which the fluence accumulates (Bloom, Frail & Sari 2001, AJ 121, 2879, equation 1).

    Examples
    --------
    >>> float(isotropic_energy(1e-5, 1.0, Cosmology.flat(H0=70.0, Om0=0.3))) > 1e52
    True
    """
    with jax.enable_x64(True):
        z, fluence, k = (jnp.asarray(value, float) for value in (z, fluence, k))
        return 10.0 ** log10_sphere_area(z, cosmology) * fluence * k / (1.0 + z)


# Nodes and weights of the mean over a normal density, for the mean over a line.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_LINE_BAND = (1e-3, 1e4)  # keV, contains all photons of a line
_FINE = 2e-4  # step in ln E of the ratio of line and continuum
_WIDEST = 10.0  # standard deviations of a line on either side that are covered


def gaussian_lines(spectrum: Component) -> dict[str, Line]:
    """Return the Gaussian emission lines of an expression, with the factors that multiply them, by label or name."""
    _, lines = split_terms(spectrum, lambda part: isinstance(part, GaussianLine))
    return {line.component.label or type(line.component).__name__: line for line in lines}


def equivalent_width(spectrum: Component, values: Values, line: str) -> jax.Array:
    """Return the equivalent width of an emission line, the integral over energy of line divided by continuum.

    Raises ValueError if there is no such line, or no continuum.

    Parameters
    ----------
    spectrum : Component
        Spectral model with a Gaussian line and a continuum.
    values : mapping
        Parameter names to values (...), concrete numbers such as posterior draws.
    line : str
        Label of the line, or ``"GaussianLine"`` if it has none.

    Returns
    -------
    (...)
        [keV] in the frame of the observer; times 1 + z in that of the source. The continuum is everything but the
        Gaussian lines. Both are absorbed, so that absorbers in common have no effect. NaN where there is no continuum.

    Notes
    -----
    A mean over the profile of the line. XSPEC's eqwidth divides the photons of the line by the continuum at its peak;
    for a narrow line these are equal. Error below 1e-6 of the width for continua without edges within the line
    (``tests/spectra/test_energetics.py``).

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> spectrum = PowerLaw(norm="amplitude") + GaussianLine("fe")
    >>> values = {"photon_index": 2.0, "log10_amplitude": -3.0, "fe_energy": 6.4, "fe_sigma": 0.0}
    >>> round(float(equivalent_width(spectrum, values | {"fe_log10_amplitude": -5.0}, "fe")), 4)
    0.4096
    """
    lines = gaussian_lines(spectrum)
    component = lines[choose("line of the spectrum", line, tuple(lines))].component
    energy, sigma = (np.asarray(values[component._prefixed(name)], float) for name in ("energy", "sigma"))
    margin = _WIDEST * np.max(sigma, initial=0.0)
    band = (np.min(energy) - margin) / (1.0 + component.z), (np.max(energy) + margin) / (1.0 + component.z)
    return in_chunks(equivalent_width_function(spectrum, line, *band), values)


def equivalent_width_function(spectrum: Component, line: str, low: float, high: float) -> Callable[[Values], jax.Array]:
    """Return `equivalent_width` as a differentiable function of values with the line between low and high [keV]."""
    spectrum = without_instrument(spectrum)
    component, factor = gaussian_lines(spectrum)[line]
    continuum, _ = split_terms(spectrum, lambda part: isinstance(part, GaussianLine))
    if continuum is None:
        raise ValueError(f"equivalent_width: expected a continuum besides the lines; found {spectrum}.")
    low = max(low, 0.5 * high / (1.0 + _WIDEST))  # the lower limit of a wide line may be negative
    num = int(np.clip(math.log(high / low) / _FINE, 32, 4000))
    grid = np.geomspace(low * (1.0 - _FINE), high * (1.0 + _FINE), num)
    continuum_at, factor_at = continuum.on(grid), None if factor is None else factor.on(grid)

    def width(values: Values) -> jax.Array:
        """Return the equivalent width: photons of the line times the mean of factor / continuum over its profile."""
        params = component._unprefixed(values)
        photons = component.integral(values, *_LINE_BAND)
        ratio = (1.0 if factor_at is None else factor_at(values)) / continuum_at(values)
        energy, sigma = (params[name][..., None] / (1.0 + component.z) for name in ("energy", "sigma"))
        log_energy = jnp.log(jnp.clip(energy + sigma * jnp.asarray(_NODES, energy.dtype), grid[0], grid[-1]))
        interpolated = jnp.vectorize(jnp.interp, signature="(k),(n),(n)->(k)")(log_energy, jnp.log(grid), ratio)
        return photons * (interpolated @ jnp.asarray(_WEIGHTS / _WEIGHTS.sum(), interpolated.dtype))

    return width


def in_chunks(function: Callable[[Values], jax.Array], values: Values, size: int = 256) -> jax.Array:
    """Evaluate a function of values (...) in chunks, to bound the memory."""
    with jax.enable_x64(True):
        numbers = {name: np.asarray(value, float) for name, value in values.items()}
        shape = np.broadcast_shapes(*(value.shape for value in numbers.values()))
        flat = {name: np.broadcast_to(value, shape).ravel() for name, value in numbers.items()}
        num, compiled = math.prod(shape), jax.jit(function)
        padded = {name: np.pad(value, (0, -num % min(size, num)), mode="edge") for name, value in flat.items()}
        chunks = [
            np.asarray(compiled({name: value[start : start + size] for name, value in padded.items()}))
            for start in range(0, num, size)
        ]
        return jnp.asarray(np.concatenate(chunks)[:num].reshape(shape))


def _additive(spectrum: Component, unabsorbed: bool) -> Component:
    """Return an additive spectrum without factors of the instrument, and without its absorbers if `unabsorbed`."""
    if spectrum.kind != "additive":
        raise ValueError(f"spectrum: expected a model with an additive component; found {spectrum}.")
    spectrum = without_instrument(spectrum)
    return spectrum.unabsorbed if unabsorbed else spectrum


def _observed(rest: Band, z: ArrayLike) -> Band:
    """Return the observed band of a rest-frame band."""
    number = concrete(z)
    low, high = (np.asarray(limit, float) / (1.0 + (z if number is None else number)) for limit in rest)
    return low, high
