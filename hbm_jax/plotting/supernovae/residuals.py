"""Figures of Hubble residuals against redshift, light-curve parameters, host mass and survey; influence of groups."""

from collections.abc import Sequence

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.data.supernovae.columns import UNMEASURED_MASS_ERROR
from hbm_jax.inference import Fit, Fits
from hbm_jax.inference.blinding.blinding import revealed
from hbm_jax.models import Supernova
from hbm_jax.plotting.draws import model_and_data
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SERIES, Figure, house_style, panels
from hbm_jax.plotting.supernovae.diagram import SURVEYS, label_redshifts
from hbm_jax.plotting.supernovae.hubble import modulus_draws, standardise

COVARIATES = {"z_cmb": "redshift $z_\\mathrm{CMB}$", "x1": label("x1"), "c": label("c", "mag")}
NUM_BINS = 8
FEW_SURVEYS = 6  # whose names fit beside each other below a panel
TRIM = 0.005  # fraction of the supernovae at either end of a covariate outside the range of its panel


def hubble_residuals(fit: Fit) -> Figure:
    """Draw Hubble residuals against redshift, x1, c, host mass and survey.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Standardised distance modulus, with all parameters at their posterior medians, minus the posterior median of the
        model. Black: weighted means in bins of equal numbers of supernovae. The title is the weighted least-squares
        slope in units of its standard error. For a covariate with errors (x1, c) it differs from zero even for a
        correct model, because the residual contains the same errors: compare it with simulated samples. The last panel
        shows the mean of each survey.

    Raises
    ------
    ValueError
        If the fit is not one of supernovae, or was loaded without its program and data.
    """
    _, data = model_and_data(fit, Supernova, Supernovae, "hubble_residuals")
    points = standardise(fit)
    residual = points.mu - np.median(modulus_draws(revealed(fit), data), axis=0)  # does not reveal blinded values
    covariates = {text: np.asarray(getattr(data, name)) for name, text in COVARIATES.items()}
    if data.has_host_mass.any():
        measured = data.has_host_mass & ~(data.sigma_log10_mass >= UNMEASURED_MASS_ERROR)
        covariates[label("log10_mass", r"$M_\odot$")] = np.where(measured, data.log10_mass, np.nan)
    half_range = 1.15 * np.quantile(np.abs(residual), 0.99)
    below = 0.8 if len(data.survey_counts) > FEW_SURVEYS else 0.48  # inches, for names that are upright
    with house_style():
        figure, axes = panels(
            2, 3, (7.2, 4.52 + below), margins=(0.68, 0.15, below, 0.28), gaps=(0.12, 0.7), sharey=True
        )
        grid = axes.ravel()
        for panel, (text, values) in zip(grid, covariates.items(), strict=False):
            _draw_residuals(panel, values, residual, points.error)
            panel.set_xlabel(text)
            if text == COVARIATES["z_cmb"]:
                panel.set_xscale("log")
                label_redshifts(panel)
        for panel in grid[len(covariates) + 1 :]:
            panel.set_visible(False)
        _draw_surveys(grid[len(covariates)], data, residual, points.error)
        grid[0].set_ylim(-half_range, half_range)
        for panel in (grid[0], grid[3]):
            panel.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
    return figure


def _draw_residuals(axes, values, residual, error) -> None:
    """Draw residuals against a covariate, with means in bins and the slope."""
    finite = np.isfinite(values)
    x, y, weight = values[finite], residual[finite], 1.0 / error[finite] ** 2
    axes.plot(x, y, ".", color=BLUE, ms=2.0, alpha=0.35, mew=0, rasterized=True)
    order = np.argsort(x, kind="stable")
    bins = [rows for rows in np.array_split(order, NUM_BINS) if len(rows)]
    mean = [np.average(y[rows], weights=weight[rows]) for rows in bins]
    middle = [np.median(x[rows]) for rows in bins]
    axes.errorbar(
        middle, mean, [weight[rows].sum() ** -0.5 for rows in bins], fmt="o", color=BLACK, ms=3.4, mfc="white", zorder=3
    )
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    low, high = np.quantile(x, (TRIM, 1.0 - TRIM))
    margin = 0.05 * (high - low)
    axes.set_xlim(max(low - margin, 0.8 * low) if low > 0 else low - margin, high + margin)
    centred = x - np.average(x, weights=weight)
    slope, sigma = np.sum(weight * centred * y) / np.sum(weight * centred**2), np.sum(weight * centred**2) ** -0.5
    axes.set_title(f"slope {slope / sigma:+.1f} standard errors", fontsize=8.0)


def _draw_surveys(axes, data, residual, error) -> None:
    """Draw the residuals of each survey with their mean."""
    survey = np.array(data.survey)
    for index, name in enumerate(data.survey_counts):
        in_survey = survey == name
        weight = 1.0 / error[in_survey] ** 2
        jitter = np.random.default_rng(index).uniform(-0.25, 0.25, in_survey.sum())
        colour = SERIES[index % len(SERIES)]
        axes.plot(index + jitter, residual[in_survey], ".", color=colour, ms=2.0, alpha=0.4, mew=0, rasterized=True)
        mean, sigma = np.average(residual[in_survey], weights=weight), weight.sum() ** -0.5
        axes.errorbar([index], [mean], [sigma], fmt="o", color=BLACK, ms=3.4, mfc="white", zorder=3)
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    labels = [SURVEYS.get(name, name) for name in data.survey_counts]
    axes.set_xticks(range(len(labels)), labels)
    if len(labels) > FEW_SURVEYS:
        axes.tick_params(axis="x", labelrotation=90, labelsize=5.0)
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    axes.set_title("mean of each survey", fontsize=8.0)


def influence(fits: Fits, parameters: Sequence[str]) -> Figure:
    """Draw the posteriors without each group beside that of all groups.

    Parameters
    ----------
    fits : Fits
        Result of `hbm_jax.leave_groups_out`.
    parameters : sequence of str
        Parameters to draw.

    Returns
    -------
    matplotlib.figure.Figure
        Medians with 68 % intervals, one panel per parameter. The band is the interval for all groups together. Open
        symbols mark fits whose verdict is not usable.

    Raises
    ------
    ValueError
        If a parameter is not one of the fits.
    """
    table = fits.summary(list(parameters))
    names = [name for name in fits.names if name in table.index.get_level_values("object")]
    position = np.arange(len(names))[::-1]
    with house_style():
        figure = Figure(figsize=(2.3 * len(parameters) + 1.4, 0.36 * len(names) + 1.0), layout="constrained")
        grid = figure.subplots(1, len(parameters), squeeze=False, sharey=True)[0]
        for axes, name in zip(grid, parameters, strict=True):
            rows = table.xs(name, level="parameter").loc[names]
            total = rows.iloc[0]
            axes.axvspan(total["lower_68"], total["upper_68"], color=BLUE, alpha=0.15, lw=0)
            for y, (key, row) in zip(position, rows.iterrows(), strict=True):
                errors = [[row["median"] - row["lower_68"]], [row["upper_68"] - row["median"]]]
                face = BLUE if fits.usable[key] else "white"
                colour = BLACK if y == position[0] else BLUE
                axes.errorbar([row["median"]], [y], xerr=errors, fmt="o", color=colour, mfc=face, ms=4.0)
            axes.set_xlabel(label(name))
            axes.set_ylim(-0.6, len(names) - 0.4)
        grid[0].set_yticks(position, names)
    return figure
