"""Figures of afterglows and spectral fits in reports, in addition to those of every posterior."""

from collections.abc import Callable
from typing import Any

from hbm_jax.inference import Fit
from hbm_jax.plotting.count_spectra import spectra, unfolded_spectrum
from hbm_jax.plotting.xray.populations import afterglow_populations, host_columns, whim_contour, whim_parameters
from hbm_jax.spectra.stack import SpectrumStack

UNFOLDED = (
    "The spectrum with the most counts. Upper panel: absorbed and unabsorbed model, and the data, unfolded with the "
    "model. Lower panel: transmission of each absorber of the whole expression."
)
FIGURES: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "spectra": (
        "Counts of the sources with the most counts, the posterior of the folded model (median and 68 % band, source "
        "and background), and the scaled counts of the background region. Below each spectrum, residuals: the square "
        "root of Cash's C of each bin, with the sign of data minus median. Channels are rebinned for display.",
        spectra,
    ),
    "host_columns": (
        "Column of every host against redshift: medians and 68 % intervals, or 95 % upper limits where the data do not "
        "bound a column from below. The line and the bands are the mean of the population with its 68 % interval, and "
        "one standard deviation of the population.",
        host_columns,
    ),
    "afterglow_populations": (
        "Populations of the spectral parameters (fluxes unabsorbed): the bands contain 68 and 95 % of the posterior "
        "of the density. Grey: average of the posteriors of the sources; ticks: their medians.",
        afterglow_populations,
    ),
    "unfolded_spectrum": (
        "The source with the most counts. Upper panel: absorbed and unabsorbed spectrum, and the data, unfolded with "
        "the model. Lower panel: transmission of Milky Way, host and WHIM.",
        unfolded_spectrum,
    ),
}
WHIM_FIGURES: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "whim_contour": (
        "Density at redshift 0 and temperature of the warm-hot intergalactic medium: contours contain 68 and 95 % of "
        "the posterior, and of the prior (dashed). The vertical line is the density if all cosmic baryons were gas.",
        whim_contour,
    ),
}


def figures(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Return the figures of a fit: of afterglows, with the WHIM if it is free; of a spectral fit, of its spectra."""
    if isinstance(fit.data, SpectrumStack):
        return {"spectra": FIGURES["spectra"], "unfolded_spectrum": (UNFOLDED, unfolded_spectrum)}
    figures_of_fit = FIGURES | (WHIM_FIGURES if whim_parameters(fit.program) else {})  # type: ignore[arg-type]
    return figures_of_fit if "log10_nh" in fit.posterior else _without(figures_of_fit, "host_columns")


def _without(figures: dict, name: str) -> dict:
    """Return the figures except one."""
    return {key: figure for key, figure in figures.items() if key != name}
