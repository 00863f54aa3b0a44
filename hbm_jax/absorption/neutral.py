"""Absorption by cold interstellar matter: atoms, molecules and dust grains.

`tbabs` after Wilms, Allen & McCray 2000 (ApJ 542, 914), `phabs` as the sum over neutral atoms.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, gammainc
from jax.typing import ArrayLike

from hbm_jax.absorption.abundances import ELEMENTS, as_abundances
from hbm_jax.absorption.coefficients import table
from hbm_jax.absorption.cross_sections import MEGABARN, evaluate, fits_of
from hbm_jax.absorption.domain import MAX_ENERGY, MIN_ENERGY, as_constants, masked, one_of, within

MODELS = ("tbabs", "phabs")
H2_FRACTION = 0.2  # of the hydrogen nuclei, Wilms et al.
ATOMIC_MASS = 1.660565e-24  # g, the value in the reference tables
# XSPEC's phabs adds up these; the others of the 30 are too rare to matter.
PHABS_ELEMENTS = ("H", "He", "C", "N", "O", "Ne", "Na", "Mg", "Al", "Si", "S", "Cl", "Ar", "Ca", "Cr", "Fe", "Co", "Ni")
# keV: edges whose fine structure is not in the fits, and which an overlay has to cover.
FINE_STRUCTURE = {"O": (0.490, 0.585), "Ne": (0.865, 0.871), "Fe": (0.700, 0.795)}
_HYDROGEN, _HELIUM = 13.599, 24.58  # eV, thresholds of the fits in this file
_RYDBERG = 13.598  # eV, of the helium resonances

Overlay = Mapping[str, tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class Grains:
    """Dust grains: spheres with a power law of radii.

    Parameters
    ----------
    radius_min, radius_max : float
        Smallest and largest radius [um].
    index : float
        p of n(a) ~ a^-p, between 3 and 4.
    density : float
        Mass density of a grain [g/cm^3].

    Raises
    ------
    ValueError
        For values that make no grains.
    """

    radius_min: float = 0.025
    radius_max: float = 0.25
    index: float = 3.5
    density: float = 1.0

    def __post_init__(self):
        if not 0 < self.radius_min < self.radius_max:
            raise ValueError(
                f"Grains: expected 0 < radius_min < radius_max; found {self.radius_min} and {self.radius_max}."
            )
        if not 3 < self.index < 4:
            raise ValueError(f"Grains: expected an index between 3 and 4; found {self.index}.")
        if not self.density > 0:
            raise ValueError(f"Grains: expected a positive density; found {self.density}.")


def neutral_cross_section(
    energy: ArrayLike,
    *,
    model: str = "tbabs",
    abundances: Any = "wilm",
    grains: bool | Grains = True,
    molecules: bool | float = True,
    overlay: Overlay | None = None,
) -> jax.Array:
    """Cross section of cold interstellar matter for each hydrogen nucleus.

    Parameters
    ----------
    energy : array of any shape
        Photon energy in the frame of the absorber [keV], 0.03 to 500; the fits are made for 50 keV and less.
    model : str
        ``"tbabs"``: gas, molecules and grains, with better cross sections of H and He. ``"phabs"``: atoms only.
    abundances : str or (30,) array
        The largest systematic there is, up to 50 %: the name of a table, or numbers relative to hydrogen, H to Zn,
        which may be traced (`hbm_jax.absorption.abundance_table`).
    grains : bool or Grains
        Of tbabs: whether the depleted part of the elements is in grains, which shade their own inside, or all is gas.
    molecules : bool or float
        Of tbabs: whether 20 % of the hydrogen is in H2, or which fraction.
    overlay : mapping, optional
        For ``"O"``, ``"Ne"`` or ``"Fe"``: energies [keV] in increasing order, and cross sections [1e-22 cm^2] of the
        neutral atom there, which replace the fit between the first and the last of them (linear interpolation).

    Returns
    -------
    array of the shape of energy
        [1e-22 cm^2 per H]: times a column in 1e22 cm^-2 it is the optical depth. NaN where a traced energy is out of
        its domain.

    Raises
    ------
    ValueError
        For energies out of their domain, an unknown model or table, or an overlay that does not cover the fine
        structure of its edge.

    Notes
    -----
    Linear in the abundances but for the grains, whose self-shielding is a closed form of them (Wilms et al. 2000,
    equations 4 to 8). The fine structure of the O K, Fe L and Ne K edges (0.490 to 0.585, 0.700 to 0.795 and 0.865 to
    0.871 keV) is not in the fits: at a resolution of 70 eV a folded spectrum is off by 1.6 % for a column of 1e21
    cm^-2, 5 % for 3e21 and 15 % for 1e22, which is what ``overlay`` is for. Outside these ranges tables made with XSPEC
    are reproduced to 1e-6 in the median and 2e-4 at 95 % (``tests/absorption/test_neutral.py``).

    Examples
    --------
    >>> neutral_cross_section(1.0)  # tbabs, wilm: 1.738
    """
    one_of("model", model, MODELS)
    values = as_constants(as_abundances(abundances))
    energy, inside = within("energy", energy, MIN_ENERGY, MAX_ENERGY, "keV")
    overlay = as_constants(_checked_overlay(overlay))
    if model == "phabs":
        return _cross_section(energy, inside, values, overlay, model=model)
    if not isinstance(grains, bool | np.bool_ | Grains):
        raise ValueError(f"grains: expected True, False or Grains(...); found {grains!r}.")
    fraction = H2_FRACTION if isinstance(molecules, bool | np.bool_) and molecules else float(molecules)
    if not 0 <= fraction <= 1:
        raise ValueError(f"molecules: expected a fraction of the hydrogen between 0 and 1; found {fraction}.")
    return _cross_section(energy, inside, values, overlay, model=model, grains=grains, fraction=fraction)


@functools.partial(jax.jit, static_argnames=("model", "grains", "fraction"))
def _cross_section(energy, inside, values, overlay, *, model, grains=False, fraction=0.0):
    """Cross section of known choices, one program instead of one for each of some fifty operations."""
    energy = jnp.where(inside, energy, 1.0)
    dust = table("ism_depletion_wilms_2000")
    elements = PHABS_ELEMENTS if model == "phabs" else tuple(dust["element"].tolist())
    places = np.array([ELEMENTS.index(e) for e in elements])
    numbers = jnp.asarray(values)[places].astype(jnp.result_type(energy, values))
    sigma = evaluate(energy, fits_of(tuple((int(p) + 1, int(p) + 1) for p in places)))
    sigma = _overlaid(sigma, energy, elements, overlay)
    if model == "phabs":
        return masked(jnp.tensordot(numbers, sigma, 1), inside)
    sigma = sigma.at[0].set(_hydrogen(energy)).at[1].set(_helium(energy))
    gas = dust["gas_fraction"].copy() if grains else np.ones(len(elements))
    gas[0] = 1.0 - fraction
    total = jnp.tensordot(numbers * gas, sigma, 1) + 0.5 * fraction * numbers[0] * _molecular_hydrogen(energy)
    if grains:
        depleted = (numbers * (1.0 - dust["gas_fraction"]))[1:]
        total = total + _in_grains(
            sigma[1:], depleted, dust["mass_number"][1:], grains if isinstance(grains, Grains) else Grains()
        )
    return masked(total, inside)


def _hydrogen(energy):
    """Band et al. 1990, ApJ 362, 90."""
    y = 2e3 * energy / _HYDROGEN
    return jnp.where(1e3 * energy >= _HYDROGEN, 605.0 * MEGABARN * y**-1.5 * (1.0 + jnp.sqrt(y)) ** -4, 0.0)


def _helium(energy):
    """Yan, Sadeghpour & Dalgarno 1998, ApJ 496, 1044, equation 14, with four resonances near 60 eV."""
    terms = _yan("He")
    x = 1e3 * energy / _HELIUM
    smooth = sum(float(a) * x ** (-0.5 * i) for i, a in enumerate(terms["a"]))
    for q, nu, gamma in zip(terms["q"], terms["nu"], terms["gamma_Ry"], strict=True):
        X = 2.0 * (1e3 * energy / _RYDBERG - (3.0 - 1.0 / nu**2 + 1.807317)) / gamma
        smooth = smooth * (X - q) ** 2 / (1.0 + X**2)
    return jnp.where(x >= 1.0, 733e-6 * MEGABARN * energy**-3.5 * smooth, 0.0)


def _molecular_hydrogen(energy):
    """Yan et al. 1998, for each molecule, above 30 eV."""
    terms = _yan("H2")
    x = 1e3 * energy / 15.4
    powers = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    high = sum(float(c) * x**-p for c, p in zip(terms["above_85eV"], powers, strict=True))
    low = sum(float(c) * x**-i for i, c in enumerate(terms["30_85eV"]))
    return MEGABARN * jnp.where(energy > 0.085, 45.57e-6 * energy**-3.5 * high, low)


def _yan(species) -> dict[str, list[float]]:
    columns = table("he_h2_yan_1998")
    found: dict[str, list[float]] = {}
    for name, term, value in zip(columns["species"], columns["term"], columns["value"], strict=True):
        if name == species:
            found.setdefault(str(term), []).append(float(value))
    return found


def _in_grains(sigma, depleted, mass_number, grains: Grains):
    """Cross section of the grains for each hydrogen nucleus; sigma (elements, ...), depleted (elements,)."""
    p, a0, a1 = grains.index, 1e-4 * grains.radius_min, 1e-4 * grains.radius_max  # cm
    mass = jnp.sum(depleted * mass_number) * ATOMIC_MASS
    some = mass > 0
    safe_mass = jnp.where(some, mass, 1.0)
    # Mean optical depth through a grain over its radius [1/cm]; atoms times cross section over mass.
    t = 4.0 / 3.0 * grains.density * jnp.tensordot(depleted, sigma, 1) * 1e-22 / safe_mass
    t = jnp.where(some, t, 1.0)
    k = (1.0 - p) / (a1 ** (1.0 - p) - a0 ** (1.0 - p))
    number = safe_mass / (grains.density * 4.0 * math.pi / 3.0 * k) * (4.0 - p) / (a1 ** (4.0 - p) - a0 ** (4.0 - p))
    ends = a0 ** (3.0 - p) * -jnp.expm1(-t * a0) - a1 ** (3.0 - p) * -jnp.expm1(-t * a1)
    integral = (ends + t ** (p - 3.0) * (_gamma(4.0 - p, t * a1) - _gamma(4.0 - p, t * a0))) / (p - 3.0)
    # Zero where there is no dust, with the slope of the first of it, before it shades itself.
    return jnp.where(some, number * math.pi * k * integral * 1e22, jnp.tensordot(depleted, sigma, 1))


def _gamma(s, x):
    """Lower incomplete gamma function; for the usual grains an error function."""
    if s == 0.5:
        return math.sqrt(math.pi) * erf(jnp.sqrt(x))
    return math.gamma(s) * gammainc(s, x)


def _checked_overlay(overlay: Overlay | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tables of an overlay as arrays."""
    checked = {}
    for element, pair in (overlay or {}).items():
        one_of("element of an overlay", element, tuple(FINE_STRUCTURE))
        if len(pair) != 2:
            raise ValueError(f"overlay of {element}: expected a pair, energies and cross sections; found {len(pair)}.")
        table_energy, table_sigma = (np.asarray(column, dtype=float) for column in pair)
        if table_energy.ndim != 1 or table_energy.shape != table_sigma.shape or len(table_energy) < 2:
            raise ValueError(
                f"overlay of {element}: expected two columns of one length; found {table_energy.shape} and "
                f"{table_sigma.shape}."
            )
        if not (np.diff(table_energy) > 0).all() or not (np.isfinite(table_sigma) & (table_sigma >= 0)).all():
            raise ValueError(
                f"overlay of {element}: expected increasing energies and cross sections not below 0; found others."
            )
        low, high = FINE_STRUCTURE[element]
        if table_energy[0] > low or table_energy[-1] < high:
            raise ValueError(
                f"overlay of {element}: expected it to cover {low:g} to {high:g} keV; found {table_energy[0]:g} to "
                f"{table_energy[-1]:g} keV."
            )
        checked[element] = table_energy, table_sigma
    return checked


def _overlaid(sigma, energy, elements, overlay):
    """Replace the fit of some elements inside the range of a table."""
    for element, (table_energy, table_sigma) in overlay.items():
        place = elements.index(element)
        within_it = (energy >= table_energy[0]) & (energy <= table_energy[-1])
        own = jnp.interp(energy, table_energy, table_sigma)
        sigma = sigma.at[place].set(jnp.where(within_it, own, sigma[place]))
    return sigma
