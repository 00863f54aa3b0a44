"""Quadrature of spectra over energy bands and bins, in pieces between their discontinuities."""

import itertools
import math
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

_WIDTH = 0.1  # largest width in ln E of a quadrature piece
_NODES = 4  # Gauss-Legendre nodes per piece


def pieces(spectrum: Any, edges: np.ndarray) -> np.ndarray:
    """Return the edges of quadrature pieces, (num_pieces + 1,).

    The pieces end at ``edges`` and at discontinuities of the spectrum in value and in slope; wide pieces are divided.
    """
    cuts = np.unique(
        np.concatenate(
            [edges, spectrum.discontinuities(edges[0], edges[-1]), spectrum.slope_discontinuities(edges[0], edges[-1])]
        )
    )
    num = np.ceil(np.log(cuts[1:] / cuts[:-1]) / _WIDTH).astype(int)
    parts = [np.geomspace(*limits, n + 1)[:-1] for limits, n in zip(itertools.pairwise(cuts), num, strict=True)]
    return np.concatenate([*parts, cuts[-1:]])


def gauss(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return energies and weights, (num_pieces, num_nodes) each, of Gauss-Legendre quadrature in ln E between edges."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    logs = np.log(edges)
    half = 0.5 * np.diff(logs)[:, None]
    energy = np.exp(0.5 * (logs[1:] + logs[:-1])[:, None] + half * x)
    return energy, energy * half * w


def nodes_in_bands(spectrum: Any, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return quadrature energies and weights of bands (...), each (..., num_nodes), padded with weights of 0."""
    low, high = np.broadcast_arrays(low, high)
    check_band(low, high)
    quadratures = [gauss(pieces(spectrum, band)) for band in np.stack([low.ravel(), high.ravel()], axis=-1)]
    num_nodes = max(energy.size for energy, _ in quadratures)
    energy = [np.pad(nodes.ravel(), (0, num_nodes - nodes.size), mode="edge") for nodes, _ in quadratures]
    weights = [np.pad(w.ravel(), (0, num_nodes - w.size)) for _, w in quadratures]
    return np.reshape(energy, (*low.shape, num_nodes)), np.reshape(weights, (*low.shape, num_nodes))


def check_band(low: ArrayLike, high: ArrayLike, name: str = "band") -> None:
    """Raise ValueError unless 0 < low < high < infinity; traced limits are not checked."""
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return
    low, high = np.broadcast_arrays(np.asarray(low, float), np.asarray(high, float))
    wrong = ~((low > 0) & (high > low) & (high < math.inf))
    if wrong.any():
        raise ValueError(
            f"{name}: expected two energies [keV] with 0 < low < high; found {low[wrong][0]:g} and {high[wrong][0]:g}."
        )
