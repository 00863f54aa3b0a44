"""The figures that a report of afterglows has beside those of every posterior."""

from collections.abc import Callable
from typing import Any

from hbm_jax.inference import Fit
from hbm_jax.plotting.count_spectra import spectra, unfolded_spectrum
from hbm_jax.plotting.xray.populations import afterglow_populations, host_columns, whim_contour, whim_parameters
from hbm_jax.spectra.stack import SpectrumStack

FIGURES: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "spectra": (
        "Counts of the sources with the most of them, the posterior of the folded model (median and 68 % band, source "
        "and background), and the counts of the background region, scaled. Below each, the root of every bin's C with "
        "the sign of data less median. Groups of channels are joined for the eye.",
        spectra,
    ),
    "host_columns": (
        "Column of every host against its redshift: medians and 68 % intervals, or 95 % upper limits where a column is "
        "only bounded from above. The line and the bands are the population's mean with its 68 % interval, and one "
        "standard deviation of the population.",
        host_columns,
    ),
    "afterglow_populations": (
        "Populations of photon index, unabsorbed flux and host column: bands hold 68 and 95 % of the posterior of each "
        "density. Grey, the average of the sources' posteriors; ticks, their medians.",
        afterglow_populations,
    ),
    "unfolded_spectrum": (
        "The brightest source: above, the spectrum as it arrives and without absorbers, and the data, unfolded by the "
        "model. Below, what Milky Way, host and WHIM let through.",
        unfolded_spectrum,
    ),
}
WHIM_FIGURES: dict[str, tuple[str, Callable[[Fit], Any]]] = {
    "whim_contour": (
        "Density at redshift 0 and temperature of the warm-hot intergalactic medium: 68 and 95 % of the posterior, and "
        "of the prior (dashed). The vertical line is the density if all cosmic baryons were gas.",
        whim_contour,
    ),
}


def figures(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Figures of a fit of afterglows, those of the WHIM only where it is free; of a spectral fit, the counts alone."""
    if isinstance(fit.data, SpectrumStack):
        return {"spectra": FIGURES["spectra"]}
    return FIGURES | (WHIM_FIGURES if whim_parameters(fit.program) else {})  # type: ignore[arg-type]
