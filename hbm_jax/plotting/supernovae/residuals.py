"""Hubble residuals against everything that they should not depend on, and what each survey does to the answer."""

from collections.abc import Sequence

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.data.supernovae.columns import UNMEASURED_MASS_ERROR
from hbm_jax.inference import Fit, Fits
from hbm_jax.models import Supernova
from hbm_jax.plotting.draws import program_of
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SERIES, Figure, house_style
from hbm_jax.plotting.supernovae.hubble import MARKERS, SURVEYS, modulus_draws, standardise

COVARIATES = {"z_cmb": "redshift $z_\\mathrm{CMB}$", "x1": label("x1"), "c": label("c", "mag")}
NUM_BINS = 8
TRIM = 0.005  # share of the supernovae at either end of a covariate that its panel does not show


def hubble_residuals(fit: Fit) -> Figure:
    """Draw Hubble residuals against redshift, x1, c, host mass and survey.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Supernova`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Standardised distance modulus less the posterior median of the model, all parameters at their medians. Black:
        weighted means in bins of equally many supernovae. Written above is the slope by weighted least squares in
        standard errors; that of a covariate with errors of its own (x1, c) is not zero where the model is right,
        because the residual has the same errors: hold it against simulated samples. Last, the mean of each survey.

    Raises
    ------
    ValueError
        If the fit is not one of supernovae or was loaded without its program and data.

    Examples
    --------
    >>> hubble_residuals(fit).savefig("residuals.pdf")  # doctest: +SKIP
    """
    program_of(fit, Supernova, Supernovae, "hubble_residuals")
    data: Supernovae = fit.data
    points = standardise(fit)
    residual = points.mu - np.median(modulus_draws(fit, data), axis=0)
    covariates = {text: np.asarray(getattr(data, name)) for name, text in COVARIATES.items()}
    if data.has_host_mass.any():
        measured = data.has_host_mass & ~(data.sigma_log10_mass >= UNMEASURED_MASS_ERROR)
        covariates[label("log10_mass", r"$M_\odot$")] = np.where(measured, data.log10_mass, np.nan)
    reach = 1.15 * np.quantile(np.abs(residual), 0.99)
    with house_style():
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        grid = figure.subplots(2, 3, sharey=True).ravel()
        for axes, (text, values) in zip(grid, covariates.items(), strict=False):
            _draw_residuals(axes, values, residual, points.error)
            axes.set_xlabel(text)
            if text == COVARIATES["z_cmb"]:
                axes.set_xscale("log")
        for axes in grid[len(covariates) + 1 :]:
            axes.set_visible(False)
        _draw_surveys(grid[len(covariates)], data, residual, points.error)
        grid[0].set_ylim(-reach, reach)
        for axes in (grid[0], grid[3]):
            axes.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
    return figure


def _draw_residuals(axes, values, residual, error) -> None:
    here = np.isfinite(values)
    x, y, weight = values[here], residual[here], 1.0 / error[here] ** 2
    axes.plot(x, y, ".", color=BLUE, ms=2.0, alpha=0.35, mew=0, rasterized=True)
    order = np.argsort(x, kind="stable")
    rows = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    mean = [np.average(y[part], weights=weight[part]) for part in rows]
    middle = [np.median(x[part]) for part in rows]
    axes.errorbar(
        middle, mean, [weight[part].sum() ** -0.5 for part in rows], fmt="o", color=BLACK, ms=3.4, mfc="white", zorder=3
    )
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    low, high = np.quantile(x, (TRIM, 1.0 - TRIM))
    margin = 0.05 * (high - low)
    axes.set_xlim(max(low - margin, 0.8 * low) if low > 0 else low - margin, high + margin)
    centred = x - np.average(x, weights=weight)
    slope, sigma = np.sum(weight * centred * y) / np.sum(weight * centred**2), np.sum(weight * centred**2) ** -0.5
    axes.set_title(f"slope {slope / sigma:+.1f} standard errors", fontsize=8.0)


def _draw_surveys(axes, data, residual, error) -> None:
    survey = np.array(data.survey)
    for index, name in enumerate(data.survey_counts):
        here = survey == name
        weight = 1.0 / error[here] ** 2
        jitter = np.random.default_rng(index).uniform(-0.25, 0.25, here.sum())
        colour = SERIES[index % len(SERIES)]
        axes.plot(index + jitter, residual[here], ".", color=colour, ms=2.0, alpha=0.4, mew=0, rasterized=True)
        mean, sigma = np.average(residual[here], weights=weight), weight.sum() ** -0.5
        axes.errorbar([index], [mean], [sigma], fmt="o", color=BLACK, ms=3.4, mfc="white", zorder=3)
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    axes.set_xticks(range(len(data.survey_counts)), [SURVEYS.get(name, name) for name in data.survey_counts])
    axes.set_title("mean of each survey", fontsize=8.0)


def influence(fits: Fits, parameters: Sequence[str]) -> Figure:
    """Draw how each group moves the answer: posteriors without it, beside that of all.

    Parameters
    ----------
    fits : Fits
        What `hbm_jax.leave_groups_out` returned.
    parameters : sequence of str
        Which to draw.

    Returns
    -------
    matplotlib.figure.Figure
        Medians with 68 % intervals, a panel for each parameter. The band is the interval of all groups together. A
        posterior that is not usable is drawn open.

    Raises
    ------
    ValueError
        If a parameter is not among the fits'.
    """
    table = fits.summary(list(parameters))
    found = set(table.index.get_level_values("parameter"))
    for name in parameters:
        if name not in found:
            raise ValueError(f"influence: expected parameters of the fits; found {name!r}, which is none.")
    names = [name for name in fits.names if name in table.index.get_level_values("object")]
    place = np.arange(len(names))[::-1]
    with house_style():
        figure = Figure(figsize=(2.3 * len(parameters) + 1.4, 0.36 * len(names) + 1.0), layout="constrained")
        grid = figure.subplots(1, len(parameters), squeeze=False, sharey=True)[0]
        for axes, name in zip(grid, parameters, strict=True):
            rows = table.xs(name, level="parameter").loc[names]
            every = rows.iloc[0]
            axes.axvspan(every["lower_68"], every["upper_68"], color=BLUE, alpha=0.15, lw=0)
            for y, (key, row) in zip(place, rows.iterrows(), strict=True):
                errors = [[row["median"] - row["lower_68"]], [row["upper_68"] - row["median"]]]
                face = BLUE if fits.usable[key] else "white"
                colour = BLACK if y == place[0] else BLUE
                marker = MARKERS[0]
                axes.errorbar([row["median"]], [y], xerr=errors, fmt=marker, color=colour, mfc=face, ms=4.0)
            axes.set_xlabel(label(name))
            axes.set_ylim(-0.6, len(names) - 0.4)
        grid[0].set_yticks(place, names)
    return figure
