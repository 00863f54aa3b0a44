"""Domains of the arguments of absorption functions: concrete values outside raise an error, traced ones give NaN."""

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
    """Return a value as a floating array, and the mask of its elements inside the domain.

    For a concrete value the mask is a NumPy array, all True.

    Raises
    ------
    ValueError
        If a concrete value has an element outside the domain.
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


def one_of(kind: str, value: Any, names: tuple[str, ...]) -> str:
    """Return `value` if it is one of the names; otherwise raise ValueError, suggesting the nearest name."""
    if not isinstance(value, str) or value not in names:
        suggestion = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"unknown {kind} {value!r}{suggestion}: expected one of {listed(names)}.")
    return value


def masked(value: jax.Array, inside: jax.Array | np.ndarray) -> jax.Array:
    """Return `value` with NaN outside the domain.

    It must be the last step of a function: a NaN earlier in it would make gradients inside the domain NaN.
    """
    if isinstance(inside, np.ndarray) and inside.all():
        return value
    return jnp.where(inside, value, np.nan)


def as_constants(tree: Any) -> Any:
    """Return a pytree whose NumPy arrays are replaced by JAX arrays in the current precision.

    JAX does not always convert them itself: within ``jax.enable_x64(False)``, compiled functions and `jnp.asarray` kept
    NumPy arrays in double precision if the process had used both precisions before.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, np.ndarray) else x, tree)
