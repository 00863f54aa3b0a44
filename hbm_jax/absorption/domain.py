"""The border of the kernels: what is known when a function is called is checked there, what is traced becomes NaN."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.names import did_you_mean, listed

# keV. The fits are made for 50 keV and less; they go on as power laws, and absorb nothing to speak of there, but a
# burst at redshift 9 seen at 30 keV has to be computed.
MIN_ENERGY, MAX_ENERGY = 0.03, 500.0
# K. All rates are positive there; some fits end before: Voronov's begins at 1 eV, Badnell's of H I and He II end at 1e7
# and 4e7 K, where those ions are one in 1e6 or less. For the hydrogenic formula see `ion_fractions`.
LOG10_T = (4.0, 8.0)
LOG10_XI = (-12.0, 8.0)  # erg cm/s
_ROUNDING = 1e-6  # relative: a bound written in single precision is within


def within(name: str, value: ArrayLike, low: float, high: float, unit: str = "") -> tuple[jax.Array, Any]:
    """Return a value as a floating array, and whether it is in its domain: of a known value, in NumPy.

    Raises
    ------
    ValueError
        If the value is not traced and somewhere outside.
    """
    lowest, highest = low - _ROUNDING * abs(low), high + _ROUNDING * abs(high)
    if not isinstance(value, jax.core.Tracer):
        found = np.asarray(value, dtype=float)
        wrong = ~((found >= lowest) & (found <= highest))
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            unit = f" {unit}" if unit else ""
            limit = f"at least {low:g}{unit}" if np.isinf(high) else f"between {low:g} and {high:g}{unit}"
            raise ValueError(f"{name}{list(index) if index else ''}: expected {limit}; found {found[index]:g}.")
        # Nothing is left to compute, and so no operation to compile.
        return jnp.asarray(value, jnp.result_type(float, jnp.asarray(value).dtype)), np.ones(found.shape, bool)
    value = jnp.asarray(value)
    value = value.astype(jnp.result_type(float, value.dtype))
    return value, (value >= lowest) & (value <= highest)


def one_of(what: str, value: Any, known: tuple[str, ...]) -> str:
    """Return a choice, or raise ValueError that names the nearest one."""
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ValueError(f"unknown {what} {value!r}{near}: expected one of {listed(known)}.")
    return value


def masked(value: jax.Array, inside: jax.Array | np.ndarray) -> jax.Array:
    """NaN where not inside; the last step, so that no gradient inside is spoilt."""
    if isinstance(inside, np.ndarray) and inside.all():
        return value
    return jnp.where(inside, value, np.nan)


def as_constants(tree: Any) -> Any:
    """Return a tree with its NumPy arrays as arrays of JAX in the precision in use; other leaves stay.

    Compiled functions, and `jnp.asarray` without a dtype, have been seen to take arrays of NumPy in double precision
    within ``jax.enable_x64(False)``, where the process had used both precisions.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if isinstance(x, np.ndarray) else x, tree)
