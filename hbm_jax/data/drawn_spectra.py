"""Simulated spectra: a model expression folded through a response, and counts drawn in all channels."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hbm_jax.spectra.folding.fold import spectra_at
from hbm_jax.spectra.folding.panels import integrals_of, panel_edges
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.model.components import Component
from hbm_jax.spectra.model.composition import split_terms
from hbm_jax.spectra.model.photons import photons

# Nodes and largest width in ln E of panels between the energies where a spectrum is not smooth
_NUM_NODES, _WIDTH = 6, 0.025


def channel_rates(spectrum: Component, response: Response, values: Mapping[str, Any]) -> np.ndarray:
    """Return the count rates of an additive expression in all channels [count/s], 0 or more, (num, num_channels).

    They are more accurate than in any fit. Values of parameters are (num,) each; others are ignored.
    """
    edges = response.energy
    values = {name: np.asarray(values[name], float) for name in spectrum.parameters}
    if split_terms(spectrum)[1]:
        precise = spectrum.mapped(lambda part: part.in_double_precision())
        with jax.enable_x64(True):
            in_bins = np.asarray(jax.jit(photons(precise, edges))(values))
    else:  # with a WHIM, a fifth of the work of the other branch
        low, high = float(edges[0]), float(edges[-1])
        cuts = spectrum.discontinuities(low, high), spectrum.slope_discontinuities(low, high)
        nodes, integrals = integrals_of(edges, panel_edges(low, high, *cuts, width=_WIDTH, gap=0.0), _NUM_NODES)
        in_bins = (integrals @ spectra_at(spectrum, nodes, values).T).T
    return np.maximum(response.fold(in_bins), 0.0)


def ungrouped(
    name: str, channels: Any, exposure: float, counts: Any, *, backscal: float = 1.0, **fields: Any
) -> Spectrum:
    """Return a spectrum without grouping and with good channels only; ``fields`` are further fields of `Spectrum`."""
    num = len(counts)
    return Spectrum(
        name=name,
        counts=np.asarray(counts, float),
        channels=channels,
        exposure=float(exposure),
        backscal=np.full(num, backscal),
        areascal=np.ones(num),
        quality=np.zeros(num, int),
        grouping=np.zeros(num, int),
        **fields,
    )
