"""Figures of X-ray fits in a report, in addition to those of every posterior."""

from collections.abc import Callable
from typing import Any

from hbm_jax.inference import Fit
from hbm_jax.plotting.count_spectra import spectra, unfolded_spectrum
from hbm_jax.plotting.xray.populations import afterglow_populations, host_columns, whim_contour, whim_parameters
from hbm_jax.spectra.stack import SpectrumStack

FIGURES: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "spectra": (
        "Spectra with the most counts, the posterior of the folded model (median and 68 % band, source and "
        "background), and the scaled counts of the background region. Below each: square root of the C statistic of "
        "each bin, with the sign of data minus median. Channels are rebinned for display.",
        spectra,
    ),
    "host_columns": (
        "Host column density against redshift: medians and 68 % intervals, or 95 % upper limits. The line and the "
        "bands are the mean of the population with its 68 % interval, and one standard deviation of the population.",
        host_columns,
    ),
    "afterglow_populations": (
        "Populations of photon index, unabsorbed flux and host column density: bands contain 68 and 95 % of the "
        "posterior of each density. Grey: average of the posteriors of the sources; ticks, their medians.",
        afterglow_populations,
    ),
    "unfolded_spectrum": (
        "Brightest source. Top: model spectrum with and without absorption, and the data unfolded with the model. "
        "Bottom: transmission of the Milky Way, the host and the WHIM.",
        unfolded_spectrum,
    ),
}
WHIM_FIGURES: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "whim_contour": (
        "Density at redshift 0 and temperature of the warm-hot intergalactic medium: 68 and 95 % contours of the "
        "posterior, and of the prior (dashed). Vertical line: density if all cosmic baryons were in the gas.",
        whim_contour,
    ),
}


def figures(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Return the figures of a fit: for spectral fits the counts; for afterglows also WHIM figures if it is free."""
    if isinstance(fit.data, SpectrumStack):
        return {"spectra": FIGURES["spectra"]}
    return FIGURES | (WHIM_FIGURES if whim_parameters(fit.program) else {})  # type: ignore[arg-type]
