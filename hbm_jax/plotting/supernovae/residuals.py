"""Hubble residuals against covariates and survey, and the influence of each survey on the posterior."""

from collections.abc import Sequence

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.inference import Fit, Fits
from hbm_jax.models import Supernova
from hbm_jax.plotting.draws import program_of
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SERIES, Figure, house_style
from hbm_jax.plotting.supernovae.hubble import MARKERS, SURVEYS, modulus_draws, standardise

COVARIATES = {"z_cmb": "redshift $z_\\mathrm{CMB}$", "x1": label("x1"), "c": label("c", "mag")}
NUM_BINS = 8
TRIM = 0.005  # fraction of the supernovae at either end of a covariate that lies outside the axes


def hubble_residuals(fit: Fit) -> Figure:
    """Draw Hubble residuals against redshift, x1, c, host mass and survey.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Standardised distance modulus minus the posterior median of the model, all parameters at their medians. Black:
        weighted means in bins of equal numbers of supernovae. Titles give the slope from weighted least squares in
        units of its standard error. For covariates with measurement errors (x1, c) the expected slope is not zero even
        for a correct model, because the residual contains the same errors: compare with simulated samples. Last panel:
        mean of each survey.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.

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
        # Masses that were not measured are placeholders with errors of many dex.
        measured = data.has_host_mass & ~(data.sigma_log10_mass >= 2.0)
        covariates[label("log10_mass", r"$M_\odot$")] = np.where(measured, data.log10_mass, np.nan)
    limit = 1.15 * np.quantile(np.abs(residual), 0.99)
    with house_style():
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        panels = figure.subplots(2, 3, sharey=True).ravel()
        for axes, (text, values) in zip(panels, covariates.items(), strict=False):
            _draw_residuals(axes, values, residual, points.error)
            axes.set_xlabel(text)
            if text == COVARIATES["z_cmb"]:
                axes.set_xscale("log")
        for axes in panels[len(covariates) + 1 :]:
            axes.set_visible(False)
        _draw_surveys(panels[len(covariates)], data, residual, points.error)
        panels[0].set_ylim(-limit, limit)
        for axes in (panels[0], panels[3]):
            axes.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
    return figure


def _draw_residuals(axes, values, residual, error) -> None:
    """Draw residuals against a covariate, with weighted means in bins and the slope."""
    finite = np.isfinite(values)
    x, y, weights = values[finite], residual[finite], 1.0 / error[finite] ** 2
    axes.plot(x, y, ".", color=BLUE, ms=2.0, alpha=0.35, mew=0, rasterized=True)
    order = np.argsort(x, kind="stable")
    bins = [members for members in np.array_split(order, NUM_BINS) if len(members)]
    means = [np.average(y[members], weights=weights[members]) for members in bins]
    centres = [np.median(x[members]) for members in bins]
    axes.errorbar(
        centres,
        means,
        [weights[members].sum() ** -0.5 for members in bins],
        fmt="o",
        color=BLACK,
        ms=3.4,
        mfc="white",
        zorder=3,
    )
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    low, high = np.quantile(x, (TRIM, 1.0 - TRIM))
    margin = 0.05 * (high - low)
    axes.set_xlim(max(low - margin, 0.8 * low) if low > 0 else low - margin, high + margin)
    centred = x - np.average(x, weights=weights)
    slope, sigma = np.sum(weights * centred * y) / np.sum(weights * centred**2), np.sum(weights * centred**2) ** -0.5
    axes.set_title(f"slope {slope / sigma:+.1f} standard errors", fontsize=8.0)


def _draw_surveys(axes, data, residual, error) -> None:
    """Draw residuals by survey, with the weighted mean of each."""
    survey = np.array(data.survey)
    for index, name in enumerate(data.survey_counts):
        members = survey == name
        weights = 1.0 / error[members] ** 2
        jitter = np.random.default_rng(index).uniform(-0.25, 0.25, members.sum())
        colour = SERIES[index % len(SERIES)]
        axes.plot(index + jitter, residual[members], ".", color=colour, ms=2.0, alpha=0.4, mew=0, rasterized=True)
        mean, sigma = np.average(residual[members], weights=weights), weights.sum() ** -0.5
        axes.errorbar([index], [mean], [sigma], fmt="o", color=BLACK, ms=3.4, mfc="white", zorder=3)
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    axes.set_xticks(range(len(data.survey_counts)), [SURVEYS.get(name, name) for name in data.survey_counts])
    axes.set_title("mean of each survey", fontsize=8.0)


def influence(fits: Fits, parameters: Sequence[str]) -> Figure:
    """Draw the posterior without each group, compared with that of all groups.

    Parameters
    ----------
    fits : Fits
        Result of `hbm_jax.leave_groups_out`.
    parameters : sequence of str
        Parameters to draw.

    Returns
    -------
    matplotlib.figure.Figure
        Medians with 68 % intervals, one panel per parameter. The band is the interval from all groups. Posteriors that
        are not usable are drawn with open symbols.

    Raises
    ------
    ValueError
        If the fits have no parameter of that name.
    """
    table = fits.summary(list(parameters))
    available = set(table.index.get_level_values("parameter"))
    for name in parameters:
        if name not in available:
            raise ValueError(f"influence: expected parameters of the fits; found {name!r}.")
    names = [name for name in fits.names if name in table.index.get_level_values("object")]
    position = np.arange(len(names))[::-1]
    with house_style():
        figure = Figure(figsize=(2.3 * len(parameters) + 1.4, 0.36 * len(names) + 1.0), layout="constrained")
        panels = figure.subplots(1, len(parameters), squeeze=False, sharey=True)[0]
        for axes, name in zip(panels, parameters, strict=True):
            rows = table.xs(name, level="parameter").loc[names]
            reference = rows.iloc[0]
            axes.axvspan(reference["lower_68"], reference["upper_68"], color=BLUE, alpha=0.15, lw=0)
            for y, (key, row) in zip(position, rows.iterrows(), strict=True):
                errors = [[row["median"] - row["lower_68"]], [row["upper_68"] - row["median"]]]
                facecolour = BLUE if fits.usable[key] else "white"
                colour = BLACK if y == position[0] else BLUE
                marker = MARKERS[0]
                axes.errorbar([row["median"]], [y], xerr=errors, fmt=marker, color=colour, mfc=facecolour, ms=4.0)
            axes.set_xlabel(label(name))
            axes.set_ylim(-0.6, len(names) - 0.4)
        panels[0].set_yticks(position, names)
    return figure
