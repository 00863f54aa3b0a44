"""Integrals of spectra over energy bins and bands: closed forms, and quadrature between discontinuities."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from hbm_jax.validation import concrete

WIDTH = 0.1  # largest width in ln E of a quadrature piece
LINE_WIDTH = 0.03  # largest width of a piece if lines are absorbed
NUM_NODES = 4  # Gauss-Legendre nodes per piece


def pieces(spectrum: Any, edges: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """Return the edges of the pieces into which quadrature divides bins, (num_pieces + 1,).

    Bins are divided at discontinuities of the spectrum in value and in slope, and where they are wider than ``width``.
    """
    cuts = np.unique(
        np.concatenate(
            [edges, spectrum.discontinuities(edges[0], edges[-1]), spectrum.slope_discontinuities(edges[0], edges[-1])]
        )
    )
    num = np.ceil(np.log(cuts[1:] / cuts[:-1]) / width).astype(int)
    if (num == 1).all():
        return cuts
    parts = [np.geomspace(*limits, n + 1)[:-1] for limits, n in zip(itertools.pairwise(cuts), num, strict=True)]
    return np.concatenate([*parts, cuts[-1:]])


def pieces_of_bands(spectrum: Any, low: np.ndarray, high: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """Return the edges (..., num_pieces + 1) of the pieces of bands with limits (...), padded to equal length."""
    low, high = np.broadcast_arrays(low, high)
    check_band(low, high)
    edges = padded_edges([pieces(spectrum, band, width) for band in np.stack([low.ravel(), high.ravel()], axis=-1)])
    return edges.reshape(*low.shape, -1)


def padded_edges(edges: Sequence[np.ndarray], width: float = 1e-14) -> np.ndarray:
    """Return arrays of bin edges as rows of equal length, padded with bins of negligible width in ln E."""
    num = max(map(len, edges))
    return np.stack([np.append(e, e[-1] * (1.0 + width) ** np.arange(1, num - len(e) + 1)) for e in edges])


def gauss(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return energies and weights, (..., num_pieces, num_nodes) each, of Gauss-Legendre quadrature in ln E."""
    x, w = np.polynomial.legendre.leggauss(NUM_NODES)
    logs = np.log(edges)
    half = 0.5 * np.diff(logs)[..., None]
    energy = np.exp(0.5 * (logs[..., 1:] + logs[..., :-1])[..., None] + half * x)
    return energy, energy * half * w


def nodes_between(edges: np.ndarray) -> np.ndarray:
    """Return the nodes of Gauss-Legendre quadrature in E, (..., num_pieces, num_nodes)."""
    x, _ = np.polynomial.legendre.leggauss(NUM_NODES)
    return 0.5 * (edges[..., 1:] + edges[..., :-1])[..., None] + 0.5 * np.diff(edges)[..., None] * x


def interpolation_weights(moments: Sequence[Any]) -> Any:
    """Return the weights of the nodes, (..., num_nodes), in the mean of a function over the photons of a piece.

    The function is interpolated by a cubic through its values at the nodes; the error is of fourth order in the width
    of the piece. ``moments`` are the photons' means of t, t^2 and t^3, with t from -1 to 1 in the piece.
    """
    x, _ = np.polynomial.legendre.leggauss(NUM_NODES)
    powers = jnp.stack([jnp.ones_like(moments[0]), *moments], axis=-1)
    return powers @ jnp.asarray(np.linalg.inv(np.vander(x, increasing=True)), powers.dtype)


def integrals(smooth: Any, lines: Sequence[tuple[Any, Any]], edges: np.ndarray, power: int = 0) -> Partial:
    """Return a function for the integrals of energy^power times a spectrum between edges, (..., num_pieces).

    The function takes parameter values as in `Component.on`, and is a pytree.

    Parameters
    ----------
    smooth : Component or None
        The part of the spectrum that is integrated by quadrature.
    lines : sequence of Line
        Components with a closed form for the photons in a bin, and the factors that multiply them. The photons of the
        component are exact. A factor is interpolated between its values at nodes and averaged over the photons of the
        component in each piece.
    edges : (..., num_pieces + 1)
        Edges of the pieces [keV].
    power : int
        0 for photons, 1 for energies.
    """
    terms: list[Partial] = []
    if smooth is not None:
        energy, weights = gauss(edges)
        terms.append(Partial(_by_quadrature, smooth.on(flat(energy)), weights * energy**power))
    by_factor: dict[int, tuple[Any, list]] = {}
    for component, factor in lines:
        by_factor.setdefault(id(factor), (factor, []))[1].append(component)
    for factor, components in by_factor.values():
        if factor is None and not power:
            groups, group_limits = _with_equal_limits(components, edges)
            terms.append(Partial(_Exact(groups), group_limits))
            continue
        limits = tuple(component._limits(edges) for component in components)
        nodes = nodes_between(edges)
        tables = tuple(component._weight_tables(edges) for component in components)
        at_nodes = None if factor is None else factor.on(flat(nodes))
        terms.append(Partial(_Multiplied(tuple(components)), limits, tables, nodes**power, at_nodes))
    return terms[0] if len(terms) == 1 else Partial(_total, tuple(terms))


def flat(nodes: np.ndarray) -> np.ndarray:
    """Return nodes (..., num_pieces, num_nodes) in one axis."""
    return nodes.reshape(*nodes.shape[:-2], -1)


def _by_quadrature(at_nodes, weights, values):
    """Return the integrals over the pieces as weighted sums over nodes."""
    density = at_nodes(values)
    density = density.reshape(*density.shape[:-1], *weights.shape[-2:])
    return jnp.sum(density * jnp.asarray(weights, density.dtype), axis=-1)


def _with_equal_limits(components: Sequence[Any], edges: np.ndarray) -> tuple[tuple[tuple[Any, ...], ...], tuple]:
    """Return groups of components of one type whose limits are one array, and the limits of each group."""
    groups: list[list[Any]] = []
    limits: list[Any] = []
    for component in components:
        own = component._limits(edges)
        for group, shared in zip(groups, limits, strict=True):
            if type(group[0]) is type(component) and isinstance(own, np.ndarray) and np.array_equal(own, shared):
                group.append(component)
                break
        else:
            groups.append([component])
            limits.append(own)
    return tuple(map(tuple, groups)), tuple(limits)


def _total(parts, values):
    """Return the sum of several functions of the parameters."""
    return functools.reduce(jnp.add, (part(values) for part in parts))


@dataclass(frozen=True)
class _Exact:
    """Sum of the photons of components with a closed form; equal for all spectra of these components."""

    groups: tuple[tuple[Any, ...], ...]

    def __call__(self, limits, values):
        """Return the photons in the pieces, from the limits by `_limits` of each group of components."""
        parts = zip(self.groups, limits, strict=True)
        return functools.reduce(jnp.add, (group[0]._sum_of_integrals(group, limit, values) for group, limit in parts))


@dataclass(frozen=True)
class _Multiplied:
    """Sum of components with a closed form times the mean of a factor over the photons of each."""

    components: tuple[Any, ...]

    def __call__(self, limits, tables, powers, factor, values):
        """Return the integrals over the pieces.

        Each component has ``limits`` and ``tables`` by `_limits` and `_weight_tables`. ``powers`` are the powers of
        energy at the nodes, (..., num_pieces, num_nodes). ``factor`` computes the factor at the nodes; None for 1.
        """
        parts = [
            component._integrals_and_weights(limit, table, values)
            for component, limit, table in zip(self.components, limits, tables, strict=True)
        ]
        at_nodes: Any = jnp.asarray(powers, parts[0][0].dtype)
        if factor is not None:
            factors = factor(values)
            at_nodes = at_nodes * factors.reshape(*factors.shape[:-1], *powers.shape[-2:])
        # A cubic may be negative where the factor falls steeply. The derivative of `jnp.min` would be NaN where XLA
        # computes the values twice and rounds them differently; that of `jnp.minimum` is finite.
        smallest = 0.5 * functools.reduce(jnp.minimum, (at_nodes[..., k] for k in range(NUM_NODES)))
        means = (jnp.maximum(jnp.sum(weights * at_nodes, axis=-1), smallest) for _, weights in parts)
        return functools.reduce(jnp.add, (photons * mean for (photons, _), mean in zip(parts, means, strict=True)))


def density_weights(density: Any) -> Any:
    """Return the weights of the nodes, (..., num_pieces, num_nodes), in a mean over photons of a given density.

    The sum of the weights of a piece is 1; without photons they are those of a uniform density.
    """
    _, w = np.polynomial.legendre.leggauss(NUM_NODES)
    weighted = density.reshape(*density.shape[:-1], -1, NUM_NODES) * jnp.asarray(0.5 * w, density.dtype)
    total = jnp.sum(weighted, axis=-1, keepdims=True)
    return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), jnp.asarray(0.5 * w, density.dtype))


def in_bins(function: Callable, cuts: np.ndarray, edges: np.ndarray) -> Partial:
    """Return a function that sums integrals between cuts, (..., num_pieces), over the bins between edges."""
    bin_of_piece = np.searchsorted(edges, cuts[:-1], side="right") - 1
    num_pieces = np.bincount(bin_of_piece, minlength=len(edges) - 1)
    # Bins of a single piece are copied; divided bins take a small matrix product, which avoids a scatter.
    is_single, divided = num_pieces[bin_of_piece] == 1, np.flatnonzero(num_pieces > 1)
    matrix = np.equal.outer(divided, bin_of_piece[~is_single]).astype(float)
    order = np.argsort(np.concatenate([np.flatnonzero(num_pieces == 1), divided]))
    return Partial(_summed, function, np.flatnonzero(is_single), np.flatnonzero(~is_single), matrix, order)


def _summed(function, single, multiple, matrix, order, values):
    """Return the sums of `in_bins`, with the indices of pieces that are whole bins and of the other pieces."""
    integral = function(values)
    divided = jnp.matmul(integral[..., multiple], jnp.asarray(matrix, integral.dtype).T, precision="highest")
    return jnp.concatenate([integral[..., single], divided], axis=-1)[..., order]


def check_band(low: ArrayLike, high: ArrayLike, name: str = "band") -> None:
    """Raise ValueError unless 0 < low < high < infinity; traced limits are not checked."""
    concrete_low, concrete_high = concrete(low), concrete(high)
    if concrete_low is None or concrete_high is None:
        return
    lows, highs = np.broadcast_arrays(concrete_low, concrete_high)
    invalid = ~((lows > 0) & (highs > lows) & (highs < math.inf))
    if invalid.any():
        limits = f"{lows[invalid][0]:g} and {highs[invalid][0]:g}"
        raise ValueError(f"{name}: expected two energies [keV] with 0 < low < high; found {limits}.")
