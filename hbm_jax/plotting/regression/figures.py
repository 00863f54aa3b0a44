"""Figures of regressions: coefficients, group effects, shrinkage, and posterior predictive checks."""

import functools
from typing import Any, cast

import numpy as np

from hbm_jax.data import RegressionData
from hbm_jax.data.regression.group_designs import GroupDesign
from hbm_jax.inference import Fit, posterior_predictive
from hbm_jax.inference.results import model_of
from hbm_jax.models import Rates, Regression
from hbm_jax.models.regression.families import working
from hbm_jax.plotting.draws import model_and_data, parameter, require_values, true_values
from hbm_jax.plotting.labels import object_name
from hbm_jax.plotting.style import (
    BAND_68,
    BAND_95,
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    QUANTILES,
    SERIES,
    Figure,
    draw_intervals,
    fill_bands,
    house_style,
)

MAX_GROUPS = 60  # groups with labels; more are illegible
NUM_DRAWS = 400
NUM_BINS = 12


def coefficients(fit: Fit) -> Figure:
    """Plot the posterior of every coefficient except the intercept.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Regression`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Medians with 68 and 95 % intervals of the coefficients, multiplied by the standard deviations of their
        predictors to make them comparable. A categorical response has one panel per category. The intercept is shown
        only if there is no other coefficient.

    Raises
    ------
    ValueError
        If the fit is of another model.
    """
    _, data = model_and_data(fit, Regression, RegressionData, "coefficients")
    require_values(fit, "coef")
    draws = fit.posterior["coef"].stack(sample=("chain", "draw"), create_index=False).transpose("sample", ...)
    shown = [k for k, term in enumerate(data.terms) if term != "Intercept"] or list(range(len(data.terms)))
    values = draws.to_numpy()[..., shown] * np.asarray(data.scales)[shown]
    values = values[:, None] if values.ndim == 2 else values
    names = [data.terms[k] for k in shown]
    panels = list(data.categories[1:]) if values.shape[1] > 1 or len(data.categories) > 2 else [""]
    with house_style():
        figure = Figure(figsize=(4.8 * min(len(panels), 3), 0.32 * len(names) + 1.2), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axis, panel, panel_draws in zip(axes, panels, np.moveaxis(values, 1, 0), strict=True):
            _forest(axis, names, panel_draws)
            axis.axvline(0.0, color=GREY, lw=0.7, ls=":")
            axis.set_title(panel)
        figure.supxlabel("coefficient x standard deviation of the predictor", fontsize=10)
    return figure


def _forest(axis, names, draws: np.ndarray) -> None:
    """Draw the median and the intervals of each column of draws (draw, n), from top to bottom."""
    rows = np.arange(len(names))[::-1]
    draw_intervals(axis, rows, np.quantile(draws, QUANTILES, axis=0))
    axis.set_yticks(rows, [object_name(name, 40) for name in names])
    axis.tick_params(axis="y", which="minor", left=False, right=False)
    axis.set_ylim(-0.7, len(names) - 0.3)


def group_effects(fit: Fit, name: str | None = None) -> Figure:
    """Plot the effects of every group, sorted by size, or against time for a random walk.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Regression` with a group term, with its program and data.
    name : str, optional
        Group term; the first where omitted.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each varying coefficient: medians with 68 and 95 % intervals, labelled for up to 60 groups. The
        shaded band is one standard deviation of the population. For a random walk, the coefficient (common value plus
        effect) against time.

    Raises
    ------
    ValueError
        If the fit is of another model or has no such term.
    """
    _, data = model_and_data(fit, Regression, RegressionData, "group_effects")
    group = _group_term(data, name, "group_effects")
    draws = parameter(fit, f"{group.name}_effect").reshape(-1, len(group.labels), len(group.columns))
    columns, name_of_sd = len(group.columns), f"{group.name}_sd"
    sd = parameter(fit, name_of_sd).reshape(-1, columns) if name_of_sd in fit.posterior else None
    with house_style():
        if group.walk:
            figure = Figure(figsize=(6.0, 2.2 * columns + 0.6), layout="constrained")
            axes = np.atleast_1d(figure.subplots(columns, 1, sharex=True))
            for axis, c in zip(axes, range(columns), strict=True):
                _draw_walk(axis, fit, data, group, c, draws[..., c])
            axes[-1].set_xlabel(group.factor)
            return figure
        unlabelled = len(group.labels) > MAX_GROUPS
        height = 5.2 if unlabelled else 0.2 * len(group.labels) + 1.2
        figure = Figure(figsize=(3.4 * columns + 1.0, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, columns))
        for axis, c in zip(axes, range(columns), strict=True):
            order = np.argsort(-np.median(draws[..., c], axis=0))
            _forest(axis, [group.labels[j] for j in order], draws[:, order, c])
            if sd is not None:
                width = float(np.median(sd[:, c]))
                axis.axvspan(-width, width, color=BAND_95, alpha=0.5, lw=0, zorder=0)
            axis.axvline(0.0, color=GREY, lw=0.7, ls=":")
            axis.set_title(group.columns[c])
            if unlabelled:
                axis.set_yticks([])
        figure.supylabel(group.factor)
        figure.supxlabel("effect")
    return figure


def _draw_walk(axis, fit: Fit, data: RegressionData, group: GroupDesign, c: int, draws: np.ndarray) -> None:
    """Draw a coefficient as a function of time, along which it is a random walk."""
    column = group.columns[c]
    if column in data.terms:
        draws = draws + parameter(fit, "coef").reshape(len(draws), -1)[:, [data.terms.index(column)]]
    times = np.array(group.labels, float)
    bands = np.quantile(draws, QUANTILES, axis=0)
    fill_bands(axis, times, bands, alpha=0.6)
    axis.plot(times, bands[2], color=BLUE)
    axis.set_ylabel(column)


def shrinkage(fit: Fit, name: str | None = None) -> Figure:
    """Plot the estimate of each group without pooling, and its posterior, against the size of the group.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Rates`, or of `hbm_jax.models.Regression` with a group term.
    name : str, optional
        Group term; the first where omitted.

    Returns
    -------
    matplotlib.figure.Figure
        Open circles: observed rates of the groups, or for a regression the mean working residual of the points of a
        group from the common part of the model. Dots with bars: posterior median with 68 % interval.

    Raises
    ------
    ValueError
        If the fit is of another model, has no such term, or the term is a random walk.
    """
    program: Any = model_of(fit)
    with house_style():
        if isinstance(program, Rates):
            data: Any = fit.data
            size = np.asarray(data.trials) if program.family == "binomial" else np.exp(np.asarray(data.offset))
            draws = true_values(fit, num_draws=NUM_DRAWS)["rate"].to_numpy()
            labels = ("trials" if program.family == "binomial" else "exposure", "rate")
            return _shrinkage(size, np.asarray(data.y) / size, draws, labels, float(np.mean(draws)))
        _, data = model_and_data(fit, Regression, RegressionData, "shrinkage")
        group = _group_term(data, name, "shrinkage")
        if group.walk:
            raise ValueError(f"shrinkage: expected groups that are exchangeable; found {group.factor}, a random walk.")
        draws = parameter(fit, f"{group.name}_effect").reshape(-1, len(group.labels), len(group.columns))
        counts = np.bincount(group.index, minlength=len(group.labels)).astype(float)
        unpooled = _unpooled(fit, data, group)
        return _shrinkage(counts, unpooled, draws[..., 0], ("points of the group", f"effect, {group.columns[0]}"), 0.0)


def _shrinkage(size, unpooled, draws, labels, population_mean: float) -> Figure:
    """Plot unpooled estimates and posteriors of groups against their size."""
    lower, median, upper = np.quantile(draws, (0.16, 0.5, 0.84), axis=0)
    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axis = figure.subplots()
    sizes_differ = np.ptp(size) > 0
    log_scale = bool(np.max(size) > 10.0 * np.min(size))
    # Groups of the same size are plotted side by side.
    order = np.argsort(np.argsort(unpooled, kind="stable"))
    offset = order / max(len(unpooled) - 1, 1) - 0.5
    x = size * (1.0 + 0.06 * offset) if log_scale else size + 0.02 * np.ptp(size) * offset
    x = x if sizes_differ else order.astype(float)
    axis.vlines(x, np.minimum(unpooled, median), np.maximum(unpooled, median), color=GREY, lw=0.4, alpha=0.6)
    axis.plot(x, unpooled, "o", mfc="none", mec=GREY, ms=4.0, mew=0.8, label="no pooling")
    axis.errorbar(
        x,
        median,
        [median - lower, upper - median],
        fmt="o",
        color=BLUE,
        ms=3.4,
        elinewidth=0.8,
        label="partial pooling",
    )
    axis.axhline(population_mean, color=ORANGE, lw=0.9, ls="--")
    axis.set(xlabel=labels[0] if sizes_differ else "groups, sorted", ylabel=labels[1])
    if log_scale:
        axis.set_xscale("log")
    axis.legend()
    return figure


def _unpooled(fit: Fit, data: RegressionData, group: GroupDesign) -> np.ndarray:
    """Return the weighted mean working residual of each group at the posterior mean of the common coefficients."""
    model: Any = model_of(fit)
    require_values(fit, "coef")
    coef = fit.posterior["coef"].mean(("chain", "draw")).to_numpy()
    response, weights = working(model.link, np.asarray(data.y), np.asarray(data.trials), None)
    residual = response - np.asarray(data.offset) - np.asarray(data.X) @ coef
    num = len(group.labels)
    return np.bincount(group.index, weights * residual, num) / np.bincount(group.index, weights, num)


def predictive_check(fit: Fit) -> Figure:
    """Compare the data with replicated data of the posterior predictive distribution.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Regression` or `hbm_jax.models.Rates`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: distribution of the response over all points, observed (black) and replicated (68 and 95 %). Right: mean
        response in bins of the predicted mean, with 95 % bands of the replications. Points outside the bands indicate a
        misfit.

    Raises
    ------
    ValueError
        If the fit is of another model.
    """
    program: Any = model_of(fit)
    if not isinstance(program, Rates):
        model_and_data(fit, Regression, RegressionData, "predictive_check")
    data: Any = fit.data
    drawn = posterior_predictive(fit, num_draws=NUM_DRAWS)["observed"].to_numpy().astype(float)
    y = np.asarray(data.y)
    with house_style():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_distribution(left, y, drawn, data)
        _draw_bins(right, y, drawn)
        left.set(xlabel=data.response.replace("$", r"\$"), ylabel="fraction of points")
        right.set(xlabel="predicted mean", ylabel="mean response")
    return figure


def _draw_distribution(axis, y: np.ndarray, drawn: np.ndarray, data: RegressionData) -> None:
    """Draw histograms of the observed and the replicated response."""
    low, high = min(y.min(), np.quantile(drawn, 0.001)), max(y.max(), np.quantile(drawn, 0.999))
    integer = bool((y == np.round(y)).all() and (drawn == np.round(drawn)).all())
    width = max(np.ceil((high - low + 1) / 25), 1.0) if integer else (high - low) / 25
    edges = np.arange(low - 0.5, high + 0.5 + width, width) if integer else np.linspace(low, high, 26)
    fractions = np.stack([np.histogram(row, edges)[0] for row in drawn]) / len(y)
    fractions = np.concatenate([fractions, fractions[:, -1:]], axis=1)  # fill_between with steps needs the last edge
    lows, lowers, _, uppers, highs = np.quantile(fractions, QUANTILES, axis=0)
    axis.fill_between(edges, lows, highs, color=BAND_95, alpha=0.7, lw=0, step="post", label="replicated")
    axis.fill_between(edges, lowers, uppers, color=BAND_68, alpha=0.7, lw=0, step="post")
    axis.stairs(np.histogram(y, edges)[0] / len(y), edges, color=BLACK, lw=1.0, label="observed")
    if data.categories:
        axis.set_xticks(range(len(data.categories)), data.categories)
    axis.legend()


def _draw_bins(axis, y: np.ndarray, drawn: np.ndarray) -> None:
    """Draw the mean response in bins of the predicted mean."""
    predicted = drawn.mean(axis=0)
    order = np.argsort(predicted, kind="stable")
    parts = np.array_split(order, min(NUM_BINS, max(len(y) // 5, 2), len(y)))
    predicted_mean = np.array([predicted[part].mean() for part in parts])
    observed = np.array([y[part].mean() for part in parts])
    replicated = np.stack([drawn[:, part].mean(axis=1) for part in parts], axis=1)
    low, high = np.quantile(replicated, (0.025, 0.975), axis=0)
    axis.fill_between(predicted_mean, low, high, color=BAND_95, alpha=0.8, lw=0)
    if len(y) <= 400:
        axis.plot(predicted, y, ".", color=SERIES[4], ms=2.5, alpha=0.6, zorder=1)
    axis.plot(predicted_mean, predicted_mean, color=GREY, lw=0.8)
    axis.plot(predicted_mean, observed, "o", color=BLACK, ms=3.6, zorder=3)


def _group_term(data: RegressionData, name: str | None, figure_name: str) -> GroupDesign:
    """Return the group term of this name, or the first; the error names the figure ``figure_name``."""
    names = [group.name for group in data.groups]
    if not names or (name is not None and name not in names):
        actual = repr(name) if names else f"none in {data.source.formula}"
        raise ValueError(
            f"{figure_name}: expected a group term{', one of ' + ', '.join(names) if names else ''}; found {actual}."
        )
    return data.groups[names.index(name) if name is not None else 0]


COEFFICIENTS = (
    "Coefficients times the standard deviations of their predictors: medians with 68 and 95 % intervals.",
    coefficients,
)
CHECK = (
    "Left: distribution of the response, observed and replicated (68 and 95 %). Right: mean response in bins of the "
    "predicted mean, with 95 % bands of the replications.",
    predictive_check,
)
SHRINKAGE = (
    "Estimates of the groups without pooling (open circles) and with partial pooling (dots with 68 % intervals).",
    shrinkage,
)


def figures(fit: Fit):
    """Return the figures of a fit of a regression or of rates, according to its terms."""
    program: Any = model_of(fit)
    if isinstance(program, Rates):
        return {"shrinkage": SHRINKAGE, "predictive_check": CHECK}
    figures_of_fit: dict[str, Any] = {"coefficients": COEFFICIENTS}
    for group in cast(RegressionData, fit.data).groups:
        caption = f"Effects of {group.factor}: medians with 68 and 95 % intervals. Band: population standard deviation."
        if group.walk:
            caption = f"Coefficients against {group.factor}: medians with 68 and 95 % intervals."
        figures_of_fit[f"group_effects_{group.name}"] = (caption, functools.partial(group_effects, name=group.name))
        if not group.walk:
            figures_of_fit[f"shrinkage_{group.name}"] = (SHRINKAGE[0], functools.partial(shrinkage, name=group.name))
    return figures_of_fit | {"predictive_check": CHECK}
