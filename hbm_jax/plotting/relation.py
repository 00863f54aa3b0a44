"""Figures of linear relations: points with errors and lines of groups, and what pooling does to the lines."""

from typing import Any, cast

import numpy as np
from matplotlib.patches import Ellipse

from hbm_jax.data import PointsInGroups
from hbm_jax.inference import Fit, latents
from hbm_jax.models import Relation
from hbm_jax.plotting.draws import parameter, program_of, spread
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, BLUE, GREY, SERIES, Figure, house_style
from hbm_jax.registry import model_of

NUM_DRAWS = 400
MAX_PANELS = 12
COLUMNS = 4
FEW = 3  # points below which a group has no line of its own


def lines(fit: Fit, names: list[str] | None = None) -> Figure:
    """Points with their errors and the posterior of the line, a panel for each group.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Relation` with one predictor, with its program and data.
    names : list of str, optional
        Groups to show; by default the twelve with the most points, in the order of the data.

    Returns
    -------
    matplotlib.figure.Figure
        Measured values, one standard deviation; arrows are limits. Lines: the posterior median, and the bands that hold
        68 and 95 % of the line (not of points about it).

    Raises
    ------
    ValueError
        If the fit is not one of `Relation` with one predictor, or for an unknown group.

    Examples
    --------
    >>> lines(fit).savefig("lines.pdf")  # doctest: +SKIP
    """
    model, data = _of(fit, "lines")
    alpha, beta = _lines(fit, model, data)
    rows = _rows(data, names)
    columns = min(COLUMNS, len(rows))
    height = -(-len(rows) // columns)
    size = (5.0, 3.8) if len(rows) == 1 else (2.1 * columns + 0.6, 1.9 * height + 0.6)
    pivot = _pivot(model, data)
    every = np.asarray(data.values)[np.asarray(data.used)]
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
            _draw_points(axis, data, row)
            if len(data) > 1:
                axis.set_title(data.name[row].replace("$", r"\$"), fontsize=8.0, pad=2.5)
        for axis in axes[len(rows) :]:
            axis.set_visible(False)
        axes[0].set_xlim(at[0], at[-1])
        axes[0].set_ylim(every[:, 1].min() - pad[1], every[:, 1].max() + pad[1])
        figure.supxlabel(data.predictors[0])
        figure.supylabel("y")
    return figure


def _draw_points(axis, data: PointsInGroups, row: int) -> None:
    used = np.asarray(data.used)[row]
    values, errors = np.asarray(data.values)[row, used], np.asarray(data.errors)[row, used]
    beyond = data.is_limit[row, used]
    in_y = np.asarray(data.order)[row, used][:, -1, -1] > 0
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


def shrinkage_of_lines(fit: Fit) -> Figure:
    """Slope and intercept of every group, from no pooling to partial pooling, and their population.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Relation` with partial pooling and one predictor, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Open circles: weighted least squares of the group alone (groups of three points or more). Dots: posterior means.
        Ellipses: 68 and 95 % of the population of lines at the posterior means of its parameters.

    Raises
    ------
    ValueError
        If the fit is not such a one.
    """
    model, data = _of(fit, "shrinkage_of_lines")
    if model.pooling != "partial":
        raise ValueError(f"shrinkage_of_lines: expected a fit with partial pooling; found {model.pooling!r}.")
    alpha, beta = (draws.mean(axis=0) for draws in _lines(fit, model, data))
    pivot = _pivot(model, data)
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        for j in range(len(data)):
            alone = _alone(data, j, pivot)
            colour = SERIES[j % len(SERIES)]
            if alone is not None:
                axis.plot(*alone, "o", mfc="none", mec=GREY, ms=4.0, mew=0.8, zorder=1)
                axis.plot([alone[0], alpha[j]], [alone[1], beta[j]], color=GREY, lw=0.5, alpha=0.7, zorder=1)
            axis.plot(alpha[j], beta[j], "o", color=colour, ms=4.0, mew=0.0, zorder=3)
        values = {
            name: float(parameter(fit, name).mean()) for name in ("alpha_mean", "alpha_std", "beta_mean", "beta_std")
        }
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
        axis.set(xlabel=r"slope $\alpha_j$", ylabel=r"intercept $\beta_j$")
    return figure


def _of(fit: Fit, what: str) -> tuple[Relation, PointsInGroups]:
    model = program_of(fit, Relation, PointsInGroups, what)
    data: Any = fit.data
    if len(data.predictors) != 1:
        raise ValueError(f"{what}: expected one predictor; found {len(data.predictors)}.")
    return model, data


def _pivot(model: Relation, data: PointsInGroups) -> float:
    return float(np.asarray(data.center)[0]) if model.pivot is None else float(model.pivot)


def _lines(fit: Fit, model: Relation, data: PointsInGroups) -> tuple[np.ndarray, np.ndarray]:
    """Draws of slope and intercept of each group, (draw, J) each."""
    if model.pooling == "complete":
        found = [parameter(fit, name) for name in ("alpha", "beta")]
        keep = spread(max(map(len, found)), NUM_DRAWS)
        columns = [np.broadcast_to(v, (max(map(len, found)),))[keep] for v in found]
        return tuple(np.repeat(v[:, None], len(data), axis=1) for v in columns)  # type: ignore[return-value]
    drawn = latents(fit, num_draws=NUM_DRAWS)
    return drawn["alpha"].to_numpy(), drawn["beta"].to_numpy()


def _rows(data: PointsInGroups, names) -> list[int]:
    if names is None:
        sizes = np.asarray(data.used).sum(axis=1)
        return sorted(int(j) for j in np.argsort(-sizes, kind="stable")[:MAX_PANELS])
    for name in names:
        if name not in data.name:
            raise ValueError(f"lines: expected names of groups, some of {', '.join(data.name[:20])}; found {name!r}.")
    return [data.name.index(name) for name in names]


def _alone(data: PointsInGroups, j: int, pivot: float) -> tuple[float, float] | None:
    used = np.asarray(data.used)[j] & ~data.is_limit[j]
    if used.sum() < FEW:
        return None
    x, y = np.asarray(data.values)[j, used].T
    weights = 1.0 / np.sqrt(np.asarray(data.errors)[j, used, 1, 1] + 1e-12 + 0.01 * y.var())
    slope, intercept = np.polyfit(x - pivot, y, 1, w=weights)
    return float(slope), float(intercept)


FIGURES = {
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
    """Figures of a fit of a relation: those that its pooling and its predictors have."""
    model: Any = model_of(fit)
    if len(cast(PointsInGroups, fit.data).predictors) > 1:
        return {}
    return FIGURES if model.pooling == "partial" else {"lines": FIGURES["lines"]}
