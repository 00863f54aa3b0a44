"""Fixed quadrature of e^(power u) / E over u = log(1 + z), for a few or for many redshifts.

Two rules:

- `integral_direct`, for few redshifts: Gauss-Legendre nodes on each [0, u]. The cost is (number of redshifts) x
  `DIRECT_NODES`.
- `integral_in_panels`, for many: [0, u_max] is divided into panels. In each panel the integrand is interpolated at
  `PANEL_NODES` Chebyshev nodes, and the antiderivative is a table of polynomials. Each redshift costs one look-up and
  one Horner sum.

Loitering universes determine the number of nodes: 1/E has a branch point where E^2 = 0, which approaches the real axis
as the minimum of E^2 approaches 0. A single rule over [0, log 11] needs 48 nodes for ordinary universes, but 256 for an
error of 1e-10 at E^2 > 0.01, in any variable; relative to a short panel, the branch point is further away. NaN is never
used internally: both rules return a finite integral and the mask of its domain.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology.dark_energy import breaks_of
from hbm_jax.cosmology.expansion import Cosmology, guarded_inverse_e

# Relative errors for universes with min E^2 in [0.01, 0.02], z = 10: 1e-8 (192 nodes), 4e-11 (256), 2e-13 (320).
DIRECT_NODES = 320
# Largest relative errors for the same universes, of the integral and of its derivative: 8e-15 and 1e-11 (8 nodes, width
# 0.01), 2e-13 and 8e-11 (6 nodes, width 0.005). Look-ups cost more than nodes, so narrower panels are faster.
PANEL_NODES = 6
PANEL_WIDTH = 0.005
# The largest traced redshift is unknown when the number of panels is chosen; 512 have width 0.005 up to z = 10.
TRACED_PANELS = 512
# Panel edges in log(1 + z) for the integral to infinite redshift. It is truncated at 45: 1/E falls at least as fast as
# e^-u, and e^-45 = 3e-20.
_TAIL_EDGES = np.concatenate([np.linspace(0.0, 5.0, 41), np.linspace(10.0, 45.0, 8)])
_TAIL_NODES = 16
SMALLEST_RANGE = 1e-3  # smallest u_max, so that panels have a positive width even if all redshifts are zero


class Panels(NamedTuple):
    """Positions of redshifts in the panels of [0, u_max]."""

    panel: jax.Array | np.ndarray  # index of the panel, shape of z
    offset: jax.Array | np.ndarray  # position within the panel, from 0 at its lower edge to 1 at its upper edge
    u_max: jax.Array | np.ndarray  # scalar
    inside: jax.Array | np.ndarray  # True for redshifts that are finite and not negative


def log_redshift(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return log(1 + z), and the mask of finite, non-negative z; the logarithm is 0 where the mask is False."""
    inside = (z >= 0) & jnp.isfinite(z)
    return jnp.log1p(jnp.where(inside, z, 0.0)), inside


def locate(z: jax.Array, num_panels: int) -> Panels:
    """Return the positions of traced redshifts in panels."""
    u, inside = log_redshift(z)
    # The integral up to u does not depend on u_max.
    return positions(u, jax.lax.stop_gradient(jnp.max(u, initial=SMALLEST_RANGE)), inside, num_panels)


def positions(u, u_max, inside, num_panels: int) -> Panels:
    """Return the positions of u = log(1 + z), a NumPy or JAX array, in panels of [0, u_max]."""
    position = u * (num_panels / u_max)
    index = position.astype(np.int32).clip(None, num_panels - 1)
    return Panels(index, position - index, u_max, inside)


def _unit_chebyshev(num: int) -> np.ndarray:
    """Return Chebyshev nodes of the first kind on [0, 1]."""
    return (1.0 - np.cos(np.pi * (np.arange(num) + 0.5) / num)) / 2.0


def _mean_matrix(num: int) -> np.ndarray:
    """Return the matrix that turns values of a function at the nodes into the polynomial of its mean over [0, t].

    The nodes are those of `_unit_chebyshev`, the coefficients those of powers of 2 t - 1. Powers of t would have
    coefficients of 1e5 and lose five digits. The mean times t keeps its relative accuracy as t goes to 0, unlike the
    integral itself.
    """
    powers_from_values = np.linalg.inv(np.vander(2.0 * _unit_chebyshev(num) - 1.0, num, increasing=True))
    i, j = np.meshgrid(np.arange(num), np.arange(num))
    # The mean of u^i over u from -1 to s = 2 t - 1 is the sum over j <= i of (-1)^(i - j) s^j / (i + 1).
    mean_from_powers = np.where(j <= i, (-1.0) ** (i - j) / (i + 1), 0.0)
    return mean_from_powers @ powers_from_values


@functools.cache
def _unit_legendre(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(num)
    return (x + 1.0) / 2.0, w / 2.0


def _integrand(u, power: int, cosmology: Cosmology):
    """Return e^(power u) / E, and the mask E^2 > 0."""
    inverse_e, positive = guarded_inverse_e(u, cosmology)
    return (jnp.exp(power * u) * inverse_e if power else inverse_e), positive


def integral_direct(u: jax.Array, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
    """Return the integral from 0 to each u, split at the breaks of the expansion, and the mask E^2 > 0 on [0, u]."""
    nodes, weights = (a.astype(u.dtype) for a in _unit_legendre(DIRECT_NODES))
    value, in_domain = jnp.zeros_like(u), jnp.ones(u.shape, bool)
    breaks = np.log1p(breaks_of(cosmology))
    for low, high in itertools.pairwise([0.0, *breaks, np.inf]):
        width = jnp.clip(u - low, 0.0, high - low) if len(breaks) else u
        offsets = width[..., None] * nodes
        values, positive = _integrand(offsets + low if low else offsets, power, cosmology)
        # The factor outside the sum keeps the relative accuracy, and the derivative at u = 0.
        value = value + width * jnp.sum(values * weights, axis=-1)
        in_domain = in_domain & jnp.all(positive, axis=-1)
    return value, in_domain


def tail_direct(u: jax.Array, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
    """Return the integral of 1/E from each u to infinity, and the mask E^2 > 0 there.

    E must grow at least as fast as 1 + z.
    """
    x, w = _unit_legendre(_TAIL_NODES)
    width = np.diff(_TAIL_EDGES)[:, None]
    nodes = (_TAIL_EDGES[:-1, None] + width * x).ravel().astype(u.dtype)
    weights = (width * w).ravel().astype(u.dtype)
    values, positive = _integrand(u[..., None] + nodes, 0, cosmology)
    return jnp.sum(values * weights, axis=-1), jnp.all(positive, axis=-1)


def _table(u_max, num_panels: int, power: int, cosmology: Cosmology):
    """Return polynomials (nodes, panels) and integrals (panels,), and the mask of panels with E^2 <= 0 at a node."""
    dtype = u_max.dtype
    width = u_max / num_panels
    nodes = np.arange(num_panels)[:, None] + _unit_chebyshev(PANEL_NODES)
    values, positive = _integrand(nodes.astype(dtype) * width, power, cosmology)
    matrix = _mean_matrix(PANEL_NODES).astype(dtype)
    # Accelerators compute matrix products with a few digits by default.
    coefficients = jnp.matmul(matrix, values.T * width, precision=jax.lax.Precision.HIGHEST)
    # At the upper edge all powers of 2 t - 1 are 1.
    return coefficients, jnp.sum(coefficients, axis=0), ~jnp.all(positive, axis=-1)


def _look_up(row, panels: Panels):
    """Return the entry of a row of the table for the panel of each redshift."""
    # `positions` keeps indices in bounds, so look-ups need no check.
    return row.at[panels.panel].get(mode="promise_in_bounds")


def _within_panel(coefficients, panels: Panels):
    """Return the integral to each redshift from the lower edge of its panel."""
    centred = 2.0 * panels.offset - 1.0
    mean = _look_up(coefficients[-1], panels)
    for row in coefficients[-2::-1]:
        mean = mean * centred + _look_up(row, panels)
    return mean * panels.offset


def integral_in_panels(panels: Panels, num_panels: int, power: int, cosmology: Cosmology):
    """Return the integral from 0 to each redshift, and the mask E^2 > 0 from 0 to the upper edge of its panel."""
    coefficients, panel_integrals, invalid = _table(jnp.asarray(panels.u_max), num_panels, power, cosmology)
    below = jnp.concatenate([jnp.zeros_like(panel_integrals[:1]), jnp.cumsum(panel_integrals)[:-1]])
    first_invalid = jnp.min(jnp.where(invalid, np.arange(num_panels), num_panels))
    value = _look_up(below, panels) + _within_panel(coefficients, panels)
    return value, (panels.panel < first_invalid) & panels.inside


def tail_in_panels(panels: Panels, num_panels: int, cosmology: Cosmology):
    """Return the integral of 1/E from each redshift to infinity, and the mask E^2 > 0 there and in the whole panel."""
    u_max = jnp.asarray(panels.u_max)
    coefficients, panel_integrals, invalid = _table(u_max, num_panels, 0, cosmology)
    tail, tail_positive = tail_direct(u_max, cosmology)
    # Summed from infinity downwards, because a difference of two long integrals would lose digits at high redshift.
    above = tail + jnp.cumsum(panel_integrals[::-1])[::-1]
    last_invalid = jnp.max(jnp.where(invalid, np.arange(num_panels), -1))
    value = _look_up(above, panels) - _within_panel(coefficients, panels)
    return value, (panels.panel > last_invalid) & tail_positive & panels.inside
