"""Photo-ionisation cross sections of atoms and ions, from two sets of published analytic fits.

Subshell fits of Verner & Yakovlev 1995 (A&AS 109, 125), and fits to R-matrix results for the outer shell by Verner,
Ferland, Korista & Yakovlev 1996 (ApJ 465, 487). For ions with both, the outer-shell fit is used below the threshold of
the next inner shell, and the sum of the subshell fits above.
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
    """Fit coefficients of several ions, padded to the same number of subshells.

    Attributes
    ----------
    ions : tuple of (Z, num_electrons)
        Nuclear charge and number of electrons of each ion.
    shells : (7, ions, subshells)
        Coefficients of the subshell fits, in the order of `_SHELL`; padding has an infinite threshold.
    outer : (8, ions, 1)
        Coefficients of the outer-shell fits, in the order of `_OUTER`; ions without one have an infinite threshold.
    switch : (ions,)
        Energy [eV] below which the outer-shell fit is used.
    """

    ions: tuple[tuple[int, int], ...]
    shells: np.ndarray
    outer: np.ndarray
    switch: np.ndarray

    @property
    def coefficients(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """`shells`, `outer` (None if no ion has an outer-shell fit) and `switch`."""
        return self.shells, self.outer if (self.switch > 0).any() else None, self.switch

    def thresholds(self) -> list[np.ndarray]:
        """Return the energies [keV] at which the cross section of each ion is discontinuous, in increasing order."""
        thresholds = []
        for i in range(len(self.ions)):
            edges = self.shells[0, i]
            if self.switch[i] > 0:
                edges = np.concatenate([edges[edges >= self.switch[i]], self.outer[0, i], self.switch[i : i + 1]])
            thresholds.append(np.unique(edges[np.isfinite(edges)]) / 1e3)
        return thresholds


@functools.cache
def fit_coefficients(ions: tuple[tuple[int, int], ...]) -> Fits:
    """Return the fit coefficients of ions, each (Z, num_electrons); raise ValueError for an ion without fits."""
    by_shell = rows_of("verner_yakovlev_1995", ("Z", "N_electrons"), _SHELL)
    quantum_numbers = rows_of("verner_yakovlev_1995", ("Z", "N_electrons"), ("n", "l"))
    outer_fits = rows_of("verner_1996", ("Z", "N_electrons"), _OUTER)
    for ion in ions:
        if ion not in by_shell:
            raise ValueError(_unknown_ion(ion))
    num_subshells = max(len(by_shell[ion]) for ion in ions)
    shells = np.ones((len(_SHELL), len(ions), num_subshells))
    outer = np.ones((len(_OUTER), len(ions), 1))
    switch = np.zeros(len(ions))
    shells[0], outer[0] = np.inf, np.inf  # padding: no photon is above the threshold
    for i, ion in enumerate(ions):
        shells[:, i, : len(by_shell[ion])] = np.transpose(by_shell[ion])
        if ion in outer_fits:
            outer[:, i] = np.transpose(outer_fits[ion])
            switch[i] = _inner_edge(ion[1], quantum_numbers[ion], by_shell[ion])
    return Fits(ions, shells, outer, switch)


def _inner_edge(num_electrons, quantum_numbers, shells) -> float:
    """Return the threshold [eV] of the first shell inside the outer one: 1s, 2p or 3p."""
    if num_electrons <= 2:
        return np.inf
    inner = (1, 0) if num_electrons <= 10 else (2, 1) if num_electrons <= 18 else (3, 1)
    return next(float(s[0]) for nl, s in zip(quantum_numbers, shells, strict=True) if tuple(nl) == inner)


def _unknown_ion(ion) -> str:
    """Return the error message for an ion without fits."""
    Z, num_electrons = ion
    if not 1 <= Z <= len(ELEMENTS):
        return f"Z: expected the nuclear charge of an element from H (1) to Zn (30); found {Z}."
    if not 1 <= num_electrons <= Z:
        return f"num_electrons of {ELEMENTS[Z - 1]}: expected 1 to {Z}; found {num_electrons}."
    return f"{ELEMENTS[Z - 1]} with {num_electrons} electrons: there are fits for the neutral atom only."


def evaluate(energy: Any, fits: Fits) -> Any:
    """Return the cross sections of all ions of ``fits``.

    Parameters
    ----------
    energy : array of any shape
        Photon energy [keV], positive: a NumPy array, for precomputation in double precision, or a JAX array.
    fits : Fits
        Coefficients of the ions.

    Returns
    -------
    (ions, *energy.shape) array
        [1e-22 cm^2], of the same kind as the energy.
    """
    return _sum_of_shells(energy, *fits.coefficients)


def _sum_of_shells(energy, shells, outer, switch):
    """Return the cross sections (ions, ...): the outer-shell fit below `switch`, the sum of the subshell fits above."""
    shape = np.shape(energy)
    energy = (energy * 1e3).reshape(1, 1, -1)  # eV
    dtype = energy.dtype
    threshold, E_0, sigma_0, y_a, P, y_w, angular = (c[..., None].astype(dtype) for c in shells)
    y = energy / E_0
    subshell_sigma = _fit_shape(y, y - 1.0, 5.5 + angular - 0.5 * P, y_a, P, y_w) * (sigma_0 * MEGABARN)
    total = (subshell_sigma * (energy >= threshold)).sum(axis=1)
    if outer is not None:
        threshold, E_0, sigma_0, y_a, P, y_w, y_0, y_1 = (c[..., None].astype(dtype) for c in outer)
        x = energy / E_0 - y_0
        y = (x**2 + y_1**2) ** 0.5
        outer_sigma = _fit_shape(y, x - 1.0, 5.5 - 0.5 * P, y_a, P, y_w) * (sigma_0 * MEGABARN)
        is_outer = energy[0] < switch[:, None].astype(dtype)
        total = (outer_sigma * (energy >= threshold))[:, 0] * is_outer + total * ~is_outer
    return total.reshape(len(switch), *shape)


@jax.jit
def _single_ion(energy, inside, shells, outer, switch):
    """Return the cross section of one ion.

    Coefficients are arguments, so that ions with equally many subshells share a compiled program.
    """
    return masked(_sum_of_shells(jnp.where(inside, energy, 1.0), shells, outer, switch)[0], inside)


def _fit_shape(y, difference, Q, y_a, P, y_w):
    """Return the energy dependence common to both fits; `difference` is y - 1 for a subshell, x - 1 for the outer."""
    return (difference**2 + y_w**2) * y**-Q * (1.0 + (y / y_a) ** 0.5) ** -P


def photoionization_cross_section(energy: ArrayLike, Z: int, num_electrons: int) -> jax.Array:
    """Return the photo-ionisation cross section of an ion in its ground state.

    Parameters
    ----------
    energy : array of any shape
        Photon energy in the rest frame of the ion [keV], 0.001 to 500; the fits were made for 50 keV and less.
    Z : int
        Nuclear charge, 1 to 30.
    num_electrons : int
        Number of electrons of the ion, 1 to Z.

    Returns
    -------
    array of the shape of energy
        [1e-22 cm^2]; 0 below the first threshold, NaN where a traced energy is outside its domain.

    Raises
    ------
    ValueError
        For an energy outside its domain, or an ion without fits: P, K, Sc, Ti, V, Mn, Cu, Zn have them only as neutral
        atoms.

    Notes
    -----
    Verner & Yakovlev 1995 and Verner et al. 1996, combined as described at the top of the module. Edges are sharp: the
    fits do not include fine structure and resonances.

    Examples
    --------
    >>> photoionization_cross_section(0.6, Z=8, num_electrons=8)  # neutral oxygen above its K edge
    """
    for name, value in (("Z", Z), ("num_electrons", num_electrons)):
        if int(value) != value:
            raise ValueError(f"{name}: expected a whole number; found {value!r}.")
    energy, inside = within("energy", energy, 1e-3, 500.0, "keV")
    fits = fit_coefficients(((int(Z), int(num_electrons)),))
    return _single_ion(energy, inside, *as_constants(fits.coefficients))


def parse_ion(name: str) -> tuple[int, int]:
    """Return the nuclear charge and number of electrons of an ion in spectroscopic notation, such as ``"O VII"``.

    Raises
    ------
    ValueError
        If the name is not an ion of an element from H to Zn.

    Examples
    --------
    >>> parse_ion("O VII")
    (8, 2)
    """
    element, _, numeral = name.strip().partition(" ")
    if element not in ELEMENTS:
        raise ValueError(
            f"ion {name!r}: expected an element and a numeral, such as 'O VII'{did_you_mean(element, ELEMENTS)}."
        )
    Z = ELEMENTS.index(element) + 1
    numerals = [_numeral(charge + 1) for charge in range(Z + 1)]
    if numeral not in numerals:
        raise ValueError(f"ion {name!r}: expected a numeral from I to {numerals[-1]}; found {numeral!r}.")
    return Z, Z - numerals.index(numeral)


def ion_name(Z: int, num_electrons: int) -> str:
    """Return the spectroscopic notation of an ion, the inverse of `parse_ion`."""
    return f"{ELEMENTS[Z - 1]} {_numeral(Z - num_electrons + 1)}"


def _numeral(number: int) -> str:
    """Return the Roman numeral of a number up to 39."""
    return "X" * ((number - 1) // 10) + _NUMERALS[(number - 1) % 10]


def all_ions(elements: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return all ions of the elements with at least one electron, beginning with the neutral atom of each."""
    return tuple((Z, n) for Z in elements for n in range(Z, 0, -1))
