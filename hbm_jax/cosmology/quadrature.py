"""Fixed quadrature of e^(power u) / E along u = log(1 + z), for one redshift and for very many.

Two rules, because they are fast in opposite cases and neither is fast in both:

- `integral_direct`: Gauss-Legendre nodes on each [0, u]. Its cost is (number of redshifts) x `DIRECT_NODES`.
- `integral_in_panels`: [0, u_max] is cut into panels, in each the integrand is interpolated at `PANEL_NODES`
  Chebyshev nodes, and the antiderivative is a polynomial table; a redshift costs one look-up and one Horner sum.

Universes that loitered decide the sizes: 1/E has a branch point where E^2 = 0, as close to the real axis as E^2 gets
to 0. One rule over all of [0, log 11] needs 48 nodes for ordinary universes but 256 for 1e-10 at E^2 > 0.01, whatever
the variable; short panels see the branch point from further away. NaN is never used inside: both rules return a finite
integral and whether it means anything.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology.dark_energy import breaks_of
from hbm_jax.cosmology.expansion import Cosmology, guarded_inverse_e

# Measured on universes with min E^2 in [0.01, 0.02], z = 10: 192 nodes give 1e-8, 256 give 4e-11, 320 give 2e-13.
DIRECT_NODES = 320
# Largest relative error there, of the integral and of its derivative: 8 nodes and width 0.01: 8e-15 and 1e-11, 6 and
# 0.005: 2e-13 and 8e-11. Look-ups cost more than nodes, so the narrower panels are the faster.
PANEL_NODES = 6
PANEL_WIDTH = 0.005
# For traced redshifts the range is not known when the size is chosen: this is width 0.005 up to z = 10.
TRACED_PANELS = 512
# log(1 + z) that separates panels of one rule from the next on the way to infinite redshift, and where it is cut:
# 1/E falls at least as fast as e^-u, and e^-45 = 3e-20.
_TAIL_EDGES = np.concatenate([np.linspace(0.0, 5.0, 41), np.linspace(10.0, 45.0, 8)])
_TAIL_NODES = 16
_SMALLEST_RANGE = 1e-3  # keeps the panels of a set of redshifts that are all zero from having no width


class Panels(NamedTuple):
    """Where each of many redshifts lies in the panels of [0, u_max]."""

    panel: jax.Array | np.ndarray  # the panel, integer, shape of z
    offset: jax.Array | np.ndarray  # position within it, 0 at its left edge, 1 at its right
    u_max: jax.Array | np.ndarray  # scalar
    inside: jax.Array | np.ndarray  # whether the redshift is one: finite and not negative


def log_redshift(z, xp):
    """Give log(1 + z) and whether z is a redshift, finite and not negative; 0 where it is not."""
    inside = (z >= 0) & xp.isfinite(z)
    return xp.log1p(xp.where(inside, z, 0.0)), inside


def locate(z, num_panels: int, xp) -> Panels:
    """Place redshifts in panels; `xp` is numpy for known redshifts and jax.numpy for traced ones."""
    u, inside = log_redshift(z, xp)
    u_max = xp.max(u, initial=_SMALLEST_RANGE)
    if xp is jnp:
        # The integral to u does not depend on how far the panels reach.
        u_max = jax.lax.stop_gradient(u_max)
    position = u * (num_panels / u_max)
    index = xp.minimum(position.astype(np.int32), num_panels - 1)
    return Panels(index, position - index, u_max, inside)


def _unit_chebyshev(num: int) -> np.ndarray:
    return (1.0 - np.cos(np.pi * (np.arange(num) + 0.5) / num)) / 2.0


def _mean_matrix(num: int) -> np.ndarray:
    """From values at the unit Chebyshev nodes to the mean over [0, t], as coefficients of powers of 2 t - 1.

    The mean, not the integral: t times it keeps its relative accuracy as t goes to 0. Powers of 2 t - 1, not of t:
    those have coefficients of 1e5, which cost as many digits.
    """
    powers_from_values = np.linalg.inv(np.vander(2.0 * _unit_chebyshev(num) - 1.0, num, increasing=True))
    i, j = np.meshgrid(np.arange(num), np.arange(num))
    mean_from_powers = np.where(j <= i, (-1.0) ** (i - j) / (i + 1), 0.0)
    return mean_from_powers @ powers_from_values


@functools.cache
def _unit_legendre(num: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(num)
    return (x + 1.0) / 2.0, w / 2.0


def _integrand(u, power: int, cosmology: Cosmology):
    inverse_e, positive = guarded_inverse_e(u, cosmology)
    return (jnp.exp(power * u) * inverse_e if power else inverse_e), positive


def integral_direct(u: jax.Array, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
    """Integral from 0 to each u, cut where the expansion is not smooth, and whether E^2 > 0 on the way."""
    nodes, weights = (a.astype(u.dtype) for a in _unit_legendre(DIRECT_NODES))
    value, exists = jnp.zeros_like(u), jnp.ones(u.shape, bool)
    ends = [0.0, *np.log1p(breaks_of(cosmology))]
    for place, low in enumerate(ends):
        width = u if len(ends) == 1 else jnp.clip(u - low, 0.0, [*ends, np.inf][place + 1] - low)
        at = width[..., None] * nodes
        values, positive = _integrand(at + low if low else at, power, cosmology)
        # A factor u outside keeps relative accuracy, and the derivative at u = 0.
        value = value + width * jnp.sum(values * weights, axis=-1)
        exists = exists & jnp.all(positive, axis=-1)
    return value, exists


def tail_direct(u: jax.Array, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
    """Integral of 1/E from each u to infinity, and whether E^2 > 0 all the way; E must grow at least as 1 + z."""
    x, w = _unit_legendre(_TAIL_NODES)
    width = np.diff(_TAIL_EDGES)[:, None]
    nodes = (_TAIL_EDGES[:-1, None] + width * x).ravel().astype(u.dtype)
    weights = (width * w).ravel().astype(u.dtype)
    values, positive = _integrand(u[..., None] + nodes, 0, cosmology)
    return jnp.sum(values * weights, axis=-1), jnp.all(positive, axis=-1)


def _table(u_max, num_panels: int, power: int, cosmology: Cosmology):
    dtype = u_max.dtype
    width = u_max / num_panels
    nodes = np.arange(num_panels)[:, None] + _unit_chebyshev(PANEL_NODES)
    values, positive = _integrand(nodes.astype(dtype) * width, power, cosmology)
    matrix = _mean_matrix(PANEL_NODES).astype(dtype)
    # Full precision: an accelerator's default matrix product would round to a few digits.
    coefficients = jnp.matmul(matrix, values.T * width, precision=jax.lax.Precision.HIGHEST)
    return coefficients, jnp.sum(coefficients, axis=0), ~jnp.all(positive, axis=-1)


def _look_up(row, panels: Panels):
    # `locate` keeps panels in bounds, so no look-up has to check and mask again.
    return row.at[panels.panel].get(mode="promise_in_bounds")


def _within_panel(coefficients, panels: Panels):
    centred = 2.0 * panels.offset - 1.0
    mean = _look_up(coefficients[-1], panels)
    for row in coefficients[-2::-1]:
        mean = mean * centred + _look_up(row, panels)
    return mean * panels.offset


def integral_in_panels(panels: Panels, num_panels: int, power: int, cosmology: Cosmology):
    """Integral from 0 to each redshift, and whether E^2 > 0 from 0 to the far edge of its panel."""
    coefficients, whole, broken = _table(jnp.asarray(panels.u_max), num_panels, power, cosmology)
    before = jnp.concatenate([jnp.zeros_like(whole[:1]), jnp.cumsum(whole)[:-1]])
    first_broken = jnp.min(jnp.where(broken, np.arange(num_panels), num_panels))
    value = _look_up(before, panels) + _within_panel(coefficients, panels)
    return value, (panels.panel < first_broken) & panels.inside


def tail_in_panels(panels: Panels, num_panels: int, cosmology: Cosmology):
    """Integral of 1/E from each redshift to infinity, and whether E^2 > 0 from the near edge of its panel on."""
    u_max = jnp.asarray(panels.u_max)
    coefficients, whole, broken = _table(u_max, num_panels, 0, cosmology)
    tail, tail_positive = tail_direct(u_max, cosmology)
    # Summed from the far end: differences of two long integrals would lose digits at high redshift.
    beyond = tail + jnp.cumsum(whole[::-1])[::-1]
    last_broken = jnp.max(jnp.where(broken, np.arange(num_panels), -1))
    value = _look_up(beyond, panels) - _within_panel(coefficients, panels)
    return value, (panels.panel > last_broken) & tail_positive & panels.inside
