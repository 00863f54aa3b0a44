"""Fluxes, luminosities and energies from a spectrum and values of its parameters, such as draws of a posterior.

Values may have any leading shape (...), the same for all or such that they broadcast, and z one that broadcasts with
them; so has the result. Everything works inside compiled functions and has gradients. A band must be of known energies,
and z a known number, only where a spectrum with absorbers is integrated; without, they may be traced.

Fluxes of `PowerLaw` and `BrokenPowerLaw` are closed forms; see `Component.integral` for all others.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.cosmology import Cosmology
from hbm_jax.cosmology.distances import luminosity_distance
from hbm_jax.spectra.model.composition import Component, check_band

__all__ = [
    "energy_flux",
    "isotropic_energy",
    "k_correction",
    "log10_luminosity",
    "log10_sphere",
    "luminosity",
    "photon_flux",
]

Values = Mapping[str, ArrayLike]
Band = tuple[ArrayLike, ArrayLike]


def photon_flux(
    spectrum: Component, values: Values, low: ArrayLike, high: ArrayLike, *, unabsorbed: bool = False
) -> jax.Array:
    """Photons in a band.

    Parameters
    ----------
    spectrum : Component
        With an additive part.
    values : mapping
        Parameter names to values (...).
    low, high : scalar or (...)
        The band as observed [keV].
    unabsorbed : bool
        Whether to leave out the absorbers.

    Returns
    -------
    (...)
        [photons/cm^2/s].

    Raises
    ------
    ValueError
        For a band that is none, a value that is missing, or no additive component.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 2.0, "log10_amplitude": 0.0}
    >>> round(float(photon_flux(PowerLaw(norm="amplitude"), values, 0.5, 1.0)), 6)  # 1/0.5 - 1/1
    1.0
    """
    return _of(spectrum, unabsorbed).integral(values, low, high, 0)


def energy_flux(
    spectrum: Component, values: Values, low: ArrayLike, high: ArrayLike, *, unabsorbed: bool = False
) -> jax.Array:
    """Energy flux in a band.

    Parameters
    ----------
    spectrum, values, low, high, unabsorbed
        As in `photon_flux`.

    Returns
    -------
    (...)
        [erg/cm^2/s].

    Raises
    ------
    ValueError
        As in `photon_flux`.

    Notes
    -----
    Relative error without absorbers: 1e-12 for bands of up to four decades, and cut-offs and temperatures from 0.03 of
    their low end. With absorbers: 1e-9, or 1e-4 where the break of a `BrokenPowerLaw` lies in the band, because no
    piece of the quadrature ends there (``tests/spectra/test_energetics.py``).

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 1.7, "log10_flux": -11.0}
    >>> round(float(energy_flux(PowerLaw(norm=(0.3, 10.0)), values, 0.3, 10.0)) * 1e11, 6)
    1.0
    """
    return constants.kev_in_erg * _of(spectrum, unabsorbed).integral(values, low, high, 1)


def k_correction(
    spectrum: Component, values: Values, z: ArrayLike, *, rest: Band, observed: Band, unabsorbed: bool = True
) -> jax.Array:
    """Energy flux of a band in the source's frame over that of a band as observed (Bloom, Frail & Sari 2001).

    Parameters
    ----------
    spectrum, values
        As in `photon_flux`.
    z : scalar or (...)
        Redshift.
    rest : (low, high)
        Band in the source's frame [keV], seen at (low, high) / (1 + z).
    observed : (low, high)
        Band in which the flux was measured [keV].
    unabsorbed : bool
        Whether to leave out the absorbers.

    Returns
    -------
    (...)
        AJ 121, 2879, equation 4. (1 + z)^(photon_index - 2) for a power law and equal bands.

    Raises
    ------
    ValueError
        As in `photon_flux`.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import PowerLaw
    >>> values = {"photon_index": 3.0, "log10_flux": -11.0}
    >>> round(float(k_correction(PowerLaw(), values, 1.0, rest=(1.0, 9.0), observed=(1.0, 9.0))), 6)
    2.0
    """
    light = _of(spectrum, unabsorbed)
    check_band(*rest, "rest")
    check_band(*observed, "observed")
    return light.integral(values, *_seen(rest, z), 1) / light.integral(values, *observed, 1)


def log10_sphere(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Logarithm of 4 pi d_L^2 [cm^2], which takes a flux to a luminosity.

    Parameters
    ----------
    z : (...)
        Redshift, above 0. See `hbm_jax.cosmology.distances`.
    cosmology : Cosmology

    Returns
    -------
    (...)
        -inf at z = 0.

    Examples
    --------
    >>> round(float(log10_sphere(1.0, Cosmology.flat(H0=70.0, Om0=0.3))), 3)
    57.718
    """
    unit = math.log10(4.0 * math.pi) + 2.0 * math.log10(100.0 * constants.megaparsec)
    return unit + 2.0 * jnp.log10(luminosity_distance(z, cosmology))


def log10_luminosity(
    spectrum: Component, values: Values, z: ArrayLike, cosmology: Cosmology, *, rest: Band, unabsorbed: bool = True
) -> jax.Array:
    """Logarithm of `luminosity`, which also single precision can hold; the same parameters."""
    check_band(*rest, "rest")
    flux = energy_flux(spectrum, values, *_seen(rest, z), unabsorbed=unabsorbed)
    return jnp.log10(flux) + log10_sphere(z, cosmology)


def luminosity(
    spectrum: Component, values: Values, z: ArrayLike, cosmology: Cosmology, *, rest: Band, unabsorbed: bool = True
) -> jax.Array:
    """Isotropic luminosity in a band in the source's frame, 4 pi d_L^2 times the flux in the band as it is seen.

    Parameters
    ----------
    spectrum, values, z, unabsorbed
        As in `k_correction`.
    cosmology : Cosmology
        The universe.
    rest : (low, high)
        Band in the source's frame [keV], seen at (low, high) / (1 + z).

    Returns
    -------
    (...)
        [erg/s], in double precision whatever that of the session and of the values: single holds no more than 3e38.
        Where parameters are in single precision, gradients by them overflow; those of `log10_luminosity` do not.

    Raises
    ------
    ValueError
        As in `photon_flux`.

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
        flux = energy_flux(spectrum, double, *_seen(rest, z), unabsorbed=unabsorbed)
        return flux * 10.0 ** log10_sphere(jnp.asarray(z, float), cosmology)


def isotropic_energy(fluence: ArrayLike, z: ArrayLike, cosmology: Cosmology, k: ArrayLike = 1.0) -> jax.Array:
    """Isotropic energy released, 4 pi d_L^2 fluence k / (1 + z).

    Parameters
    ----------
    fluence : (...)
        Energy fluence in the band as observed [erg/cm^2].
    z : (...)
        Redshift.
    cosmology : Cosmology
        The universe.
    k : (...)
        `k_correction` from that band to one in the source's frame.

    Returns
    -------
    (...)
        [erg]. The factor 1 / (1 + z) is for the time, which the fluence was gathered in (Bloom, Frail & Sari 2001, AJ
        121, 2879, equation 1). In double precision, as `luminosity`.

    Examples
    --------
    >>> float(isotropic_energy(1e-5, 1.0, Cosmology.flat(H0=70.0, Om0=0.3))) > 1e52
    True
    """
    with jax.enable_x64(True):
        z, fluence, k = (jnp.asarray(value, float) for value in (z, fluence, k))
        return 10.0 ** log10_sphere(z, cosmology) * fluence * k / (1.0 + z)


def _of(spectrum: Component, unabsorbed: bool) -> Component:
    if spectrum.kind != "additive":
        raise ValueError(f"spectrum: expected one with an additive component; found {spectrum}.")
    return spectrum.unabsorbed if unabsorbed else spectrum


def _seen(rest: Band, z: ArrayLike) -> Band:
    """Give a band in the source's frame, as it is seen."""
    stretch = 1.0 + (z if isinstance(z, jax.core.Tracer) else np.asarray(z, dtype=float))
    low, high = (np.asarray(end, dtype=float) / stretch for end in rest)
    return low, high
