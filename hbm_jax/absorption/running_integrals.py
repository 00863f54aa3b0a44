"""Running integrals of cross sections over log energy, by which an integral along the line of sight loses its edges.

With L = log E, S1(L) is the integral of sigma from L to the end of the table, S2 that of S1 and S3 that of S2. Against
a parabola in u = log(1 + z) the integral of sigma(L + u) is made of their differences, exact wherever the edges are.
All are cubic Hermite tables with exact slopes, with a node at every edge.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption.cross_sections import evaluate, fits_of
from hbm_jax.absorption.domain import MAX_ENERGY, MIN_ENERGY
from hbm_jax.absorption.rates import ABSORBING

NUM_NODES = 200  # to begin with, besides the edges
# Error of S1 in the middle of an interval, relative to the integral over it; where it is larger the interval is halved.
# Some fits bend sharply within 10 eV of an edge, as that of Fe XIX.
TOLERANCE = 1e-5
ROUNDS = 8
GAUSS_NODES = 8  # in each interval: exact to 1e-13


class Running(NamedTuple):
    """Nodes, and what is known at them; the last axis may hold several ions.

    Attributes
    ----------
    node : (nodes,)
        L = log(E / keV), increasing.
    first, second, third : (nodes, ...)
        S1, S2 and S3 [1e-22 cm^2].
    right, left : (nodes, ...)
        sigma just above and just below each node.
    """

    node: jax.Array | np.ndarray
    first: jax.Array | np.ndarray
    second: jax.Array | np.ndarray
    third: jax.Array | np.ndarray
    right: jax.Array | np.ndarray
    left: jax.Array | np.ndarray


@functools.cache
def running_integrals() -> Running:
    """Tables of all ions of `ABSORBING`, (nodes, ions), in double precision."""
    fits = fits_of(ABSORBING)
    low, high = np.log(MIN_ENERGY), np.log(MAX_ENERGY)
    edges = np.log(np.concatenate(fits.thresholds()))
    edges = edges[(edges > low) & (edges < high - 0.1)]
    node = np.unique(np.concatenate([np.linspace(low, high, NUM_NODES), edges]))
    # Different sums may give the same edge with another last digit.
    node = node[np.append(True, np.diff(node) > 1e-9)]
    lower, upper = node[:-1], node[1:]
    for _ in range(ROUNDS):
        wrong = _to_halve(lower, upper, fits)
        middle = 0.5 * (lower + upper)[wrong]
        node = np.sort(np.concatenate([node, middle]))
        lower, upper = np.concatenate([lower[wrong], middle]), np.concatenate([middle, upper[wrong]])
    x, w = np.polynomial.legendre.leggauss(GAUSS_NODES)
    half = 0.5 * np.diff(node)[:, None]
    inside = node[:-1, None] + half * (1.0 + x)
    sigma = evaluate(np.exp(inside), fits, np)
    width, along = np.diff(node)[:, None], inside - node[:-1, None]
    moments = [np.einsum("lij,ij->il", sigma, half * w * along**k) for k in range(3)]
    S1 = _from_the_end(moments[0])
    S2 = _from_the_end(S1[1:] * width + moments[1])
    S3 = _from_the_end(S2[1:] * width + 0.5 * S1[1:] * width**2 + 0.5 * moments[2])
    right, left = _beside(node, fits)
    return Running(node, S1, S2, S3, right, left)


def _beside(node, fits):
    """Cross sections just above and just below each node, (nodes, ions)."""
    return evaluate(np.exp(node) * (1.0 + 1e-13), fits, np).T, evaluate(np.exp(node) * (1.0 - 1e-13), fits, np).T


def _to_halve(lower, upper, fits):
    """Whether the cubic of an interval is not yet good enough for every ion."""
    x, w = np.polynomial.legendre.leggauss(GAUSS_NODES)
    quarter = 0.25 * (upper - lower)[:, None, None]
    starts = np.stack([lower, 0.5 * (lower + upper)], axis=-1)[..., None]
    halves = quarter * np.einsum("lihj,j->ihl", evaluate(np.exp(starts + quarter * (1.0 + x)), fits, np), w)
    whole = halves.sum(axis=1)
    cubic = 0.5 * whole + 0.5 * quarter[..., 0] * (_beside(lower, fits)[0] - _beside(upper, fits)[1])
    return (np.abs(cubic - halves[:, 0]) > TOLERANCE * whole).any(axis=1)


def _from_the_end(steps):
    return np.concatenate([np.cumsum(steps[::-1], axis=0)[::-1], np.zeros((1, steps.shape[1]))])


def hermite_weights(L, node, xp=jnp):
    """Find where each L lies: its interval, and the weights of values and slopes at the interval's two ends.

    Returns
    -------
    interval : integer array of the shape of L
    value_weights, slope_weights : pairs of arrays
        S1 is the sum of value weights times S1 and slope weights times -sigma; S2 likewise of S2 and -S1, S3 of S3 and
        -S2.
    """
    interval = xp.clip(xp.searchsorted(node, L, side="right") - 1, 0, len(node) - 2)
    width = node[interval + 1] - node[interval]
    t = (L - node[interval]) / width
    rest = 1.0 - t
    values = (rest * rest * (1.0 + 2.0 * t), t * t * (3.0 - 2.0 * t))
    slopes = (width * t * rest * rest, -width * t * t * rest)
    return interval, values, slopes


def look_up(table: Running, L: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """S1, S2 and S3 of one combination of ions (nodes,), at any L within the table."""
    i, (v0, v1), (s0, s1) = hermite_weights(L, table.node)
    first0, first1, second0, second1 = table.first[i], table.first[i + 1], table.second[i], table.second[i + 1]
    first = v0 * first0 + v1 * first1 - s0 * table.right[i] - s1 * table.left[i + 1]
    second = v0 * second0 + v1 * second1 - s0 * first0 - s1 * first1
    third = v0 * table.third[i] + v1 * table.third[i + 1] - s0 * second0 - s1 * second1
    return first, second, third
