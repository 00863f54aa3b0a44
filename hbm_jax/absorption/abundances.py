"""Elemental abundances from H to Zn, by number relative to hydrogen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption.coefficients import table
from hbm_jax.absorption.domain import one_of
from hbm_jax.validation import concrete

ABUNDANCES = ("wilm", "angr", "aspl", "lodd", "grsa", "feld", "aneb")
ELEMENTS = (
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P",
    "S", "Cl", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn",
)  # fmt: skip


def abundance_table(name: str = "wilm") -> np.ndarray:
    """Return a published abundance table.

    Parameters
    ----------
    name : str
        ``"wilm"`` Wilms, Allen & McCray 2000; ``"angr"`` Anders & Grevesse 1989; ``"aspl"`` Asplund et al. 2009;
        ``"lodd"`` Lodders 2003; ``"grsa"`` Grevesse & Sauval 1998; ``"feld"`` Feldman 1992; ``"aneb"`` Anders & Ebihara
        1982. Names and values are those of XSPEC.

    Returns
    -------
    (30,) array
        Number of atoms per hydrogen atom, H to Zn (`ELEMENTS`); 0 where the table has no value.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the nearest known one.

    Examples
    --------
    >>> float(abundance_table("wilm")[ELEMENTS.index("O")])
    0.00049
    """
    return table("abundances")[one_of("abundance table", name, ABUNDANCES)]


def as_abundances(abundances: Any) -> jax.Array | np.ndarray:
    """Return the abundances (30,) of a named table, or the given values; traced values below 0 become NaN.

    Raises
    ------
    ValueError
        For an unknown name, a wrong shape, or concrete values that are negative or not finite.
    """
    if isinstance(abundances, str):
        return abundance_table(abundances)
    if np.shape(abundances) != (len(ELEMENTS),):
        raise ValueError(
            f"abundances: expected the name of a table or {len(ELEMENTS)} numbers, H to Zn; found an array of shape "
            f"{np.shape(abundances)}."
        )
    values = concrete(abundances)
    if values is None:
        return jnp.where(abundances >= 0, abundances, jnp.nan)
    invalid = ~(np.isfinite(values) & (values >= 0))
    if invalid.any():
        i = int(np.flatnonzero(invalid)[0])
        raise ValueError(f"abundances[{i}] ({ELEMENTS[i]}): expected a number not below 0; found {values[i]}.")
    return values
