"""Domains of the arguments of absorption functions: known values outside raise an error, traced ones give NaN."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import concrete

# keV. The fits were made for 50 keV and less. They continue as power laws, where absorption is negligible, because a
# burst at redshift 9 observed at 30 keV needs energies up to 300 keV.
MIN_ENERGY, MAX_ENERGY = 0.03, 500.0
# K. All rates are positive in this range. Some fits have smaller ranges: that of Voronov begins at 1 eV, those of
# Badnell for H I and He II end at 1e7 and 4e7 K, where their fractions are 1e-6 or less. For the hydrogenic formula see
# `ion_fractions`.
LOG10_T = (4.0, 8.0)
LOG10_XI = (-12.0, 8.0)  # erg cm/s
_ROUNDING = 1e-6  # relative tolerance, so that a bound rounded to single precision is inside


def within(name: str, value: ArrayLike, low: float, high: float, unit: str = "") -> tuple[jax.Array, Any]:
    """Return a value as a floating array and a mask of the domain, which is a NumPy array if the value is known.

    Raises
    ------
    ValueError
        If the value is known and outside its domain anywhere.
    """
    lowest, highest = low - _ROUNDING * abs(low), high + _ROUNDING * abs(high)
    values = concrete(value)
    if values is not None:
        outside = ~((values >= lowest) & (values <= highest))
        if outside.any():
            index = tuple(int(i) for i in np.argwhere(outside)[0])
            unit = f" {unit}" if unit else ""
            limit = f"at least {low:g}{unit}" if np.isinf(high) else f"between {low:g} and {high:g}{unit}"
            raise ValueError(f"{name}{list(index) if index else ''}: expected {limit}; found {values[index]:g}.")
        # A mask in NumPy needs no compiled operation.
        return jnp.asarray(value, jnp.result_type(float, jnp.asarray(value).dtype)), np.ones(values.shape, bool)
    value = jnp.asarray(value)
    value = value.astype(jnp.result_type(float, value.dtype))
    return value, (value >= lowest) & (value <= highest)


def one_of(what: str, value: Any, known: tuple[str, ...]) -> str:
    """Return a choice; raise ValueError with the nearest known one if it is unknown."""
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ValueError(f"unknown {what} {value!r}{near}: expected one of {listed(known)}.")
    return value


def masked(value: jax.Array, inside: jax.Array | np.ndarray) -> jax.Array:
    """Return NaN where not inside; must be the last step, so that gradients inside are not NaN."""
    if isinstance(inside, np.ndarray) and inside.all():
        return value
    return jnp.where(inside, value, np.nan)


def as_constants(tree: Any) -> Any:
    """Return a pytree with its NumPy arrays as JAX arrays in the current precision; other leaves are unchanged.

    Without it, compiled functions and `jnp.asarray` have kept NumPy arrays in double precision within
    ``jax.enable_x64(False)``, after the process had used both precisions.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, np.ndarray) else x, tree)
