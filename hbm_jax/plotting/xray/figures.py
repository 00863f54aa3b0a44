"""Figures of afterglows and spectral fits in reports, in addition to those of every posterior."""

import functools
from collections.abc import Callable
from typing import Any

from hbm_jax.data import SourceSpectra
from hbm_jax.inference import Fit
from hbm_jax.plotting.count_spectra import spectra, unfolded_spectrum
from hbm_jax.plotting.folded_draws import folded
from hbm_jax.plotting.xray.populations import (
    host_columns,
    spectral_populations,
    whim_contour,
    whim_parameters,
)
from hbm_jax.plotting.xray.selection import drawable, selected_afterglows
from hbm_jax.spectra.stack import SpectrumStack

SPECTRA = (
    "Counts of the sources with the most counts, the posterior of the folded model (median and 68 % band, source "
    "and background), and the scaled counts of the background region. Below each spectrum, residuals: the square "
    "root of Cash's C of each bin, with the sign of data minus median. Channels are rebinned for display."
)
UNFOLDED = (
    "The spectrum with the most counts. Upper panel: absorbed and unabsorbed model, and the data, unfolded with the "
    "model. Lower panel: transmission of each absorber of the whole expression."
)
UNFOLDED_AFTERGLOW = (
    "The source with the most counts. Upper panel: absorbed and unabsorbed spectrum, and the data, unfolded with "
    "the model. Lower panel: transmission of Milky Way, host and WHIM."
)
HOST_COLUMNS = (
    "Column of every host against redshift: medians and 68 % intervals, or 95 % upper limits where the data do not "
    "bound a column from below. The line and the bands are the mean of the population with its 68 % interval, and "
    "one standard deviation of the population."
)
POPULATIONS = (
    "Populations of the spectral parameters (fluxes unabsorbed): the bands contain 68 and 95 % of the posterior "
    "of the density. Grey: average of the posteriors of the sources; ticks: their medians."
)
SELECTED = (
    "Medians of the sources, and sources simulated at the posterior means of the population: detected ones, and those "
    "that are missing."
)
WHIM = (
    "Density at redshift 0 and temperature of the warm-hot intergalactic medium: contours contain 68 and 95 % of "
    "the posterior, and of the prior (dashed). The vertical line is the density if all cosmic baryons were gas."
)


def figures(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Return the figures of a fit of afterglows or of a spectral fit, with their captions, by name."""
    is_sample = not isinstance(fit.data, SpectrumStack)
    expected = functools.cache(lambda: folded(fit))  # takes longest; two figures share it
    selected: dict[str, tuple[str, Callable[[Fit], Any]]] = {
        "spectra": (SPECTRA, lambda fit: spectra(fit, expected=expected()))
    }
    if isinstance(fit.data, SourceSpectra):
        return selected | {"spectral_populations": (POPULATIONS, spectral_populations)}
    if is_sample and "log10_nh" in fit.posterior:
        selected["host_columns"] = (HOST_COLUMNS, host_columns)
    if is_sample:
        selected["afterglow_populations"] = (POPULATIONS, spectral_populations)
    if is_sample and drawable(fit.program):
        selected["selected_afterglows"] = (SELECTED, selected_afterglows)
    text = UNFOLDED_AFTERGLOW if is_sample else UNFOLDED
    selected["unfolded_spectrum"] = (text, lambda fit: unfolded_spectrum(fit, expected=expected()))
    if is_sample and whim_parameters(fit.program):  # type: ignore[arg-type]
        selected["whim_contour"] = (WHIM, whim_contour)
    return selected
