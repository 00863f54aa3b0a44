"""How the elements of a tenuous gas share their electrons, by light, by collisions, or by both."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.absorption.cross_sections import evaluate, fits_of, ion_name, parse_ion
from hbm_jax.absorption.domain import LOG10_T, LOG10_XI, masked, one_of, within
from hbm_jax.absorption.rates import ABSORBING, BALANCE, RATES, log_collisional_ionization, recombination

MODES = ("photo+collisional", "photo", "collisional")
IONS = tuple((Z, n) for Z in BALANCE for n in range(Z, -1, -1))  # the order of `ion_fractions`: neutral to bare
PHOTON_INDEX = (0.0, 4.0)
XI_BAND = (0.005, 300.0)  # keV, in which xi counts the light; that of XSPEC's absori
_DEGREE = 32  # of a polynomial in the photon index: its error is below 1e-10
_MOST = max(BALANCE)
# Of Gauss and Legendre, and panels between edges: the fit of Si II has a corner between two of them.
_NODES, _PANELS = 16, 48


def ion_fractions(
    log10_T: ArrayLike,
    log10_xi: ArrayLike,
    *,
    mode: str = "photo+collisional",
    rates: str = "modern",
    photon_index: ArrayLike = 2.0,
) -> jax.Array:
    """Share of each ion among the atoms of its element, in equilibrium.

    Parameters
    ----------
    log10_T : array
        Logarithm of the electron temperature [K], 4 to 8.
    log10_xi : array
        Logarithm of the ionisation parameter L / (n r^2) [erg cm/s], -12 to 8; L is counted from 5 eV to 300 keV and n
        is that of the electrons. Without meaning in mode ``"collisional"``.
    mode : str
        What ionises: ``"photo"``, the light of a power law alone, as in XSPEC's absori; ``"collisional"``, electrons;
        ``"photo+collisional"``, both. Without collisions the temperature only sets the pace of recombination, and one
        inferred with absori is not a temperature.
    rates : str
        ``"modern"`` or ``"older"`` recombination; the older with mode ``"photo"`` is the one to compare with fits that
        used absori, with which it agrees to -9 ... +7 %, because absori has other cross sections. Its hydrogenic
        formula is meant for T < 1.6e5 Z^2 K: beyond, where bare nuclei abound, it is too high, by 5 for C VI and 2 for
        O VIII at 1e8 K, and by 60 for H I at 1e7 K.
    photon_index : array
        Of the ionising light, photons per energy ~ E^-photon_index; 0 to 4.

    Returns
    -------
    (..., 112) array
        In the order of `IONS`: H, He, C, N, O, Ne, Mg, Si, S, Fe, each from neutral to bare; those of an element sum to
        1. The arguments are broadcast. NaN where a traced argument is out of its domain.

    Raises
    ------
    ValueError
        For an argument out of its domain, an unknown mode or collection.

    Notes
    -----
    n(i+1) / n(i) = (Gamma_i / n + C_i) / alpha_(i+1), where Gamma_i / n is xi / (4 pi) times the integral of
    f(E) sigma_i(E) / E. Left out: Auger electrons, charge exchange, excited states. At 1e6 K without light O VII is
    0.99, Ne IX 0.93.

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
    return _equilibrium(T, xi, index, in_T, in_xi, in_index, mode=mode, rates=rates)


@functools.partial(jax.jit, static_argnames=("mode", "rates"))
def _equilibrium(T, xi, index, in_T, in_xi, in_index, *, mode, rates):
    T, xi, index = jnp.where(in_T, T, 6.0), jnp.where(in_xi, xi, 0.0), jnp.where(in_index, index, 2.0)
    light = jnp.vectorize(_log_light, signature="(),()->(k)")(*jnp.broadcast_arrays(xi, index))
    one = jnp.vectorize(functools.partial(_fractions, mode=mode, rates=rates), signature="(),(k)->(n)")
    return masked(one(T, light), (in_T & in_xi & in_index)[..., None])


def ion_index(name: str) -> int:
    """Place of an ion in the last axis of `ion_fractions`.

    Raises
    ------
    ValueError
        For an ion that is not in the balance.

    Examples
    --------
    >>> ion_index("H I")
    0
    """
    ion = parse_ion(name)
    if ion not in IONS:
        elements = ", ".join(ion_name(Z, Z).split()[0] for Z in BALANCE)
        raise ValueError(f"ion {name!r}: expected one of the elements of the balance, {elements}.")
    return IONS.index(ion)


def _log_light(log10_xi, photon_index):
    """Logarithm of the rate at which light ionises each absorbing ion, for each electron around it [cm^3/s]."""
    return log10_xi * math.log(10.0) - math.log(4.0 * math.pi) + _log_photoionization(photon_index)


def _fractions(log10_T, light, *, mode, rates):
    T = 10.0**log10_T
    steps = -jnp.log(recombination(rates)(T))
    if mode == "photo":
        steps = steps + light
    elif mode == "collisional":
        steps = steps + log_collisional_ionization(T)
    else:
        steps = steps + jnp.logaddexp(light, log_collisional_ionization(T))
    step, state, of_element = _layout()
    # One row an element; what is only padding is never reached.
    ladder = jnp.where(step >= 0, steps[step], 0.0)
    logs = jnp.concatenate([jnp.zeros((len(BALANCE), 1), ladder.dtype), jnp.cumsum(ladder, axis=1)], axis=1)
    logs = jnp.where(state, logs, -jnp.inf)
    return jax.nn.softmax(logs, axis=1)[of_element]


@functools.cache
def _layout():
    """Place of each step in the ladders (elements, steps), which states exist, and where those are in `IONS`."""
    step = np.full((len(BALANCE), _MOST), -1, np.int32)
    state = np.zeros((len(BALANCE), _MOST + 1), bool)
    for row, Z in enumerate(BALANCE):
        step[row, :Z] = [ABSORBING.index((Z, n)) for n in range(Z, 0, -1)]
        state[row, : Z + 1] = True
    return step, state, tuple(place.astype(np.int32) for place in np.nonzero(state))


def _log_photoionization(photon_index: jax.Array) -> jax.Array:
    """Logarithm of the integral of f(E) sigma(E) / E [cm^2/erg] for each absorbing ion, by its polynomial."""
    low, high = PHOTON_INDEX
    x = (2.0 * photon_index - low - high) / (high - low)
    coefficients = _photoionization_coefficients().astype(photon_index.dtype)
    above = beyond = jnp.zeros(len(ABSORBING), photon_index.dtype)
    for c in coefficients[:0:-1]:
        above, beyond = 2.0 * x * above - beyond + c, above
    return x * above - beyond + coefficients[0] - _log_flux(2.0 - photon_index)


def _log_flux(slope: jax.Array) -> jax.Array:
    """Logarithm of the integral of E^slope / E over the band of xi, smooth through slope 0."""
    low, high = math.log(XI_BAND[0]), math.log(XI_BAND[1])
    y = 0.5 * slope * (high - low)
    small = y**2 < 1e-2
    size = jnp.abs(jnp.where(small, 1.0, y))
    far = size - jnp.log(2.0 * size) + jnp.log1p(-jnp.exp(-2.0 * size))
    near = y**2 * (1.0 / 6.0 - y**2 * (1.0 / 180.0 - y**2 * (1.0 / 2835.0 - y**2 / 37800.0)))
    return 0.5 * slope * (high + low) + math.log(high - low) + jnp.where(small, near, far)


@functools.cache
def _photoionization_coefficients() -> np.ndarray:
    """Chebyshev coefficients in the photon index, (degree + 1, ions), of the integral of E^(1 - index) sigma / E.

    By quadratures that respect every edge. E in keV under the power, in erg under the fraction.
    """
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    index = 0.5 * (PHOTON_INDEX[0] + PHOTON_INDEX[1] + nodes * (PHOTON_INDEX[1] - PHOTON_INDEX[0]))
    fits = fits_of(ABSORBING)
    x, w = np.polynomial.legendre.leggauss(_NODES)
    high = math.log(XI_BAND[1])
    found = np.empty((_DEGREE + 1, len(ABSORBING)))
    for i, thresholds in enumerate(fits.thresholds()):
        edges = np.concatenate([np.log(np.maximum(thresholds, XI_BAND[0])), [high]])
        cuts = np.concatenate(
            [np.linspace(a, b, _PANELS, endpoint=False) for a, b in itertools.pairwise(edges)] + [[high]]
        )
        half = 0.5 * np.diff(cuts)[:, None]
        u = (cuts[:-1, None] + half * (1.0 + x)).ravel()
        one = fits_of((ABSORBING[i],))
        values = (half * w).ravel() * evaluate(np.exp(u), one, np)[0] * 1e-22
        # dE = E du, so that f(E) sigma / E dE = E^(1 - index) sigma du.
        found[:, i] = np.log(np.exp((1.0 - index)[:, None] * u) @ values)
    found -= np.log(constants.electron_volt * 1e7 * 1e3)  # per keV to per erg
    k = np.arange(_DEGREE + 1)[:, None]
    transform = 2.0 / (_DEGREE + 1) * np.cos(k * np.arccos(nodes))
    transform[0] *= 0.5
    return transform @ found
