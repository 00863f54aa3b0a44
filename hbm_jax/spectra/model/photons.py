"""Photons that a model emits in energy bins."""

from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.spectra.model.composition import Component, Line, Values, separated
from hbm_jax.spectra.model.quadrature import LINE_WIDTH, WIDTH, in_bins, integrals, pieces


def photons(spectrum: Component, edges: ArrayLike) -> Callable[[Values], jax.Array]:
    """Return a function that computes the photons in energy bins.

    Parameters
    ----------
    spectrum : Component
        Additive. A multiplicative model is integrated in the same way.
    edges : (num_bins + 1,)
        Edges of the bins [keV], positive and increasing.

    Returns
    -------
    callable
        A pytree. Takes parameter values as in `Component.on`; returns photons/cm^2/s in each bin, (..., num_bins).

    Raises
    ------
    ValueError
        If the edges are not positive and increasing.

    Notes
    -----
    Power laws, broken power laws, lines and their sums have closed forms. Other spectra are integrated in ln E with
    four Gauss-Legendre nodes per bin; bins are divided at discontinuities in value and slope, and where they are wider
    than 0.1 in ln E. The error of an absorbed power law is below 1e-9 of the photons in a bin where the optical depth
    is 5 or less, and below 1e-9 of the total photons in every bin (``tests/spectra/test_components.py``,
    ``test_energetics.py``). For absorbed lines and broken power laws the transmission is interpolated by a cubic in
    each bin and averaged over the photons there.

    Examples
    --------
    >>> from hbm_jax.spectra import Absorption, PowerLaw
    >>> in_bins = photons(PowerLaw() * Absorption(), np.linspace(0.3, 10.0, 98))
    >>> in_bins({"photon_index": 2.0, "log10_flux": -11.0, "nh": 0.1}).shape
    (97,)
    """
    edges = np.asarray(edges, dtype=float)
    if edges.ndim != 1 or len(edges) < 2 or not edges[0] > 0 or not (np.diff(edges) > 0).all():
        raise ValueError(
            f"edges: expected at least two positive, increasing energies [keV]; found {edges.tolist()[:5]}."
        )
    smooth, lines, cuts = exact_terms(spectrum, edges)
    function = integrals(smooth, lines, cuts)
    return function if len(cuts) == len(edges) else in_bins(function, cuts, edges)


def exact_terms(spectrum: Component, edges: np.ndarray) -> tuple[Component | None, tuple[Line, ...], np.ndarray]:
    """Return the arguments of `integrals` for the photons of a spectrum in bins, with its pieces of the bins."""
    smooth, lines = separated(spectrum, lambda part: part.integrable and not part.smooth)
    rest, closed_forms = (None, ()) if smooth is None else separated(smooth, lambda part: part.integrable)
    if rest is None and all(term.factor is None for term in (*closed_forms, *lines)):
        return None, (*closed_forms, *lines), edges
    are_absorbed = any(line.factor is not None for line in lines)
    return smooth, lines, pieces(spectrum, edges, LINE_WIDTH if are_absorbed else WIDTH)
