"""Figures of linear relations: points with errors, lines of groups, and shrinkage of the lines."""

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from matplotlib.patches import Ellipse

from hbm_jax.data import PointsInGroups
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Relation
from hbm_jax.models.linear.bound_points import log_evolution
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter, true_values
from hbm_jax.plotting.labels import object_name
from hbm_jax.plotting.linear.selection import drawable, selected_points
from hbm_jax.plotting.style import (
    BAND_68,
    BAND_95,
    BLACK,
    BLUE,
    GREY,
    QUANTILES,
    SERIES,
    Figure,
    fill_bands,
    house_style,
)

NUM_DRAWS = 400
MAX_PANELS = 12
COLUMNS = 4
MIN_POINTS = 3  # for a least-squares line of a single group
# Least fraction of the variance of x that is not due to its errors, for a least-squares line of a single group.
MIN_TRUE_VARIANCE = 0.3


def lines(fit: Fit, names: list[str] | None = None, predictor: str | None = None) -> Figure:
    """Plot points with their errors and the posterior of the line, in a panel for each group.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Relation`, with its program and data.
    names : list of str, optional
        Groups to show; by default the twelve with the most points, in the order of the data.
    predictor : str, optional
        Predictor on the x axis; the first by default. The contribution of the other predictors to y, at their measured
        values and the posterior median slopes, is subtracted from the points, and so is that of redshift.

    Returns
    -------
    matplotlib.figure.Figure
        Points: measured values with one standard deviation, which does not include errors in common; arrows are limits.
        Lines and bands: posterior median and 68 and 95 % intervals of the line (not of points about it).

    Raises
    ------
    ValueError
        If the fit is of another model, or for an unknown group or predictor.
    """
    model, data = model_and_data(fit, Relation, PointsInGroups, "lines")
    index = _predictor_index(data, predictor, "lines")
    slopes, beta = _lines(fit, model, data)
    alpha = slopes[..., index]
    values = _partial_residuals(model, data, slopes, index, _evolution(fit, model, data, slopes))
    rows = _group_indices(data, names)
    columns = min(COLUMNS, len(rows))
    num_rows = -(-len(rows) // columns)
    size = (5.0, 3.8) if len(rows) == 1 else (2.1 * columns + 0.6, 1.9 * num_rows + 0.6)
    pivot, curvature = _pivot(model, data)[index], _curvature(fit) if model.curved else 0.0
    used_values = values[np.asarray(data.used)]
    pad = 0.08 * np.ptp(used_values, axis=0)
    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = np.atleast_1d(figure.subplots(num_rows, columns, sharex=True, sharey=True)).ravel()
        x = np.linspace(used_values[:, 0].min() - pad[0], used_values[:, 0].max() + pad[0], 60)
        for axis, row in zip(axes, rows, strict=False):
            drawn = alpha[:, row, None] * (x - pivot) + beta[:, row, None] + curvature * (x - pivot) ** 2
            drawn = _broken_lines(fit, x) if model.broken else drawn
            bands = np.quantile(drawn, QUANTILES, axis=0)
            fill_bands(axis, x, bands, alpha=0.6)
            axis.plot(x, bands[2], color=BLUE, lw=1.0)
            _draw_points(axis, data, row, values[row], index)
            if len(data) > 1:
                axis.set_title(object_name(data.name[row]), fontsize=8.0, pad=2.5)
        for axis in axes[len(rows) :]:
            axis.set_visible(False)
        axes[0].set_xlim(x[0], x[-1])
        axes[0].set_ylim(used_values[:, 1].min() - pad[1], used_values[:, 1].max() + pad[1])
        x_label, y_label = object_name(data.labels[index]), object_name(data.labels[-1])
        figure.supxlabel(x_label)
        figure.supylabel(y_label if len(data.predictors) == 1 else f"{y_label} minus the\nother predictors")
    return figure


def _draw_points(axis, data: PointsInGroups, row: int, values: np.ndarray, index: int) -> None:
    """Draw the points of a group with error bars, and limits as arrows."""
    used = np.asarray(data.used)[row]
    values = values[used]
    columns = np.array([index, -1])
    errors = np.asarray(data.errors)[row, used][:, columns[:, None], columns]
    order = np.asarray(data.order)[row, used]
    in_y, in_x = order[:, -1, -1] > 0, order[:, -1, index] > 0
    is_limit = data.is_limit[row, used] & (in_y | in_x)
    side = np.asarray(data.side)[row, used]
    sigma = np.sqrt(np.diagonal(errors, axis1=1, axis2=2))
    style: Any = {"fmt": "o", "color": BLACK, "ms": 2.4, "elinewidth": 0.6, "mew": 0.0, "alpha": 0.8}
    axis.errorbar(*values[~is_limit].T, sigma[~is_limit, 1], sigma[~is_limit, 0], **style)
    for i in np.flatnonzero(is_limit):
        x, y = values[i]
        marker = {(True, 1.0): "v", (True, -1.0): "^", (False, 1.0): "<", (False, -1.0): ">"}[
            bool(in_y[i]), float(side[i])
        ]
        axis.plot(x, y, marker=marker, color=GREY, ms=4.0, mew=0.0, alpha=0.8)


def shrinkage_of_lines(fit: Fit, alone: Fit | None = None, predictor: str | None = None) -> Figure:
    """Plot slope and intercept of every group without pooling and with partial pooling, and their population.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Relation` with partial pooling, with its program and data.
    alone : Fit, optional
        Fit to the same data with the same pivot and ``pooling="none"``, for the open circles.
    predictor : str, optional
        Predictor whose slope is shown; the first by default.

    Returns
    -------
    matplotlib.figure.Figure
        Open circles: posterior means of ``alone``. Without it, and with a single predictor, they are least-squares
        lines of single groups with the slope corrected for the errors of x, for groups with three points or more in
        which x varies by more than its errors. Dots: posterior means with partial pooling. Ellipses: 68 and 95 % of the
        population of lines at the posterior means of its parameters, for groups at the mean of the group-level
        predictors.

    Raises
    ------
    ValueError
        If a fit is of another model, pooling, data or pivot, or for an unknown predictor.
    """
    model, data = model_and_data(fit, Relation, PointsInGroups, "shrinkage_of_lines")
    pooling = model.pooling_of(len(data))
    if pooling != "partial":
        raise ValueError(f"shrinkage_of_lines: expected a fit with partial pooling; found {pooling!r}.")
    index = _predictor_index(data, predictor, "shrinkage_of_lines")
    slopes, intercepts = _lines(fit, model, data)
    alpha, beta = slopes[..., index].mean(axis=0), intercepts.mean(axis=0)
    unpooled = _unpooled_lines(alone, model, data, index)
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        for j in range(len(data)):
            colour, unpooled_line = SERIES[j % len(SERIES)], unpooled[j]
            if unpooled_line is not None:
                axis.plot(*unpooled_line, "o", mfc="none", mec=GREY, ms=4.0, mew=0.8, zorder=1)
                axis.plot(
                    [unpooled_line[0], alpha[j]], [unpooled_line[1], beta[j]], color=GREY, lw=0.5, alpha=0.7, zorder=1
                )
            axis.plot(alpha[j], beta[j], "o", color=colour, ms=4.0, mew=0.0, zorder=3)
        names = ("alpha_mean", "alpha_std", "beta_mean", "beta_std")
        values = {name: _mean(fit, name, index) for name in names}
        r = float(parameter(fit, "correlation").mean()) if model.correlated else 0.0
        cross = r * values["alpha_std"] * values["beta_std"]
        cov = np.array([[values["alpha_std"] ** 2, cross], [cross, values["beta_std"] ** 2]])
        # Variances along the axes of the ellipse and their directions, the larger one last.
        variances, directions = np.linalg.eigh(cov)
        angle = float(np.degrees(np.arctan2(directions[1, 1], directions[0, 1])))
        for fraction, colour in ((0.95, BAND_95), (0.68, BAND_68)):
            radius = np.sqrt(-2.0 * np.log(1.0 - fraction))  # of a bivariate normal, in standard deviations
            width, height = 2.0 * radius * np.sqrt(np.maximum(variances[::-1], 0.0))
            center = (values["alpha_mean"], values["beta_mean"])
            axis.add_patch(Ellipse(center, width, height, angle=angle, color=colour, alpha=0.5, lw=0, zorder=0))
        axis.autoscale_view()
        suffix = f" of {data.predictors[index]}" if len(data.predictors) > 1 else ""
        axis.set(xlabel=rf"slope $\alpha_j${suffix}", ylabel=r"intercept $\beta_j$")
    return figure


def _predictor_index(data: PointsInGroups, predictor: str | None, figure_name: str) -> int:
    """Return the index of a predictor, or raise an error that names the figure ``figure_name``."""
    if predictor is None:
        return 0
    if predictor not in data.predictors:
        raise ValueError(
            f"{figure_name}: expected a predictor, one of {', '.join(data.predictors)}; found {predictor!r}."
        )
    return data.predictors.index(predictor)


def _pivot(model: Relation, data: PointsInGroups) -> np.ndarray:
    """Return the pivot of each predictor, (P,)."""
    num = len(data.predictors)
    return np.asarray(data.center)[:num] if model.pivot is None else np.full(num, float(model.pivot))


def _lines(fit: Fit, model: Relation, data: PointsInGroups) -> tuple[np.ndarray, np.ndarray]:
    """Return draws of the slopes (draw, J, P) and the intercept (draw, J) of each group."""
    shape = (len(data), len(data.predictors))
    if model.pooling_of(len(data)) == "complete":
        alpha, beta = (parameter(fit, name) for name in ("alpha", "beta"))
        keep = evenly_spaced(max(len(alpha), len(beta)), NUM_DRAWS)
        alpha, beta = (v[keep if len(v) > 1 else np.zeros(len(keep), int)] for v in (alpha, beta))
        alpha = np.broadcast_to(alpha.reshape(len(keep), 1, -1), (len(keep), *shape))
        return alpha, np.broadcast_to(beta.reshape(len(keep), 1), (len(keep), len(data)))
    drawn = true_values(fit, num_draws=NUM_DRAWS)
    alpha, beta = drawn["alpha"].to_numpy(), drawn["beta"].to_numpy()
    return alpha.reshape(len(alpha), *shape), beta


def _curvature(fit: Fit) -> np.ndarray:
    """Return draws of the curvature of a parabola, (draw, 1)."""
    drawn = parameter(fit, "curvature")
    return drawn[evenly_spaced(len(drawn), NUM_DRAWS) if len(drawn) > 1 else [0]].reshape(-1, 1)


def _broken_lines(fit: Fit, x: np.ndarray) -> np.ndarray:
    """Return draws of a line with a break at x, (draw, len(x))."""
    drawn = [parameter(fit, name) for name in ("alpha", "alpha_above", "x_break", "beta")]
    keep = evenly_spaced(max(map(len, drawn)), NUM_DRAWS)
    slope_below, slope_above, x_break, beta = (
        v[keep if len(v) > 1 else np.zeros(len(keep), int)].reshape(-1, 1) for v in drawn
    )
    return beta + np.where(x < x_break, slope_below, slope_above) * (x - x_break)


def _mean(fit: Fit, name: str, index: int) -> float:
    """Return the posterior mean of a parameter, or of its element for the predictor."""
    mean = np.atleast_1d(parameter(fit, name).mean(axis=0))
    return float(mean[index if len(mean) > 1 else 0])


def _evolution(fit: Fit, model: Relation, data: PointsInGroups, slopes: np.ndarray) -> np.ndarray:
    """Return the change of y with redshift at the posterior medians, (J, 1) or (J, M).

    With e the logarithm of the factor of redshift, the line is
    y - k_y e = (alpha + k_alpha e) (x + k_x e - pivot) + beta, and the change is its difference from that with e = 0.
    """
    change = log_evolution(model, data)
    if change is None:
        return np.zeros((len(data), 1))
    k_y, k_x, k_alpha = (
        float(np.median(parameter(fit, name))) if name in fit.posterior else float(model.all_priors[name])
        for name in ("evolution_y", "evolution_x", "evolution_alpha")
    )
    slope_change = k_alpha * change  # with more than one predictor it is 0
    x = np.asarray(data.values)[..., 0] - _pivot(model, data)[0]
    return (k_y + k_x * (np.median(slopes, axis=0)[:, :1] + slope_change)) * change + slope_change * x


def _partial_residuals(
    model: Relation, data: PointsInGroups, slopes: np.ndarray, index: int, evolution: np.ndarray
) -> np.ndarray:
    """Return one predictor and y minus the contributions of the other predictors and of redshift, (J, M, 2)."""
    values = np.asarray(data.values)
    contributions = (values[..., :-1] - _pivot(model, data)) * np.median(slopes, axis=0)[:, None, :]
    other_contributions = contributions.sum(-1) - contributions[..., index]
    return np.stack([values[..., index], values[..., -1] - other_contributions - evolution], axis=-1)


def _unpooled_lines(alone: Fit | None, model: Relation, data: PointsInGroups, index: int) -> list:
    """Return slope and intercept of each group without pooling; None where the group does not determine them."""
    if alone is None:
        if len(data.predictors) > 1:
            return [None] * len(data)
        return [_least_squares_line(data, j, float(_pivot(model, data)[0])) for j in range(len(data))]
    other, points = model_and_data(alone, Relation, PointsInGroups, "shrinkage_of_lines")
    same_groups = points.name == data.name and points.predictors == data.predictors
    if other.pooling != "none" or not same_groups or not np.allclose(_pivot(other, points), _pivot(model, data)):
        raise ValueError(
            "shrinkage_of_lines: alone: expected a fit of the same groups, predictors and pivot with pooling='none'; "
            f"found pooling={other.pooling!r}, {len(points)} groups, pivot {_pivot(other, points)}."
        )
    slopes, intercepts = _lines(alone, other, points)
    return list(zip(slopes[..., index].mean(axis=0), intercepts.mean(axis=0), strict=True))


def _group_indices(data: PointsInGroups, names) -> list[int]:
    """Return the indices of the named groups, or of the groups with the most points."""
    if names is None:
        sizes = np.asarray(data.used).sum(axis=1)
        return sorted(int(j) for j in np.argsort(-sizes, kind="stable")[:MAX_PANELS])
    for name in names:
        if name not in data.name:
            raise ValueError(f"lines: expected names of groups among {', '.join(data.name[:20])}; found {name!r}.")
    return [data.name.index(name) for name in names]


def _least_squares_line(data: PointsInGroups, j: int, pivot: float) -> tuple[float, float] | None:
    """Return slope and intercept by least squares corrected for the errors of x; None if they are undetermined."""
    used = np.asarray(data.used)[j] & ~data.is_limit[j]
    if used.sum() < MIN_POINTS:
        return None
    x, y = np.asarray(data.values)[j, used].T
    errors = np.asarray(data.errors)[j, used]
    # The second term limits the weight of points with small errors; the third is for groups of equal y without errors.
    weights = 1.0 / (errors[:, 1, 1] + 0.01 * y.var() + 1e-12)
    weights /= weights.sum()
    mean_x, mean_y = weights @ x, weights @ y
    # Unbiased variance and covariance with weights w of sum 1: divided by 1 - sum w^2.
    variance = weights @ (x - mean_x) ** 2 / (1.0 - weights @ weights)
    true_variance = variance - weights @ errors[:, 0, 0]
    if true_variance <= MIN_TRUE_VARIANCE * variance:
        return None
    covariance = weights @ ((x - mean_x) * (y - mean_y)) / (1.0 - weights @ weights)
    slope = (covariance - weights @ errors[:, 0, 1]) / true_variance
    return float(slope), float(mean_y + slope * (pivot - mean_x))


FIGURES: dict[str, tuple[str, Callable[..., Figure]]] = {
    "lines": (
        "Points with their errors, and the line of each group: posterior median with 68 and 95 % intervals.",
        lines,
    ),
    "shrinkage_of_lines": (
        "Slope and intercept of each group without pooling (open circles) and with partial pooling (dots). Ellipses: "
        "68 and 95 % of the population.",
        shrinkage_of_lines,
    ),
}


def figures(fit: Fit):
    """Return the figures of a fit of a relation, one of each kind per predictor."""
    model: Any = model_of(fit)
    data = cast(PointsInGroups, fit.data)
    predictors = data.predictors
    kinds = FIGURES if model.pooling_of(len(data)) == "partial" else {"lines": FIGURES["lines"]}
    if drawable(model, data):
        text = (
            "Measured points, and points simulated at the posterior means: detected ones, and those that are missing."
        )
        kinds = kinds | {"selected_points": (text, selected_points)}
    if len(predictors) == 1:
        return kinds
    return {
        f"{name}_{key}": (f"{text} Predictor: {key}.", functools.partial(draw, predictor=key))
        for name, (text, draw) in kinds.items()
        for key in predictors
    }
