"""Rates of recombination and collisional ionisation of all ions in the balance, as functions of temperature.

Each recombination rate is the sum of a radiative fit, given by one of three formulas, and of dielectronic terms. The
collection of rates, *modern* or *older*, decides which fits an ion has.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax import constants
from hbm_jax.absorption.coefficients import rows_of
from hbm_jax.absorption.cross_sections import all_ions

BALANCE = (1, 2, 6, 7, 8, 10, 12, 14, 16, 26)  # H He C N O Ne Mg Si S Fe
# Ions with at least one electron; rates of the transitions between an ion and the next charge state have the same order
ABSORBING = all_ions(BALANCE)
RATES = ("modern", "older")
_PAIR = ("Z", "N_final")  # columns that identify an ion: nuclear charge, electrons after recombination


@dataclass(frozen=True)
class Recombination:
    """Coefficients of the recombination into each ion of `ABSORBING`.

    Attributes
    ----------
    badnell : (6, ions)
        a, b, T0, T1, C, T2 of Badnell's formula, which includes that of Verner & Ferland as a special case; a is 0 for
        ions with another formula.
    power_law : (2, ions)
        A and eta of a power law; A is 0 for ions with another formula.
    hydrogenic : (ions,)
        Nuclear charge of ions with the hydrogenic formula, 0 for others.
    dielectronic : (2, ions, terms)
        c and E of the dielectronic sum.
    """

    badnell: np.ndarray
    power_law: np.ndarray
    hydrogenic: np.ndarray
    dielectronic: np.ndarray

    def __call__(self, T: jax.Array) -> jax.Array:
        """Return the rates (ions,) [cm^3/s] at a temperature [K]."""
        dtype = T.dtype
        a, b, T0, T1, C, T2 = self.badnell.astype(dtype)
        root0, root1 = jnp.sqrt(T / T0), jnp.sqrt(T / T1)
        b = b + C * jnp.exp(-T2 / T)
        total = a / (root0 * (1.0 + root0) ** (1.0 - b) * (1.0 + root1) ** (1.0 + b))
        if self.power_law[0].any():
            A, eta = self.power_law.astype(dtype)
            total = total + A * (T / 1e4) ** -eta
        if self.hydrogenic.any():
            # Bare nuclei of charge Z, with y = Z^2 158 000 K / T, the ionisation energy of the ion divided by k T.
            Z2 = self.hydrogenic.astype(dtype) ** 2
            y = 15.8e4 * jnp.where(Z2 > 0, Z2, 1.0) / T
            total = total + 1.033e-13 * Z2 * (T / 1e4) ** -0.5 * (1.735 + jnp.log(y) + 1.0 / (6.0 * y))
        c, E = self.dielectronic.astype(dtype)
        return total + T**-1.5 * jnp.sum(c * jnp.exp(-E / T), axis=-1)


@functools.cache
def recombination(rates: str) -> Recombination:
    """Return the recombination coefficients of a collection of rates.

    ``"modern"``: Badnell 2006 and the dielectronic series of Badnell et al. 2003. They have no fits for recombination
    into ions of S with 16 electrons and of Fe with 21 or more. For these: Verner & Ferland 1996, or the power law for
    S, and Mazzotta et al. 1998. ``"older"``: the hydrogenic formula, the power laws and Arnaud & Rothenflug 1985.
    """
    badnell_fits = rows_of("recombination_radiative_badnell_2006", _PAIR, ("A", "B", "T0", "T1", "C", "T2"))
    ferland_fits = rows_of("recombination_radiative_verner_ferland_1996", _PAIR, ("a", "b", "T0", "T1"))
    power_law_fits = rows_of("recombination_radiative_power_law", _PAIR, ("A", "eta"))
    num = len(ABSORBING)
    badnell, power_law, hydrogenic = np.ones((6, num)), np.zeros((2, num)), np.zeros(num)
    badnell[0], badnell[4], badnell[5] = 0.0, 0.0, 0.0  # A, C and T2, which not all ions have
    for i, ion in enumerate(ABSORBING):
        if rates == "modern" and ion in badnell_fits:
            badnell[:, i] = badnell_fits[ion][0]
        elif rates == "modern" and ion in ferland_fits and ion[0] != 16:
            badnell[:4, i] = ferland_fits[ion][0]
        elif ion[1] == 1:
            hydrogenic[i] = ion[0]
        else:
            power_law[:, i] = power_law_fits[ion][0]
    terms = _dielectronic(rates)
    num_terms = max(len(t) for t in terms)
    dielectronic = np.zeros((2, num, num_terms))
    dielectronic[1] = 1.0
    for i, ion_terms in enumerate(terms):
        if len(ion_terms):
            dielectronic[:, i, : len(ion_terms)] = np.transpose(ion_terms)
    return Recombination(badnell, power_law, hydrogenic, dielectronic)


def _dielectronic(rates: str) -> list[list[np.ndarray]]:
    """Return the dielectronic terms (c, E) of each ion of `ABSORBING`."""
    if rates == "modern":
        badnell = rows_of("recombination_dielectronic_badnell", _PAIR, ("c_i", "E_i"))
        mazzotta = rows_of("recombination_dielectronic_mazzotta_1998", _PAIR, ("c_i", "E_i"))
        return [badnell.get(ion, mazzotta.get(ion, [])) for ion in ABSORBING]
    older = rows_of("recombination_dielectronic_arnaud_rothenflug_1985", _PAIR, ("A_di", "B_di", "T0", "T1"))
    # A exp(-T0/T) (1 + B exp(-T1/T)) is a sum of two terms.
    return [
        [np.array(term) for A, B, T0, T1 in older.get(ion, []) for term in ((A, T0), (A * B, T0 + T1))]
        for ion in ABSORBING
    ]


@functools.cache
def _voronov() -> np.ndarray:
    """Return the coefficients of Voronov 1997, (5, ions)."""
    rows = rows_of("collisional_ionization_voronov_1997", ("Z", "N_electrons"), ("dE_eV", "P", "A", "X", "K"))
    return np.stack([rows[ion][0] for ion in ABSORBING], axis=-1)


def log_collisional_ionization(T: jax.Array) -> jax.Array:
    """Return the logarithms of the collisional ionisation rates (ions,) [cm^3/s] (Voronov 1997) at a temperature [K].

    The logarithm is used because rates of highly charged ions underflow at low temperature.
    """
    dE, P, A, X, K = _voronov().astype(T.dtype)
    U = dE / (constants.boltzmann_constant_ev * T)
    return jnp.log(A) + jnp.log1p(P * jnp.sqrt(U)) + K * jnp.log(U) - U - jnp.log(X + U)
