"""Running integrals of cross sections over log energy, for line-of-sight integrals across absorption edges.

With L = log E, S1(L) is the integral of sigma from L to the end of the table, S2 that of S1 and S3 that of S2. The
integral of sigma(L + u) times a parabola in u = log(1 + z) is a combination of their differences, exact wherever the
edges are. All three are cubic Hermite tables with exact slopes and a node at every edge.
"""

from typing import NamedTuple

import jax
import numpy as np

from hbm_jax.absorption.cross_sections import evaluate, fit_coefficients
from hbm_jax.absorption.domain import MAX_ENERGY, MIN_ENERGY
from hbm_jax.absorption.rates import ABSORBING
from hbm_jax.precomputation import cached_once

NUM_NODES = 200  # initial number of nodes, in addition to those at edges
# Error of S1 at the middle of an interval, relative to the integral over the interval; if it is larger, the interval is
# halved. Some fits, such as that of Fe XIX, bend sharply within 10 eV of an edge.
TOLERANCE = 1e-5
ROUNDS = 8
GAUSS_NODES = 8  # per interval: exact to 1e-13


class RunningIntegrals(NamedTuple):
    """Running integrals and cross sections at nodes in log energy; the last axis may be that of several ions.

    Attributes
    ----------
    node : (nodes,)
        L = log(E / keV), increasing.
    first, second, third : (nodes, ...)
        S1, S2 and S3 [1e-22 cm^2].
    sigma_above, sigma_below : (nodes, ...)
        sigma just above and just below each node, which differ at an edge.
    """

    node: jax.Array | np.ndarray
    first: jax.Array | np.ndarray
    second: jax.Array | np.ndarray
    third: jax.Array | np.ndarray
    sigma_above: jax.Array | np.ndarray
    sigma_below: jax.Array | np.ndarray


@cached_once()
def running_integrals() -> RunningIntegrals:
    """Return the tables of all ions of `ABSORBING`, (nodes, ions), in double precision."""
    fits = fit_coefficients(ABSORBING)
    low, high = np.log(MIN_ENERGY), np.log(MAX_ENERGY)
    edges = np.log(np.concatenate(fits.thresholds()))
    edges = edges[(edges > low) & (edges < high - 0.1)]
    node = np.unique(np.concatenate([np.linspace(low, high, NUM_NODES), edges]))
    # The same edge may differ by rounding between ions.
    node = node[np.append(True, np.diff(node) > 1e-9)]
    lower, upper = node[:-1], node[1:]
    for _ in range(ROUNDS):  # halve the inaccurate intervals
        inaccurate = _is_inaccurate(lower, upper, fits)
        middle = 0.5 * (lower + upper)[inaccurate]
        node = np.sort(np.concatenate([node, middle]))
        lower, upper = np.concatenate([lower[inaccurate], middle]), np.concatenate([middle, upper[inaccurate]])
    x, w = np.polynomial.legendre.leggauss(GAUSS_NODES)
    half = 0.5 * np.diff(node)[:, None]
    log_energy = node[:-1, None] + half * (1.0 + x)
    sigma = evaluate(np.exp(log_energy), fits)
    width, offset = np.diff(node)[:, None], log_energy - node[:-1, None]
    moments = [np.einsum("lij,ij->il", sigma, half * w * offset**k) for k in range(3)]
    S1 = _sum_from_end(moments[0])
    S2 = _sum_from_end(S1[1:] * width + moments[1])
    S3 = _sum_from_end(S2[1:] * width + 0.5 * S1[1:] * width**2 + 0.5 * moments[2])
    return RunningIntegrals(node, S1, S2, S3, *_one_sided_sigma(node, fits))


def _one_sided_sigma(node, fits):
    """Return the cross sections just above and just below each node, (nodes, ions)."""
    return evaluate(np.exp(node) * (1.0 + 1e-13), fits).T, evaluate(np.exp(node) * (1.0 - 1e-13), fits).T


def _is_inaccurate(lower, upper, fits):
    """Return the mask of the intervals whose cubic is too inaccurate for some ion."""
    x, w = np.polynomial.legendre.leggauss(GAUSS_NODES)
    quarter = 0.25 * (upper - lower)[:, None, None]
    starts = np.stack([lower, 0.5 * (lower + upper)], axis=-1)[..., None]
    halves = quarter * np.einsum("lihj,j->ihl", evaluate(np.exp(starts + quarter * (1.0 + x)), fits), w)
    integral = halves.sum(axis=1)
    sigma_at_lower, sigma_at_upper = _one_sided_sigma(lower, fits)[0], _one_sided_sigma(upper, fits)[1]
    # Integral over the lower half of the interval, from the cubic through values and slopes of S1 at its ends.
    cubic = 0.5 * integral + 0.5 * quarter[..., 0] * (sigma_at_lower - sigma_at_upper)
    return (np.abs(cubic - halves[:, 0]) > TOLERANCE * integral).any(axis=1)


def _sum_from_end(steps):
    """Return the sums of steps from each node to the last."""
    return np.concatenate([np.cumsum(steps[::-1], axis=0)[::-1], np.zeros((1, steps.shape[1]))])


def hermite_weights(L, node):
    """Return the interval of each L, and the weights of values and slopes at its two ends.

    Both arguments are NumPy arrays, or both are JAX arrays.

    Returns
    -------
    interval : integer array of the shape of L
    value_weights, slope_weights : pairs of arrays
        S1(L) is the sum of value weights times S1 and slope weights times -sigma at the ends; likewise S2(L) with S2
        and -S1, and S3(L) with S3 and -S2.
    """
    interval = (node.searchsorted(L, side="right") - 1).clip(0, len(node) - 2)
    width = node[interval + 1] - node[interval]
    t = (L - node[interval]) / width
    s = 1.0 - t
    values = (s * s * (1.0 + 2.0 * t), t * t * (3.0 - 2.0 * t))
    slopes = (width * t * s * s, -width * t * t * s)
    return interval, values, slopes


def look_up(table: RunningIntegrals, L: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return S1, S2 and S3 at L of any shape within the table; its columns are (nodes,), of one sum over ions."""
    i, (v0, v1), (s0, s1) = hermite_weights(L, table.node)
    first0, first1, second0, second1 = table.first[i], table.first[i + 1], table.second[i], table.second[i + 1]
    first = v0 * first0 + v1 * first1 - s0 * table.sigma_above[i] - s1 * table.sigma_below[i + 1]
    second = v0 * second0 + v1 * second1 - s0 * first0 - s1 * first1
    third = v0 * table.third[i] + v1 * table.third[i + 1] - s0 * second0 - s1 * second1
    return first, second, third
