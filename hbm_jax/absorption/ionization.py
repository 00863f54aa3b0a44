"""Ionisation balance of a tenuous gas: photo-ionisation, collisional ionisation, or both."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.absorption.cross_sections import evaluate, fit_coefficients, ion_name, parse_ion
from hbm_jax.absorption.domain import LOG10_T, LOG10_XI, masked, one_of, within
from hbm_jax.absorption.rates import ABSORBING, BALANCE, RATES, log_collisional_ionization, recombination

MODES = ("photo+collisional", "photo", "collisional")
IONS = tuple((Z, n) for Z in BALANCE for n in range(Z, -1, -1))  # order of `ion_fractions`: neutral to bare
PHOTON_INDEX = (0.0, 4.0)
XI_BAND = (0.005, 300.0)  # keV, band of the luminosity in the definition of xi
# Named bands of the luminosity in xi. Published fits with absori have that of its code, which normalises over its grid.
XI_BANDS = {"definition": XI_BAND, "absori_code": (0.005, 19.9)}
_DEGREE = 32  # of the polynomial in the photon index; error below 1e-10
_MAX_Z = max(BALANCE)
# Gauss-Legendre nodes per panel, and panels between edges, because the fit of Si II is not smooth between two edges.
_NODES, _PANELS = 16, 48


def ion_fractions(
    log10_T: ArrayLike,
    log10_xi: ArrayLike,
    *,
    mode: str = "photo+collisional",
    rates: str = "modern",
    photon_index: ArrayLike = 2.0,
    xi_band: str | tuple[float, float] = "definition",
) -> jax.Array:
    """Return the fraction of each ion among the atoms of its element, in ionisation equilibrium.

    Parameters
    ----------
    log10_T : array
        Logarithm of the electron temperature [K], 4 to 8.
    log10_xi : array
        Logarithm of the ionisation parameter L / (n r^2) [erg cm/s], -12 to 8, where L is the luminosity in ``xi_band``
        and n the electron density. Not used in mode ``"collisional"``.
    mode : str
        Ionisation processes: ``"photo"``, photo-ionisation by a power law, as in XSPEC's absori; ``"collisional"``,
        electron impact; ``"photo+collisional"``, both. Without collisions the temperature only sets the recombination
        rates, so the value inferred with absori is not a temperature of the gas.
    rates : str
        Recombination rates, ``"modern"`` or ``"older"``. The older ones with mode ``"photo"`` are for comparison with
        fits that used absori; see the notes. Their hydrogenic formula is meant for T < 1.6e5 Z^2 K. At higher
        temperatures, where bare nuclei dominate, it is too high, by a factor of 5 for C VI and 2 for O VIII at 1e8 K,
        and 60 for H I at 1e7 K.
    photon_index : array
        Photon index of the ionising power law, photons per energy ~ E^-photon_index; 0 to 4.
    xi_band : str or (float, float)
        Band of the luminosity in xi [keV]: ``"definition"``, 5 eV to 300 keV; ``"absori_code"``, 5 eV to 19.9 keV, over
        which the code of absori normalises, for comparison with published fits; or the limits. See `xi_shift`.

    Returns
    -------
    (..., 112) array
        In the order of `IONS`: H, He, C, N, O, Ne, Mg, Si, S, Fe, each from neutral to bare; the fractions of an
        element sum to 1. The arguments are broadcast. NaN where a traced argument is outside its domain.

    Raises
    ------
    ValueError
        For an argument outside its domain, or an unknown mode or collection of rates.

    Notes
    -----
    n(i+1) / n(i) = (Gamma_i / n + C_i) / alpha_(i+1), where Gamma_i / n is xi / (4 pi) times the integral of f(E)
    sigma_i(E) / E. Not included: Auger electrons, charge exchange, excited states. At 1e6 K without photo-ionisation
    the fraction of O VII is 0.99, that of Ne IX 0.93.

    With mode ``"photo"``, the older rates and ``xi_band="absori_code"``, the optical depth from 0.3 to 10 keV at xi = 1
    and photon index 2 differs from that by absori's own rates and cross sections by -3 to +4 % at 1e5 K, -16 to +4 % at
    1e6 K and -26 to +2 % at 1e7 K for 90 % of the energies, and by more next to edges, whose energies differ
    (``tests/absorption/test_absori.py``).

    Examples
    --------
    >>> fractions = ion_fractions(6.0, 0.0, mode="collisional")
    >>> fractions[..., ion_index("O VII")]  # 0.99
    """
    one_of("mode", mode, MODES)
    one_of("collection of rates", rates, RATES)
    T, in_T = within("log10_T", log10_T, *LOG10_T)
    xi, in_xi = within("log10_xi", log10_xi, *LOG10_XI)
    index, in_index = within("photon_index", photon_index, *PHOTON_INDEX)
    if band_of_xi(xi_band) != XI_BAND:
        xi = xi + xi_shift(photon_index, xi_band)
    return _equilibrium(T, xi, index, in_T, in_xi, in_index, mode=mode, rates=rates)


@functools.partial(jax.jit, static_argnames=("mode", "rates"))
def _equilibrium(T, xi, index, in_T, in_xi, in_index, *, mode, rates):
    """Return ion fractions of arrays of arguments, NaN where an argument is outside its domain."""
    T, xi, index = jnp.where(in_T, T, 6.0), jnp.where(in_xi, xi, 0.0), jnp.where(in_index, index, 2.0)
    log_photo_rates = jnp.vectorize(_log_photo_rates, signature="(),()->(k)")(*jnp.broadcast_arrays(xi, index))
    fractions = jnp.vectorize(functools.partial(_fractions, mode=mode, rates=rates), signature="(),(k)->(n)")
    return masked(fractions(T, log_photo_rates), (in_T & in_xi & in_index)[..., None])


def band_of_xi(xi_band: str | tuple[float, float]) -> tuple[float, float]:
    """Return the limits of a band of the luminosity in xi [keV], given by name or as limits.

    Raises
    ------
    ValueError
        For an unknown name, or limits that are not positive and increasing.
    """
    if isinstance(xi_band, str):
        one_of("band of xi", xi_band, tuple(XI_BANDS))
        return XI_BANDS[xi_band]
    low, high = (float(limit) for limit in xi_band)
    if not 0 < low < high < math.inf:
        raise ValueError(f"xi_band: expected two energies [keV] with 0 < low < high; found {low:g} and {high:g}.")
    return low, high


def xi_shift(photon_index: ArrayLike, xi_band: str | tuple[float, float]) -> jax.Array:
    """Return the correction to log10 xi from a band to 5 eV - 300 keV, for the same ionising power law.

    Parameters
    ----------
    photon_index : array
        Photon index of the ionising power law.
    xi_band : str or (float, float)
        Band in which xi is given, as in `ion_fractions`.

    Returns
    -------
    array of the shape of photon_index
        The number to add to log10 xi.

    Raises
    ------
    ValueError
        For an unknown name, or limits that are not positive and increasing.

    Examples
    --------
    >>> round(float(10 ** xi_shift(2.0, "absori_code")), 2), round(float(10 ** xi_shift(1.5, "absori_code")), 2)
    (1.33, 3.94)
    """
    slope = 2.0 - jnp.asarray(photon_index, jnp.result_type(float))
    return (_log_flux(slope) - _log_flux(slope, band_of_xi(xi_band))) / math.log(10.0)


def ion_index(name: str) -> int:
    """Return the index of an ion in the last axis of `ion_fractions`.

    Raises
    ------
    ValueError
        If the name is not an ion, or its element is not in the balance.

    Examples
    --------
    >>> ion_index("H I")
    0
    """
    ion = parse_ion(name)
    if ion not in IONS:
        elements = ", ".join(ion_name(Z, Z).split()[0] for Z in BALANCE)
        raise ValueError(f"ion {name!r}: expected an element of the balance, one of {elements}.")
    return IONS.index(ion)


def _log_photo_rates(log10_xi, photon_index):
    """Return the logarithm of each absorbing ion's photo-ionisation rate divided by the electron density [cm^3/s]."""
    return log10_xi * math.log(10.0) - math.log(4.0 * math.pi) + _log_photoionization(photon_index)


def _fractions(log10_T, log_photo_rates, *, mode, rates):
    """Return the fractions of all ions at one temperature, from the ratios of neighbouring charge states."""
    T = 10.0**log10_T
    log_ratios = -jnp.log(recombination(rates)(T))
    if mode == "photo":
        log_ratios = log_ratios + log_photo_rates
    elif mode == "collisional":
        log_ratios = log_ratios + log_collisional_ionization(T)
    else:
        log_ratios = log_ratios + jnp.logaddexp(log_photo_rates, log_collisional_ionization(T))
    ratio_index, exists, position = _layout()
    # One row per element; states beyond its nuclear charge are masked.
    ladder = jnp.where(ratio_index >= 0, log_ratios[ratio_index], 0.0)
    log_densities = jnp.concatenate([jnp.zeros((len(BALANCE), 1), ladder.dtype), jnp.cumsum(ladder, axis=1)], axis=1)
    log_densities = jnp.where(exists, log_densities, -jnp.inf)
    return jax.nn.softmax(log_densities, axis=1)[position]


@functools.cache
def _layout():
    """Return the layout of charge states in a table of one row per element.

    Returns
    -------
    ratio_index : (elements, states - 1)
        Index in `ABSORBING` of the ratio of each charge state to the next; -1 where there is none.
    exists : (elements, states)
        Mask of existing states.
    position : pair of (ions,)
        Row and column of each of `IONS`.
    """
    ratio_index = np.full((len(BALANCE), _MAX_Z), -1, np.int32)
    exists = np.zeros((len(BALANCE), _MAX_Z + 1), bool)
    for row, Z in enumerate(BALANCE):
        ratio_index[row, :Z] = [ABSORBING.index((Z, n)) for n in range(Z, 0, -1)]
        exists[row, : Z + 1] = True
    return ratio_index, exists, tuple(indices.astype(np.int32) for indices in np.nonzero(exists))


def _log_photoionization(photon_index: jax.Array) -> jax.Array:
    """Return the logarithm of the integral of f(E) sigma(E) / E [cm^2/erg] for each absorbing ion.

    It is evaluated as a Chebyshev series in the photon index.
    """
    low, high = PHOTON_INDEX
    x = (2.0 * photon_index - low - high) / (high - low)
    coefficients = _photoionization_coefficients().astype(photon_index.dtype)
    b1 = b2 = jnp.zeros(len(ABSORBING), photon_index.dtype)
    for c in coefficients[:0:-1]:  # Clenshaw's recurrence
        b1, b2 = 2.0 * x * b1 - b2 + c, b1
    return x * b1 - b2 + coefficients[0] - _log_flux(2.0 - photon_index)


def _log_flux(slope: jax.Array, band: tuple[float, float] = XI_BAND) -> jax.Array:
    """Return the logarithm of the integral of E^slope / E over a band of xi, smooth at slope 0."""
    low, high = math.log(band[0]), math.log(band[1])
    # The integral is exp(slope (low + high) / 2) (high - low) sinh(y) / y.
    y = 0.5 * slope * (high - low)
    small = y**2 < 1e-2
    abs_y = jnp.abs(jnp.where(small, 1.0, y))
    exact = abs_y - jnp.log(2.0 * abs_y) + jnp.log1p(-jnp.exp(-2.0 * abs_y))
    series = y**2 * (1.0 / 6.0 - y**2 * (1.0 / 180.0 - y**2 * (1.0 / 2835.0 - y**2 / 37800.0)))
    return 0.5 * slope * (high + low) + math.log(high - low) + jnp.where(small, series, exact)


@functools.cache
def _photoionization_coefficients() -> np.ndarray:
    """Return the Chebyshev coefficients in the photon index, (degree + 1, ions), of a logarithm of integrals.

    The integrand is E^(1 - index) sigma / E, with E in keV in the power and in erg in the denominator. The quadrature
    is split at every edge.
    """
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    index = 0.5 * (PHOTON_INDEX[0] + PHOTON_INDEX[1] + nodes * (PHOTON_INDEX[1] - PHOTON_INDEX[0]))
    fits = fit_coefficients(ABSORBING)
    x, w = np.polynomial.legendre.leggauss(_NODES)
    high = math.log(XI_BAND[1])
    log_integrals = np.empty((_DEGREE + 1, len(ABSORBING)))
    for i, thresholds in enumerate(fits.thresholds()):
        edges = np.concatenate([np.log(np.maximum(thresholds, XI_BAND[0])), [high]])
        panel_edges = np.concatenate(
            [np.linspace(a, b, _PANELS, endpoint=False) for a, b in itertools.pairwise(edges)] + [[high]]
        )
        half = 0.5 * np.diff(panel_edges)[:, None]
        u = (panel_edges[:-1, None] + half * (1.0 + x)).ravel()
        fit = fit_coefficients((ABSORBING[i],))
        values = (half * w).ravel() * evaluate(np.exp(u), fit)[0] * 1e-22
        # dE = E du, so that f(E) sigma / E dE = E^(1 - index) sigma du.
        log_integrals[:, i] = np.log(np.exp((1.0 - index)[:, None] * u) @ values)
    log_integrals -= np.log(constants.electron_volt * 1e7 * 1e3)  # from 1/keV to 1/erg
    k = np.arange(_DEGREE + 1)[:, None]
    transform = 2.0 / (_DEGREE + 1) * np.cos(k * np.arccos(nodes))
    transform[0] *= 0.5
    return transform @ log_integrals
