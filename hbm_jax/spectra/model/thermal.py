"""Thermal components: black bodies by luminosity, accretion discs, bremsstrahlung."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from scipy.special import bernoulli, factorial, gamma, zeta

from hbm_jax.spectra.model import shapes
from hbm_jax.spectra.model.components import _Additive
from hbm_jax.spectra.model.composition import Parameter

__all__ = ["BlackBodyLuminosity", "Bremsstrahlung", "DiskBlackBody"]

# photons/cm^2/s/keV^3 for an inner radius of 1 km at 10 kpc. The value of XSPEC, measured on its approximation, is
# 0.08 % above that of physical constants, 1.0380e-3, and 0.4 % above that of its bbodyrad.
_DISK = 1.03878e-3
_KT = Parameter("keV", "LogNormal(-1.0, 1.0)", "temperature in the frame of the source")
_TERMS = 20  # of the series below E = kT: its terms fall by a factor of at least 2 pi
_NUM_NODES = 48
_FAR = 45.0  # exponent beyond which an integrand is 0: exp(-45) = 3e-20
_RYDBERG = 0.0136057  # keV
_HELIUM = 0.085  # helium nuclei per hydrogen nucleus, as in XSPEC


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of Gauss-Legendre quadrature on (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(_NUM_NODES)
    return 0.5 * (1.0 + x), 0.5 * w


def log_disk(x, energy, kT):
    """Return ln of the spectrum of a disc, 8/3 E^2 times the integral over t of t^(-11/3) / (exp(E / (t kT)) - 1).

    ``energy`` is E and ``x`` is ln E; kT has the unit of E. t runs from 0 to 1. With u = E / (t kT) the integral is
    w^(-8/3) times that of u^(5/3) / (exp(u) - 1) from w = E / kT to infinity, accurate to rounding. For w < 1 it is
    that from 0 to infinity, Gamma(8/3) zeta(8/3), minus that from 0 to w, by the series
    u / (exp(u) - 1) = sum of B_k u^k / k!. For larger w it is computed by quadrature in sqrt(u - w).
    """
    w = energy / kT
    small = jnp.minimum(w, 1.0)
    k = np.arange(_TERMS)
    coefficients = bernoulli(_TERMS - 1) / factorial(k) / (k + 5.0 / 3.0)
    series = jnp.zeros_like(small)
    for coefficient in coefficients[::-1]:
        series = series * small + coefficient
    below = gamma(8.0 / 3.0) * zeta(8.0 / 3.0) - small ** (5.0 / 3.0) * series
    large = jnp.maximum(w, 1.0)
    root, weights = (array.astype(w.dtype) for array in _nodes())
    s = _FAR * root**2
    u = large[..., None] + s
    integrand = u ** (5.0 / 3.0) * jnp.exp(-s) / -jnp.expm1(-u)
    above = jnp.sum(integrand * (2.0 * _FAR * root * weights), axis=-1)
    log_integral = jnp.where(w < 1.0, jnp.log(below), jnp.log(above) - large)
    return math.log(8.0 / 3.0) + 2.0 * x - 8.0 / 3.0 * jnp.log(w) + log_integral


def gaunt_factor(u, gamma2):
    """Return the free-free Gaunt factor averaged over a Maxwellian plasma, by Elwert's correction of Born's formula.

    Quadrature over v, where u sinh(v)^2 is the energy of the electron after the emission, divided by kT. Without the
    correction the result is exp(u / 2) K_0(u / 2) sqrt(3) / pi.

    Parameters
    ----------
    u : (...)
        Photon energy divided by kT.
    gamma2 : (...)
        Charge squared times 13.6 eV, divided by kT.
    """
    u, gamma2 = (jnp.asarray(value)[..., None] for value in (u, gamma2))
    fraction, weights = (array.astype(u.dtype) for array in _nodes())
    largest = jnp.arcsinh(jnp.sqrt(_FAR / u))
    v = largest * fraction
    sinh, cosh = jnp.sinh(v), jnp.cosh(v)
    rate = 2.0 * math.pi * jnp.sqrt(gamma2 / u)
    correction = jnp.expm1(-rate / cosh) / jnp.expm1(-rate / sinh)
    integrand = 4.0 * u * v * cosh**2 * jnp.exp(-u * sinh**2) * correction
    return math.sqrt(3.0) / math.pi * jnp.sum(integrand * largest * weights, axis=-1)


@dataclass(frozen=True)
class BlackBodyLuminosity(_Additive):
    """Black body, A(E) = 8.0525 K E^2 / (kT^4 (exp(E / kT) - 1)), XSPEC's bbody.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is K = L / 1e39 erg/s / (D / 10 kpc)^2, for any pivot.

    Examples
    --------
    >>> list(BlackBodyLuminosity(norm="amplitude").parameters)
    ['kT', 'log10_amplitude']
    """

    amplitude: ClassVar[Parameter] = Parameter(
        "1e39 erg/s / (10 kpc)^2", "Normal(-4.0, 2.0)", "luminosity over distance^2"
    )
    unit: ClassVar[float] = 8.0525  # photons/cm^2/s keV, XSPEC's value
    unit_power: ClassVar[float] = -2.0
    shape_parameters: ClassVar[dict[str, Parameter]] = {"kT": _KT}

    def _log_shape(self, x, energy, params):
        kT = params["kT"] / self.pivot
        return shapes.log_black_body(x, energy, kT) - 4.0 * jnp.log(kT)


@dataclass(frozen=True)
class DiskBlackBody(_Additive):
    """Accretion disc of black bodies with a temperature that falls as radius^(-3/4), XSPEC's diskbb.

    Mitsuda et al. 1984, PASJ 36, 741. The integral over the disc is accurate to 1e-12
    (``tests/spectra/test_more_components.py``); XSPEC's approximation of it to 1e-5.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is K = (R_in / km)^2 cos(inclination) / (D / 10 kpc)^2, for any pivot.

    Examples
    --------
    >>> list(DiskBlackBody(norm="amplitude").parameters)
    ['kT', 'log10_amplitude']
    """

    amplitude: ClassVar[Parameter] = Parameter(
        "(km / 10 kpc)^2", "Normal(2.0, 2.0)", "(inner radius over distance)^2 times the cosine of the inclination"
    )
    unit: ClassVar[float] = _DISK
    unit_power: ClassVar[float] = 2.0
    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "kT": Parameter(_KT.unit, _KT.prior, "temperature at the inner edge of the disc")
    }

    def _log_shape(self, x, energy, params):
        return log_disk(x, energy, params["kT"] / self.pivot)


@dataclass(frozen=True)
class Bremsstrahlung(_Additive):
    """Thermal bremsstrahlung of hydrogen and helium, XSPEC's bremss.

    Parameters
    ----------
    label, norm, pivot, z
        As in `PowerLaw`. The amplitude is K = 3.02e-15 / (4 pi D^2) times the integral of n_e n_H over the volume, in
        cgs units, for any pivot.

    Notes
    -----
    The spectrum is K (g_H + 4 n_He / n_H g_He) exp(-E / kT) / (E sqrt(kT)), with n_He / n_H = 0.085 and energies in
    keV. The Gaunt factors g are those of the Born approximation with Elwert's correction, averaged over a Maxwellian
    distribution. XSPEC interpolates polynomials fitted to exact Gaunt factors (Kellogg, Baldwin & Koch 1975, ApJ 199,
    299).

    Examples
    --------
    >>> list(Bremsstrahlung(norm="amplitude").parameters)
    ['kT', 'log10_amplitude']
    """

    amplitude: ClassVar[Parameter] = Parameter(
        "3.02e-15 / (4 pi) cm^-5", "Normal(-3.0, 2.0)", "emission measure over distance^2"
    )
    unit_power: ClassVar[float] = -1.5
    shape_parameters: ClassVar[dict[str, Parameter]] = {
        "kT": Parameter("keV", "LogNormal(1.0, 1.0)", "temperature of the plasma")
    }

    def _log_shape(self, x, energy, params):
        kT = params["kT"] / self.pivot
        # Hydrogen and helium, g_H + 4 n_He / n_H g_He.
        hydrogen, helium = (gaunt_factor(energy / kT, charge**2 * _RYDBERG / params["kT"]) for charge in (1, 2))
        return jnp.log(hydrogen + 4.0 * _HELIUM * helium) - energy / kT - x - 0.5 * jnp.log(kT)
