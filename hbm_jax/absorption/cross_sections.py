"""Photo-ionisation cross sections of atoms and ions, from two sets of published analytic fits.

Subshell fits of Verner & Yakovlev 1995 (A&AS 109, 125), and fits to R-matrix results for the outer shell by Verner,
Ferland, Korista & Yakovlev 1996 (ApJ 465, 487). Where an ion has both, the outer-shell fit holds below the threshold of
its next inner shell and the sum of the subshell fits above.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.absorption.abundances import ELEMENTS
from hbm_jax.absorption.coefficients import rows_of
from hbm_jax.absorption.domain import as_constants, masked, within
from hbm_jax.names import did_you_mean

MEGABARN = 1e4  # in 1e-22 cm^2
_SHELL = ("E_th_eV", "E_0_eV", "sigma_0_Mb", "y_a", "P", "y_w", "l")
_OUTER = ("E_th_eV", "E_0_eV", "sigma_0_Mb", "y_a", "P", "y_w", "y_0", "y_1")
_NUMERALS = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")


@dataclass(frozen=True)
class Fits:
    """Coefficients of several ions, padded to the same number of subshells.

    Attributes
    ----------
    ions : tuple of (Z, num_electrons)
        Which ions.
    shells : (7, ions, subshells)
        Coefficients `_SHELL`; the threshold of what is only padding is infinite.
    outer : (8, ions, 1)
        Coefficients `_OUTER`; the threshold is infinite where an ion has none.
    switch : (ions,)
        Energy [eV] below which the outer-shell fit holds.
    """

    ions: tuple[tuple[int, int], ...]
    shells: np.ndarray
    outer: np.ndarray
    switch: np.ndarray

    def thresholds(self) -> list[np.ndarray]:
        """Energies [keV] at which the cross section of each ion jumps, in order."""
        found = []
        for i in range(len(self.ions)):
            edges = self.shells[0, i]
            if self.switch[i] > 0:
                edges = np.concatenate([edges[edges >= self.switch[i]], self.outer[0, i], self.switch[i : i + 1]])
            found.append(np.unique(edges[np.isfinite(edges)]) / 1e3)
        return found


@functools.cache
def fits_of(ions: tuple[tuple[int, int], ...]) -> Fits:
    """Coefficients of ions, given as (Z, num_electrons).

    Raises
    ------
    ValueError
        If there is no fit for one of them.
    """
    by_shell = rows_of("verner_yakovlev_1995", ("Z", "N_electrons"), _SHELL)
    principal = rows_of("verner_yakovlev_1995", ("Z", "N_electrons"), ("n", "l"))
    outer_fits = rows_of("verner_1996", ("Z", "N_electrons"), _OUTER)
    for ion in ions:
        if ion not in by_shell:
            raise ValueError(_unknown_ion(ion, by_shell))
    most = max(len(by_shell[ion]) for ion in ions)
    shells = np.ones((len(_SHELL), len(ions), most))
    outer = np.ones((len(_OUTER), len(ions), 1))
    switch = np.zeros(len(ions))
    shells[0], outer[0] = np.inf, np.inf
    for i, ion in enumerate(ions):
        shells[:, i, : len(by_shell[ion])] = np.transpose(by_shell[ion])
        if ion in outer_fits:
            outer[:, i] = np.transpose(outer_fits[ion])
            switch[i] = _inner_edge(ion[1], principal[ion], by_shell[ion])
    return Fits(ions, shells, outer, switch)


def _inner_edge(num_electrons, quantum_numbers, shells) -> float:
    """Threshold [eV] of the shell below the outer one: 1s, 2p or 3p."""
    if num_electrons <= 2:
        return np.inf
    inner = (1, 0) if num_electrons <= 10 else (2, 1) if num_electrons <= 18 else (3, 1)
    return next(float(s[0]) for nl, s in zip(quantum_numbers, shells, strict=True) if tuple(nl) == inner)


def _unknown_ion(ion, known) -> str:
    Z, num_electrons = ion
    if not 1 <= Z <= len(ELEMENTS):
        return f"Z: expected the nuclear charge of an element from H (1) to Zn (30); found {Z}."
    if not 1 <= num_electrons <= Z:
        return f"num_electrons of {ELEMENTS[Z - 1]}: expected 1 to {Z}; found {num_electrons}."
    return f"{ELEMENTS[Z - 1]} with {num_electrons} electrons: there are fits for the neutral atom only."


def evaluate(energy: Any, fits: Fits, xp: Any = jnp) -> Any:
    """Cross sections of all ions of ``fits``.

    Parameters
    ----------
    energy : array of any shape
        Photon energy [keV], positive.
    fits : Fits
        Coefficients.
    xp : module
        ``numpy`` for set-up in double precision, ``jax.numpy`` for traced code.

    Returns
    -------
    (ions, *energy.shape) array
        [1e-22 cm^2]
    """
    outer = fits.outer if (fits.switch > 0).any() else None
    return _sum_of_shells(energy, fits.shells, outer, fits.switch, xp)


def _sum_of_shells(energy, shells, outer, switch, xp):
    shape = np.shape(energy)
    energy = xp.reshape(xp.asarray(energy) * 1e3, (1, 1, -1))
    dtype = energy.dtype
    threshold, E_0, sigma_0, y_a, P, y_w, angular = (c[..., None].astype(dtype) for c in shells)
    y = energy / E_0
    of_shells = _shape(y, y - 1.0, 5.5 + angular - 0.5 * P, y_a, P, y_w) * (sigma_0 * MEGABARN)
    total = xp.sum(xp.where(energy >= threshold, of_shells, 0.0), axis=1)
    if outer is not None:
        threshold, E_0, sigma_0, y_a, P, y_w, y_0, y_1 = (c[..., None].astype(dtype) for c in outer)
        x = energy / E_0 - y_0
        y = xp.sqrt(x**2 + y_1**2)
        of_outer = _shape(y, x - 1.0, 5.5 - 0.5 * P, y_a, P, y_w) * (sigma_0 * MEGABARN)
        of_outer = xp.where(energy >= threshold, of_outer, 0.0)[:, 0]
        total = xp.where(energy[0] < switch[:, None].astype(dtype), of_outer, total)
    return xp.reshape(total, (len(switch), *shape))


@jax.jit
def _one_ion(energy, inside, shells, outer, switch):
    """Of one ion, whose coefficients are arguments: ions with as many subshells share a program."""
    return masked(_sum_of_shells(jnp.where(inside, energy, 1.0), shells, outer, switch, jnp)[0], inside)


def _shape(y, above, Q, y_a, P, y_w):
    return (above**2 + y_w**2) * y**-Q * (1.0 + (y / y_a) ** 0.5) ** -P


def photoionization_cross_section(energy: ArrayLike, Z: int, num_electrons: int) -> jax.Array:
    """Photo-ionisation cross section of one ion from its ground state.

    Parameters
    ----------
    energy : array of any shape
        Photon energy in the ion's frame [keV], 0.001 to 500; the fits are made for 50 keV and less.
    Z : int
        Nuclear charge, 1 to 30.
    num_electrons : int
        Electrons of the ion, 1 to Z.

    Returns
    -------
    array of the shape of energy
        [1e-22 cm^2]; 0 below the first threshold, NaN where a traced energy is out of its domain.

    Raises
    ------
    ValueError
        For an energy out of its domain, or an ion without fits: P, K, Sc, Ti, V, Mn, Cu, Zn have them only as atoms.

    Notes
    -----
    Verner & Yakovlev 1995 and Verner et al. 1996, combined as described at the top of the module. Edges are sharp: fine
    structure and resonances are not in the fits.

    Examples
    --------
    >>> photoionization_cross_section(0.6, Z=8, num_electrons=8)  # neutral oxygen above its K edge
    """
    for name, value in (("Z", Z), ("num_electrons", num_electrons)):
        if int(value) != value:
            raise ValueError(f"{name}: expected a whole number; found {value!r}.")
    energy, inside = within("energy", energy, 1e-3, 500.0, "keV")
    fits = fits_of(((int(Z), int(num_electrons)),))
    coefficients = fits.shells, fits.outer if (fits.switch > 0).any() else None, fits.switch
    return _one_ion(energy, inside, *as_constants(coefficients))


def parse_ion(name: str) -> tuple[int, int]:
    """Nuclear charge and number of electrons of an ion in the spectroscopic notation, as ``"O VII"``.

    Raises
    ------
    ValueError
        If it is none.

    Examples
    --------
    >>> parse_ion("O VII")
    (8, 2)
    """
    element, _, numeral = name.strip().partition(" ")
    if element not in ELEMENTS:
        raise ValueError(
            f"ion {name!r}: expected an element and a numeral, as 'O VII'{did_you_mean(element, ELEMENTS)}."
        )
    Z = ELEMENTS.index(element) + 1
    numerals = [_numeral(charge + 1) for charge in range(Z + 1)]
    if numeral not in numerals:
        raise ValueError(f"ion {name!r}: expected a numeral from I to {numerals[-1]}; found {numeral!r}.")
    return Z, Z - numerals.index(numeral)


def ion_name(Z: int, num_electrons: int) -> str:
    """Spectroscopic notation of an ion, the inverse of `parse_ion`."""
    return f"{ELEMENTS[Z - 1]} {_numeral(Z - num_electrons + 1)}"


def _numeral(number: int) -> str:
    return "X" * ((number - 1) // 10) + _NUMERALS[(number - 1) % 10]


def all_ions(elements: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ions with at least one electron of some elements, each from the neutral atom on."""
    return tuple((Z, n) for Z in elements for n in range(Z, 0, -1))
