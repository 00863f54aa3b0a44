"""Figures of samples of distance moduli: Hubble diagram, and residuals against redshift, survey and covariates."""

from typing import Any

import numpy as np

from hbm_jax.data import DistanceModuli
from hbm_jax.inference import Fit
from hbm_jax.inference.blinding.blinding import revealed
from hbm_jax.inference.results import model_of
from hbm_jax.models import HubbleDiagram, expansion
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter, true_values
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, GREY, QUANTILES, Figure, house_style
from hbm_jax.plotting.supernovae.dark_energy import PLANES, equation_of_state, expansion_contour, has_equation_of_state
from hbm_jax.plotting.supernovae.diagram import (
    MANY,
    MEANS,
    NUM_GRID,
    Diagram,
    draw_diagram,
    means_in_bins,
    moduli_of_draws,
)

NUM_BINS = 8


def modulus_draws(fit: Fit, data: DistanceModuli, num_draws: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return distance moduli of objects, and M0, for posterior draws.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram`, with its program and data.
    data : DistanceModuli
        N objects: those of the fit, or others.
    num_draws : int
        Number of posterior draws, evenly spaced among all of them.

    Returns
    -------
    moduli : array (draw, N)
        Moduli of the model's ``distmod`` [mag].
    offset : array (draw,)
        M0, drawn from its exact conditional posterior [mag].
    """
    model, _ = model_and_data(fit, HubbleDiagram, DistanceModuli, "modulus_draws")
    values = {name: parameter(fit, name) for name in ("H0", *expansion.named(model.cosmology).parameters)}
    total = fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"]
    rows = evenly_spaced(total, num_draws)
    values = {name: np.broadcast_to(v, (total,))[rows] for name, v in values.items()}
    if "M0" in model.integrated:
        offset = true_values(fit, num_draws=num_draws)["M0"].to_numpy()
    else:
        offset = np.full(len(rows), float(model.all_priors["M0"]))
    return moduli_of_draws(model, data, values), offset


def distance_diagram(fit: Fit, num_draws: int = 200) -> Figure:
    """Draw the Hubble diagram of a sample of distance moduli and its residuals, with the posterior band of the model.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram`, with its program and data.
    num_draws : int
        Number of posterior draws from which the band is computed.

    Returns
    -------
    matplotlib.figure.Figure
        Upper panel: the modulus of every object, by survey, minus the posterior median of M0. Calibrators, whose
        distance does not follow from their redshift, are omitted. Lower panel: the same minus the posterior median of
        the model. Grey: 68 and 95 % posterior bands of the modulus plus M0, minus the median M0. Error bars are the
        square roots of the diagonal of the covariance; the errors are correlated, so neighbouring points can deviate
        together.

    Raises
    ------
    ValueError
        If the fit is not one of `HubbleDiagram`, or was loaded without its program and data.
    """
    _, data = model_and_data(fit, HubbleDiagram, DistanceModuli, "distance_diagram")
    shown = data.subset(~data.is_calibrator)
    z = np.geomspace(shown.z_cmb.min(), shown.z_cmb.max(), NUM_GRID)
    columns = {"z_cmb": z, "mu": np.zeros(NUM_GRID), "sigma": np.ones(NUM_GRID)}
    curve, offset = modulus_draws(fit, DistanceModuli.from_columns(columns), num_draws)
    median_offset = float(np.median(offset))
    bands = np.quantile(curve + (offset - median_offset)[:, None], QUANTILES, axis=0)
    moduli, _ = modulus_draws(fit, shown, num_draws)
    residual = shown.mu - np.median(moduli + offset[:, None], axis=0)
    error = np.sqrt(shown.sigma**2 + _scatter(fit) ** 2)
    means = None
    if len(shown) >= MANY:
        log_z, *mean_and_error = binned_means(np.log(shown.z_cmb), residual, error)
        means = (np.exp(log_z), *mean_and_error)
    return draw_diagram(Diagram(shown.z_cmb, residual, error, shown.survey, z, bands), means)


def distance_residuals(fit: Fit, num_draws: int = 200) -> Figure:
    """Draw Hubble residuals against redshift, survey and every covariate of a sample of distance moduli.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.HubbleDiagram`, with its program and data.
    num_draws : int
        Number of posterior draws from which the median is computed.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each quantity: the modulus minus the posterior median of modulus plus M0, with weighted means in
        bins of equal numbers of objects, or of each survey. Weights use only the diagonal of the covariance.

    Raises
    ------
    ValueError
        As for `distance_diagram`.
    """
    _, data = model_and_data(fit, HubbleDiagram, DistanceModuli, "distance_residuals")
    moduli, offset = modulus_draws(revealed(fit), data, num_draws)  # residuals do not reveal blinded values
    residual = data.mu - np.median(moduli + offset[:, None], axis=0)
    error = np.sqrt(data.sigma**2 + _scatter(fit) ** 2)
    panels = {r"$\log_{10}\,z_\mathrm{CMB}$": np.log10(data.z_cmb)}
    panels |= {label(key): value for key, value in data.covariates.items() if np.isfinite(value).sum() > 1}
    surveys = list(data.survey_counts) if len(data.survey_counts) > 1 else []
    num = len(panels) + bool(surveys)
    columns = min(num, 3)
    with house_style():
        figure = Figure(figsize=(0.6 + 2.6 * columns, 0.5 + 2.3 * -(-num // columns)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(-(-num // columns), columns, sharey=True)).ravel()
        points: dict[str, Any] = {"fmt": "o", "color": GREY, "markersize": 3.0, "markeredgewidth": 0, "elinewidth": 0.6}
        for axis, (text, values) in zip(axes, panels.items(), strict=False):
            finite = np.isfinite(values)
            x, y, sigma = values[finite], residual[finite], error[finite]
            if len(x) < MANY:
                axis.errorbar(x, y, sigma, **points)
            else:  # error bars of many points would cover the panel
                axis.plot(x, y, ".", color=GREY, markersize=2.0, markeredgewidth=0, alpha=0.5)
                axis.errorbar(*binned_means(x, y, sigma), **MEANS)
            axis.set_xlabel(text)
        if surveys:
            axis = axes[len(panels)]
            for index, survey in enumerate(surveys):
                in_survey = np.array(data.survey) == survey
                weight = 1.0 / error[in_survey] ** 2
                mean = float(np.sum(weight * residual[in_survey]) / weight.sum())
                axis.errorbar(index, mean, weight.sum() ** -0.5, **MEANS)
            axis.set_xticks(range(len(surveys)), surveys, rotation=90, fontsize=7.0)
            axis.tick_params(axis="x", which="minor", bottom=False, top=False)
        for axis in axes:
            axis.axhline(0.0, color=BLACK, lw=0.6, zorder=4)
        for axis in axes[num:]:
            axis.set_visible(False)
        few = len(residual) < MANY
        half_range = 1.1 * np.quantile(np.abs(residual) + (error if few else 0.0), 0.98)
        axes[0].set_ylim(-half_range, half_range)
        figure.supylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
    return figure


def _scatter(fit: Fit) -> float:
    """Return the posterior median of the intrinsic scatter, 0 without one."""
    return float(np.median(parameter(fit, "sigma_int"))) if "sigma_int" in fit.posterior else 0.0


def binned_means(x: np.ndarray, residual: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, inverse-variance weighted mean and its error in bins of equal numbers of objects."""
    edges = np.unique(np.quantile(x, np.linspace(0.0, 1.0, NUM_BINS + 1)))
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    return means_in_bins(x, residual, error, index, max(len(edges) - 1, 1))


FIGURES = {
    "hubble_diagram": (
        "Hubble diagram. Above, the distance modulus of every object with M0 at its posterior median, and the "
        "posterior of the model (median, 68 and 95 % bands). Below, the same minus the posterior median. Errors are "
        "the square roots of the diagonal of the covariance and are correlated.",
        distance_diagram,
    ),
    "hubble_residuals": (
        "Hubble residuals against redshift, covariates and survey, with weighted means.",
        distance_residuals,
    ),
}
CONTOUR = (
    "Expansion history: contours contain 68 and 95 % of the posterior; dashed: the prior, or its edges if it is flat.",
    expansion_contour,
)
EQUATION_OF_STATE = (
    "Equation of state of dark energy: median, 68 and 95 % bands; dashed, the 95 % band of the prior.",
    equation_of_state,
)


def figures(fit: Fit):
    """Return the figures for a fit of a Hubble diagram, without those of parameters that its cosmology lacks."""
    model: Any = model_of(fit)
    selected: dict[str, Any] = dict(FIGURES)
    if any(set(pair) <= set(map(str, fit.posterior)) for pair in PLANES):
        selected["expansion_contour"] = CONTOUR
    if has_equation_of_state(model):
        selected["equation_of_state"] = EQUATION_OF_STATE
    return selected
