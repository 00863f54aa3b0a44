"""Figures of regressions: coefficients, group effects and their shrinkage, predictive check."""

from typing import Any, cast

import numpy as np
import xarray as xr

from hbm_jax.data import RegressionData
from hbm_jax.data.regression.group_designs import GroupDesign
from hbm_jax.inference import Fit, latents, posterior_predictive
from hbm_jax.inference.results import model_of
from hbm_jax.models import Rates, Regression
from hbm_jax.plotting.draws import program_of
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, BLUE, GREY, ORANGE, SERIES, Figure, house_style

LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
MAX_GROUPS = 60  # groups labelled in one panel; more are illegible
NUM_DRAWS = 400
NUM_BINS = 12


def coefficients(fit: Fit) -> Figure:
    """Draw the posterior of every coefficient except the intercept: median, 68 and 95 % intervals.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Regression`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Coefficients times the standard deviation of their predictor, so that they are comparable. For a categorical
        response, one panel per category. A model with only an intercept shows the intercept.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.
    """
    _, data = _model_and_data(fit, "coefficients")
    draws = fit.posterior["coef"].stack(sample=("chain", "draw"), create_index=False).transpose("sample", ...)
    columns = [k for k, term in enumerate(data.terms) if term != "Intercept"] or list(range(len(data.terms)))
    values = draws.to_numpy()[..., columns] * np.asarray(data.scales)[columns]
    values = values[:, None] if values.ndim == 2 else values
    names = [data.terms[k] for k in columns]
    panels = list(data.categories[1:]) if values.shape[1] > 1 or len(data.categories) > 2 else [""]
    with house_style():
        figure = Figure(figsize=(4.8 * min(len(panels), 3), 0.32 * len(names) + 1.2), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axis, panel, panel_draws in zip(axes, panels, np.moveaxis(values, 1, 0), strict=True):
            _draw_intervals(axis, names, panel_draws)
            axis.axvline(0.0, color=GREY, lw=0.7, ls=":")
            axis.set_title(panel)
        figure.supxlabel("coefficient x standard deviation of the predictor", fontsize=10)
    return figure


def _draw_intervals(axis, names, draws: np.ndarray, colour: str = BLUE) -> None:
    """Draw median and intervals of each column of draws, (draw, n), from top to bottom."""
    rows = np.arange(len(names))[::-1]
    low, lower, median, upper, high = np.quantile(draws, LEVELS, axis=0)
    axis.hlines(rows, low, high, color=colour, lw=0.9)
    axis.hlines(rows, lower, upper, color=colour, lw=2.6)
    axis.plot(median, rows, "o", color=colour, ms=4.0, mec="white", mew=0.6)
    axis.set_yticks(rows, [name.replace("$", r"\$") for name in names])
    axis.tick_params(axis="y", which="minor", left=False, right=False)
    axis.set_ylim(-0.7, len(names) - 0.3)


def group_effects(fit: Fit, name: str | None = None) -> Figure:
    """Draw the effects of every group, sorted by size, or against time for a random walk.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Regression` with a group term, with its program and data.
    name : str, optional
        Name of the group term; the first by default.

    Returns
    -------
    matplotlib.figure.Figure
        One panel per column that varies between groups: medians with 68 and 95 % intervals, and the names of at most 60
        groups. The shaded band is one standard deviation of the population. For a random walk, the coefficient
        (population coefficient plus effect) against time.

    Raises
    ------
    ValueError
        If the fit is of another model, or has no such term.
    """
    _, data = _model_and_data(fit, "group_effects")
    group = _group_term(data, name, "group_effects")
    draws = _stacked_draws(fit, f"{group.name}_effect").reshape(-1, len(group.labels), len(group.columns))
    sd_name = f"{group.name}_sd"
    sd = _stacked_draws(fit, sd_name).reshape(-1, len(group.columns)) if sd_name in fit.posterior else None
    num_columns = len(group.columns)
    with house_style():
        if group.walk:
            figure = Figure(figsize=(6.0, 2.2 * num_columns + 0.6), layout="constrained")
            axes = np.atleast_1d(figure.subplots(num_columns, 1, sharex=True))
            for axis, column in zip(axes, range(num_columns), strict=True):
                _draw_random_walk(axis, fit, data, group, column, draws[..., column])
            axes[-1].set_xlabel(group.factor)
            return figure
        unlabelled = len(group.labels) > MAX_GROUPS
        height = 5.2 if unlabelled else 0.2 * len(group.labels) + 1.2
        figure = Figure(figsize=(3.4 * num_columns + 1.0, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, num_columns))
        for axis, column in zip(axes, range(num_columns), strict=True):
            order = np.argsort(-np.median(draws[..., column], axis=0))
            _draw_intervals(axis, [group.labels[j] for j in order], draws[:, order, column])
            if sd is not None:
                width = float(np.median(sd[:, column]))
                axis.axvspan(-width, width, color=BAND_95, alpha=0.5, lw=0, zorder=0)
            axis.axvline(0.0, color=GREY, lw=0.7, ls=":")
            axis.set_title(group.columns[column])
            if unlabelled:
                axis.set_yticks([])
        figure.supylabel(group.factor)
        figure.supxlabel("effect")
    return figure


def _draw_random_walk(axis, fit: Fit, data: RegressionData, group: GroupDesign, index: int, draws: np.ndarray) -> None:
    """Draw a coefficient that follows a random walk against time."""
    column = group.columns[index]
    if column in data.terms:
        draws = draws + _stacked_draws(fit, "coef").reshape(len(draws), -1)[:, [data.terms.index(column)]]
    times = np.array(group.labels, float)
    low, lower, median, upper, high = np.quantile(draws, LEVELS, axis=0)
    axis.fill_between(times, low, high, color=BAND_95, alpha=0.6, lw=0)
    axis.fill_between(times, lower, upper, color=BAND_68, alpha=0.7, lw=0)
    axis.plot(times, median, color=BLUE)
    axis.set_ylabel(column)


def shrinkage(fit: Fit, name: str | None = None) -> Figure:
    """Draw the estimate of each group without pooling, and its posterior, against the size of the group.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Rates`, or of `hbm_jax.models.Regression` with a group term.
    name : str, optional
        Name of the group term; the first by default.

    Returns
    -------
    matplotlib.figure.Figure
        Open circles: rate of each group, or mean residual of its points from the population-level prediction, on the
        scale of the linear predictor. Dots with bars: posterior medians and 68 % intervals.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.
    """
    program: Any = model_of(fit)
    with house_style():
        if isinstance(program, Rates):
            data: Any = fit.data
            size = np.asarray(data.trials) if program.family == "binomial" else np.exp(np.asarray(data.offset))
            draws = latents(fit, num_draws=NUM_DRAWS)["rate"].to_numpy()
            labels = ("trials" if program.family == "binomial" else "exposure", "rate")
            return _draw_shrinkage(size, np.asarray(data.y) / size, draws, labels, float(np.mean(draws)))
        _, data = _model_and_data(fit, "shrinkage")
        group = _group_term(data, name, "shrinkage")
        if group.walk:
            raise ValueError(f"shrinkage: expected exchangeable groups; found {group.factor}, a random walk.")
        draws = _stacked_draws(fit, f"{group.name}_effect").reshape(-1, len(group.labels), len(group.columns))
        counts = np.bincount(group.index, minlength=len(group.labels)).astype(float)
        unpooled = _unpooled_effects(fit, data, group)
        return _draw_shrinkage(
            counts, unpooled, draws[..., 0], ("points of the group", f"effect, {group.columns[0]}"), 0.0
        )


def _draw_shrinkage(size, unpooled, draws, labels, reference: float) -> Figure:
    """Draw estimates without pooling and with partial pooling against the size of the groups."""
    lower, median, upper = np.quantile(draws, (0.16, 0.5, 0.84), axis=0)
    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axis = figure.subplots()
    has_range = np.ptp(size) > 0
    logarithmic = bool(np.max(size) > 10.0 * np.min(size))
    # Groups of equal size are drawn side by side.
    order = np.argsort(np.argsort(unpooled, kind="stable"))
    offset = order / max(len(unpooled) - 1, 1) - 0.5
    positions = size * (1.0 + 0.06 * offset) if logarithmic else size + 0.02 * np.ptp(size) * offset
    positions = positions if has_range else order.astype(float)
    axis.vlines(positions, np.minimum(unpooled, median), np.maximum(unpooled, median), color=GREY, lw=0.4, alpha=0.6)
    axis.plot(positions, unpooled, "o", mfc="none", mec=GREY, ms=4.0, mew=0.8, label="no pooling")
    axis.errorbar(
        positions,
        median,
        [median - lower, upper - median],
        fmt="o",
        color=BLUE,
        ms=3.4,
        elinewidth=0.8,
        label="partial pooling",
    )
    axis.axhline(reference, color=ORANGE, lw=0.9, ls="--")
    axis.set(xlabel=labels[0] if has_range else "groups, in order", ylabel=labels[1])
    if logarithmic:
        axis.set_xscale("log")
    axis.legend()
    return figure


def _unpooled_effects(fit: Fit, data: RegressionData, group: GroupDesign) -> np.ndarray:
    """Return the weighted mean working residual of each group at the posterior mean of the coefficients."""
    from hbm_jax.models.regression.families import working

    model: Any = model_of(fit)
    coef = fit.posterior["coef"].mean(("chain", "draw")).to_numpy()
    response, weights = working(model.link, np.asarray(data.y), np.asarray(data.trials), None)
    residuals = response - np.asarray(data.offset) - np.asarray(data.X) @ coef
    num_groups = len(group.labels)
    return np.bincount(group.index, weights * residuals, num_groups) / np.bincount(group.index, weights, num_groups)


def predictive_check(fit: Fit) -> Figure:
    """Draw the observed response compared with replicated responses (posterior predictive check).

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Regression` or `hbm_jax.models.Rates`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: distribution of the response, observed (black) and replicated (68 and 95 % bands). Right: means of the
        response in bins of the predicted mean, with the 95 % band of replications; points outside it indicate
        misfit.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.
    """
    program: Any = model_of(fit)
    if not isinstance(program, Rates):
        _model_and_data(fit, "predictive_check")
    data: Any = fit.data
    replicated = posterior_predictive(fit, num_draws=NUM_DRAWS)["observed"].to_numpy().astype(float)
    y = np.asarray(data.y)
    with house_style():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_distribution(left, y, replicated, data)
        _draw_bins(right, y, replicated)
        left.set(xlabel=data.response.replace("$", r"\$"), ylabel="fraction of points")
        right.set(xlabel="predicted mean", ylabel="mean response")
    return figure


def _draw_distribution(axis, y: np.ndarray, replicated: np.ndarray, data: RegressionData) -> None:
    """Draw the distribution of the observed response and of replicated responses."""
    low, high = min(y.min(), np.quantile(replicated, 0.001)), max(y.max(), np.quantile(replicated, 0.999))
    is_integer = bool((y == np.round(y)).all() and (replicated == np.round(replicated)).all())
    width = max(np.ceil((high - low + 1) / 25), 1.0) if is_integer else (high - low) / 25
    edges = np.arange(low - 0.5, high + 0.5 + width, width) if is_integer else np.linspace(low, high, 26)
    fractions = np.stack([np.histogram(row, edges)[0] for row in replicated]) / len(y)
    fractions = np.concatenate([fractions, fractions[:, -1:]], axis=1)  # the last step repeated at the right edge
    lowest, lower, _, upper, highest = np.quantile(fractions, LEVELS, axis=0)
    axis.fill_between(edges, lowest, highest, color=BAND_95, alpha=0.7, lw=0, step="post", label="replicated")
    axis.fill_between(edges, lower, upper, color=BAND_68, alpha=0.7, lw=0, step="post")
    axis.stairs(np.histogram(y, edges)[0] / len(y), edges, color=BLACK, lw=1.0, label="observed")
    if data.categories:
        axis.set_xticks(range(len(data.categories)), data.categories)
    axis.legend()


def _draw_bins(axis, y: np.ndarray, replicated: np.ndarray) -> None:
    """Draw the mean response in bins of the predicted mean, observed and replicated."""
    predicted = replicated.mean(axis=0)
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, min(NUM_BINS, max(len(y) // 5, 2), len(y)))
    centres = np.array([predicted[members].mean() for members in bins])
    observed = np.array([y[members].mean() for members in bins])
    replicated_means = np.stack([replicated[:, members].mean(axis=1) for members in bins], axis=1)
    low, high = np.quantile(replicated_means, (0.025, 0.975), axis=0)
    axis.fill_between(centres, low, high, color=BAND_95, alpha=0.8, lw=0)
    if len(y) <= 400:
        axis.plot(predicted, y, ".", color=SERIES[4], ms=2.5, alpha=0.6, zorder=1)
    axis.plot(centres, centres, color=GREY, lw=0.8)
    axis.plot(centres, observed, "o", color=BLACK, ms=3.6, zorder=3)


def _model_and_data(fit: Fit, what: str) -> tuple[Regression, RegressionData]:
    """Return model and data of a fit; raise ValueError for a fit of another model."""
    return program_of(fit, Regression, RegressionData, what), cast(RegressionData, fit.data)


def _group_term(data: RegressionData, name: str | None, what: str) -> GroupDesign:
    """Return the named group term of the data, by default the first."""
    names = [group.name for group in data.groups]
    if not names or (name is not None and name not in names):
        value = repr(name) if names else f"{data.source.formula} without groups"
        raise ValueError(
            f"{what}: expected a group term{', one of ' + ', '.join(names) if names else ''}; found {value}."
        )
    return data.groups[names.index(name) if name is not None else 0]


def _stacked_draws(fit: Fit, name: str) -> np.ndarray:
    """Return the draws of all chains together, (draw, ...)."""
    variable: xr.DataArray = fit.posterior[name]
    values = variable.transpose("chain", "draw", ...).to_numpy()
    return values.reshape(-1, *values.shape[2:])


COEFFICIENTS = (
    "Coefficients times the standard deviation of their predictor: median, 68 and 95 % intervals.",
    coefficients,
)
CHECK = (
    "Left: distribution of the response, observed and replicated (68 and 95 % bands). Right: means of the response in "
    "bins of the predicted mean, with the 95 % band of replications.",
    predictive_check,
)
SHRINKAGE = (
    "Estimates of groups without pooling (open circles) and with partial pooling (dots, 68 % intervals).",
    shrinkage,
)


def figures(fit: Fit):
    """Return the figures of a fit of a regression or of rates, by its terms."""
    program: Any = model_of(fit)
    if isinstance(program, Rates):
        return {"shrinkage": SHRINKAGE, "predictive_check": CHECK}
    chosen: dict[str, Any] = {"coefficients": COEFFICIENTS}
    for group in cast(RegressionData, fit.data).groups:
        caption = (
            f"Effects of {group.factor}: median, 68 and 95 % intervals; band, one standard deviation of the population."
        )
        if group.walk:
            caption = f"Coefficients against {group.factor}: median, 68 and 95 % intervals."
        chosen[f"group_effects_{group.name}"] = (caption, _with_name(group_effects, group.name))
        if not group.walk:
            chosen[f"shrinkage_{group.name}"] = (SHRINKAGE[0], _with_name(shrinkage, group.name))
    return chosen | {"predictive_check": CHECK}


def _with_name(function, name: str):
    """Return a figure function of a fit for one group term."""
    return lambda fit: function(fit, name)
