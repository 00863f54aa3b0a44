"""Figures of linear relations: points with errors and lines of groups, and what pooling does to the lines."""

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from matplotlib.patches import Ellipse

from hbm_jax.data import PointsInGroups
from hbm_jax.inference import Fit, latents
from hbm_jax.inference.results import model_of
from hbm_jax.models import Relation
from hbm_jax.plotting.draws import parameter, program_of, spread
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, BLUE, GREY, SERIES, Figure, house_style

NUM_DRAWS = 400
MAX_PANELS = 12
COLUMNS = 4
FEW = 3  # points below which a group has no line of its own
LEAST = 0.3  # share of the variance of x that its errors have to leave, for a group to have a line of its own


def lines(fit: Fit, names: list[str] | None = None, predictor: str | None = None) -> Figure:
    """Points with their errors and the posterior of the line, a panel for each group.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Relation`, with its program and data.
    names : list of str, optional
        Groups to show; by default the twelve with the most points, in the order of the data.
    predictor : str, optional
        Of several, the one to draw against; the first by default. What the others add to y, by their measured values
        and the posterior median of the slopes, is then taken off the points.

    Returns
    -------
    matplotlib.figure.Figure
        Measured values, one standard deviation; arrows are limits. Lines: the posterior median, and the bands that hold
        68 and 95 % of the line (not of points about it).

    Raises
    ------
    ValueError
        If the fit is not one of `Relation`, or for an unknown group or predictor.

    Examples
    --------
    >>> lines(fit).savefig("lines.pdf")  # doctest: +SKIP
    """
    model, data = _of(fit, "lines")
    place = _place(data, predictor, "lines")
    slopes, beta = _lines(fit, model, data)
    alpha = slopes[..., place]
    values = _reduced(model, data, slopes, place)
    rows = _rows(data, names)
    columns = min(COLUMNS, len(rows))
    height = -(-len(rows) // columns)
    size = (5.0, 3.8) if len(rows) == 1 else (2.1 * columns + 0.6, 1.9 * height + 0.6)
    pivot = _pivot(model, data)[place]
    every = values[np.asarray(data.used)]
    pad = 0.08 * np.ptp(every, axis=0)
    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = np.atleast_1d(figure.subplots(height, columns, sharex=True, sharey=True)).ravel()
        at = np.linspace(every[:, 0].min() - pad[0], every[:, 0].max() + pad[0], 60)
        for axis, row in zip(axes, rows, strict=False):
            drawn = alpha[:, row, None] * (at - pivot) + beta[:, row, None]
            low, lower, middle, upper, high = np.quantile(drawn, (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
            axis.fill_between(at, low, high, color=BAND_95, alpha=0.6, lw=0)
            axis.fill_between(at, lower, upper, color=BAND_68, alpha=0.7, lw=0)
            axis.plot(at, middle, color=BLUE, lw=1.0)
            _draw_points(axis, data, row, values[row], place)
            if len(data) > 1:
                axis.set_title(data.name[row].replace("$", r"\$"), fontsize=8.0, pad=2.5)
        for axis in axes[len(rows) :]:
            axis.set_visible(False)
        axes[0].set_xlim(at[0], at[-1])
        axes[0].set_ylim(every[:, 1].min() - pad[1], every[:, 1].max() + pad[1])
        figure.supxlabel(data.predictors[place])
        figure.supylabel("y" if len(data.predictors) == 1 else "y less what the other predictors add")
    return figure


def _draw_points(axis, data: PointsInGroups, row: int, values: np.ndarray, place: int) -> None:
    used = np.asarray(data.used)[row]
    values = values[used]
    both = np.array([place, -1])
    errors = np.asarray(data.errors)[row, used][:, both[:, None], both]
    order = np.asarray(data.order)[row, used]
    in_y, in_x = order[:, -1, -1] > 0, order[:, -1, place] > 0
    beyond = data.is_limit[row, used] & (in_y | in_x)
    side = np.asarray(data.side)[row, used]
    sigma = np.sqrt(np.diagonal(errors, axis1=1, axis2=2))
    style: Any = {"fmt": "o", "color": BLACK, "ms": 2.4, "elinewidth": 0.6, "mew": 0.0, "alpha": 0.8}
    axis.errorbar(*values[~beyond].T, sigma[~beyond, 1], sigma[~beyond, 0], **style)
    for i in np.flatnonzero(beyond):
        x, y = values[i]
        marker = {(True, 1.0): "v", (True, -1.0): "^", (False, 1.0): "<", (False, -1.0): ">"}[
            bool(in_y[i]), float(side[i])
        ]
        axis.plot(x, y, marker=marker, color=GREY, ms=4.0, mew=0.0, alpha=0.8)


def shrinkage_of_lines(fit: Fit, alone: Fit | None = None, predictor: str | None = None) -> Figure:
    """Slope and intercept of every group, from no pooling to partial pooling, and their population.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Relation` with partial pooling, with its program and data.
    alone : Fit, optional
        Of the same data and pivot with ``pooling="none"``, to start from.
    predictor : str, optional
        Whose slope to show; the first by default.

    Returns
    -------
    matplotlib.figure.Figure
        Open circles: posterior means of ``alone``; without it, and with one predictor, least squares of the group by
        itself, the slope corrected for the errors of x, where it has three points or more and x varies by more than
        its errors. Dots: posterior means with partial pooling. Ellipses: 68 and 95 % of the population of lines at the
        posterior means of its parameters, for groups at the mean of what predicts them.

    Raises
    ------
    ValueError
        If the fits are not such ones, or for an unknown predictor.
    """
    model, data = _of(fit, "shrinkage_of_lines")
    if model.pooling != "partial":
        raise ValueError(f"shrinkage_of_lines: expected a fit with partial pooling; found {model.pooling!r}.")
    place = _place(data, predictor, "shrinkage_of_lines")
    slopes, intercepts = _lines(fit, model, data)
    alpha, beta = slopes[..., place].mean(axis=0), intercepts.mean(axis=0)
    starts = _starts(alone, model, data, place)
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        for j in range(len(data)):
            colour, start = SERIES[j % len(SERIES)], starts[j]
            if start is not None:
                axis.plot(*start, "o", mfc="none", mec=GREY, ms=4.0, mew=0.8, zorder=1)
                axis.plot([start[0], alpha[j]], [start[1], beta[j]], color=GREY, lw=0.5, alpha=0.7, zorder=1)
            axis.plot(alpha[j], beta[j], "o", color=colour, ms=4.0, mew=0.0, zorder=3)
        names = ("alpha_mean", "alpha_std", "beta_mean", "beta_std")
        values = {name: _mean(fit, name, place) for name in names}
        r = float(parameter(fit, "correlation").mean()) if model.correlated else 0.0
        cross = r * values["alpha_std"] * values["beta_std"]
        cov = np.array([[values["alpha_std"] ** 2, cross], [cross, values["beta_std"] ** 2]])
        sizes, axes = np.linalg.eigh(cov)
        angle = float(np.degrees(np.arctan2(axes[1, 1], axes[0, 1])))
        for share, colour in ((0.95, BAND_95), (0.68, BAND_68)):
            reach = np.sqrt(-2.0 * np.log(1.0 - share))
            width, height = 2.0 * reach * np.sqrt(np.maximum(sizes[::-1], 0.0))
            center = (values["alpha_mean"], values["beta_mean"])
            axis.add_patch(Ellipse(center, width, height, angle=angle, color=colour, alpha=0.5, lw=0, zorder=0))
        axis.autoscale_view()
        of = f" of {data.predictors[place]}" if len(data.predictors) > 1 else ""
        axis.set(xlabel=rf"slope $\alpha_j${of}", ylabel=r"intercept $\beta_j$")
    return figure


def _of(fit: Fit, what: str) -> tuple[Relation, PointsInGroups]:
    return program_of(fit, Relation, PointsInGroups, what), cast(PointsInGroups, fit.data)


def _place(data: PointsInGroups, predictor: str | None, what: str) -> int:
    if predictor is None:
        return 0
    if predictor not in data.predictors:
        raise ValueError(f"{what}: expected a predictor, one of {', '.join(data.predictors)}; found {predictor!r}.")
    return data.predictors.index(predictor)


def _pivot(model: Relation, data: PointsInGroups) -> np.ndarray:
    num = len(data.predictors)
    return np.asarray(data.center)[:num] if model.pivot is None else np.full(num, float(model.pivot))


def _lines(fit: Fit, model: Relation, data: PointsInGroups) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the slopes (draw, J, P) and the intercept (draw, J) of each group."""
    shape = (len(data), len(data.predictors))
    if model.pooling == "complete":
        alpha, beta = (_flat(fit, name) for name in ("alpha", "beta"))
        keep = spread(max(len(alpha), len(beta)), NUM_DRAWS)
        alpha, beta = (v[keep if len(v) > 1 else np.zeros(len(keep), int)] for v in (alpha, beta))
        alpha = np.broadcast_to(alpha.reshape(len(keep), 1, -1), (len(keep), *shape))
        return alpha, np.broadcast_to(beta.reshape(len(keep), 1), (len(keep), len(data)))
    drawn = latents(fit, num_draws=NUM_DRAWS)
    alpha, beta = drawn["alpha"].to_numpy(), drawn["beta"].to_numpy()
    return alpha.reshape(len(alpha), *shape), beta


def _flat(fit: Fit, name: str) -> np.ndarray:
    """Draws of a parameter, (draw, ...); a single one where it was held fixed."""
    if name not in fit.posterior:
        return parameter(fit, name)
    values = fit.posterior[name].transpose("chain", "draw", ...).to_numpy()
    return values.reshape(-1, *values.shape[2:])


def _mean(fit: Fit, name: str, place: int) -> float:
    """Posterior mean of a parameter; of one with an element a predictor, that element's."""
    mean = np.atleast_1d(_flat(fit, name).mean(axis=0))
    return float(mean[place if len(mean) > 1 else 0])


def _reduced(model: Relation, data: PointsInGroups, slopes: np.ndarray, place: int) -> np.ndarray:
    """Measured values of one predictor and of y less what the others add, (J, M, 2)."""
    values = np.asarray(data.values)
    away = (values[..., :-1] - _pivot(model, data)) * np.median(slopes, axis=0)[:, None, :]
    others = away.sum(-1) - away[..., place]
    return np.stack([values[..., place], values[..., -1] - others], axis=-1)


def _starts(alone: Fit | None, model: Relation, data: PointsInGroups, place: int) -> list:
    """Slope and intercept of each group by itself; None where it has none."""
    if alone is None:
        if len(data.predictors) > 1:
            return [None] * len(data)
        return [_alone(data, j, float(_pivot(model, data)[0])) for j in range(len(data))]
    other, points = _of(alone, "shrinkage_of_lines")
    same = points.name == data.name and points.predictors == data.predictors
    if other.pooling != "none" or not same or not np.allclose(_pivot(other, points), _pivot(model, data)):
        raise ValueError(
            "shrinkage_of_lines: alone: expected a fit of the same groups, predictors and pivot with pooling='none'; "
            f"found pooling={other.pooling!r}, {len(points)} groups, pivot {_pivot(other, points)}."
        )
    slopes, intercepts = _lines(alone, other, points)
    return list(zip(slopes[..., place].mean(axis=0), intercepts.mean(axis=0), strict=True))


def _rows(data: PointsInGroups, names) -> list[int]:
    if names is None:
        sizes = np.asarray(data.used).sum(axis=1)
        return sorted(int(j) for j in np.argsort(-sizes, kind="stable")[:MAX_PANELS])
    for name in names:
        if name not in data.name:
            raise ValueError(f"lines: expected names of groups, some of {', '.join(data.name[:20])}; found {name!r}.")
    return [data.name.index(name) for name in names]


def _alone(data: PointsInGroups, j: int, pivot: float) -> tuple[float, float] | None:
    """Least squares, with the variance of x less that of its errors; None where errors leave next to nothing of it."""
    used = np.asarray(data.used)[j] & ~data.is_limit[j]
    if used.sum() < FEW:
        return None
    x, y = np.asarray(data.values)[j, used].T
    errors = np.asarray(data.errors)[j, used]
    weights = 1.0 / (errors[:, 1, 1] + 0.01 * y.var() + 1e-12)
    weights /= weights.sum()
    mean_x, mean_y = weights @ x, weights @ y
    square = weights @ (x - mean_x) ** 2 / (1.0 - weights @ weights)
    true = square - weights @ errors[:, 0, 0]
    if true <= LEAST * square:
        return None
    both = weights @ ((x - mean_x) * (y - mean_y)) / (1.0 - weights @ weights)
    slope = (both - weights @ errors[:, 0, 1]) / true
    return float(slope), float(mean_y + slope * (pivot - mean_x))


FIGURES: dict[str, tuple[str, Callable[..., Figure]]] = {
    "lines": (
        "Points with their errors, and the line of each group: median, and bands that hold 68 and 95 % of the line.",
        lines,
    ),
    "shrinkage_of_lines": (
        "Slope and intercept of each group: alone (open circles) and with partial pooling (dots); ellipses hold 68 and "
        "95 % of the population.",
        shrinkage_of_lines,
    ),
}


def figures(fit: Fit):
    """Figures of a fit of a relation: those that its pooling has, of each predictor where there are several."""
    model: Any = model_of(fit)
    predictors = cast(PointsInGroups, fit.data).predictors
    kinds = FIGURES if model.pooling == "partial" else {"lines": FIGURES["lines"]}
    if len(predictors) == 1:
        return kinds
    return {
        f"{name}_{key}": (f"{text} Predictor: {key}.", functools.partial(draw, predictor=key))
        for name, (text, draw) in kinds.items()
        for key in predictors
    }
