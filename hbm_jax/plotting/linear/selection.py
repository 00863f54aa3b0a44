"""Figure of a selection: measured points, and a simulated population with its detected and missing points."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from hbm_jax.data import PointsInGroups
from hbm_jax.inference import Fit
from hbm_jax.models import Relation
from hbm_jax.models.efficiency import DetectionFunction, Efficiency
from hbm_jax.models.selection import Selection
from hbm_jax.plotting.draws import model_and_data, parameter
from hbm_jax.plotting.labels import object_name
from hbm_jax.plotting.style import (
    BLACK,
    MAX_DOTS,
    MIN_SIMULATED,
    Figure,
    draw_distribution,
    draw_efficiency,
    draw_simulated,
    house_style,
)

SEED = 0
NUM_CONTOUR = 101  # grid of the contours of a detection function


class _Simulated(NamedTuple):
    """Simulated population in the plane of x and y.

    Attributes
    ----------
    points : (N, 2)
        Points, in random order.
    detected : (N,)
        True for those that are detected. The others are missed, but all of the population for injections.
    fraction : float
        Detected fraction of the population.
    """

    points: np.ndarray
    detected: np.ndarray
    fraction: float


def selected_points(fit: Fit) -> Figure:
    """Plot measured points over a simulated population, whose points are detected or missed by the selection.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Relation` with a selection, one predictor and one normal population of x, with its
        program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: measured points in black; points simulated at the posterior means of the parameters, detected ones in blue
        and missed ones in grey; the title has the detected fraction of the population. Dashed lines are limits, their
        median if they differ between points, or detection probabilities of 0.1, 0.5 and 0.9 for a function of x and y.
        Then, for each selected quantity, the distributions of the measured values, of the detected simulated values and
        of all simulated values, scaled to the number of measured points; an efficiency is dashed, from 0 to 1 on
        the right axis. For injections the simulated values are true ones: detected are the found injections, drawn in
        proportion to their weights in the population, and grey is the whole population.

    Raises
    ------
    ValueError
        If the fit is of another model or without a selection, has several predictors or populations of x, predictors of
        groups, lines without pooling, or injections with outliers.
    """
    model, data = model_and_data(fit, Relation, PointsInGroups, "selected_points")
    if not drawable(model, data):
        raise ValueError(
            "selected_points: expected a fit with a selection, one predictor, one normal population of x and pooled "
            f"lines without predictors of groups; found {model.description}."
        )
    names = {name for selection in model.selections for name in selection.priors}
    priors = {name: prior for name, prior in model.priors.items() if name not in names}
    pooling: Any = model.pooling_of(len(data))
    unselected = dataclasses.replace(model, selection="none", pooling=pooling, priors=priors)
    means = {name: parameter(fit, name).mean(axis=0) for name in (*unselected.all_priors, *names)}
    if model.by_injections:
        simulated = _injected(model, data, means)
    else:
        simulated = _population(unselected, model.selections, data, means)
    measured = np.asarray(data.values)[np.asarray(data.used)]
    labels, others = [object_name(name) for name in data.labels], "all" if model.by_injections else "missing"
    columns = _columns(model, data)
    with house_style():
        figure = Figure(figsize=(4.6 + 2.7 * len(columns), 3.6), layout="constrained")
        axes = figure.subplots(1, 1 + len(columns), width_ratios=[1.5] + [1.0] * len(columns))
        shown = slice(MAX_DOTS)
        x, y = simulated.points[shown].T
        draw_simulated(axes[0], x, y, simulated.detected[shown], others)
        axes[0].plot(*measured.T, "o", color=BLACK, ms=2.2, mew=0.0, label="measured")
        prefix = "true " if model.by_injections else ""
        axes[0].set(xlabel=prefix + labels[0], ylabel=prefix + labels[1])
        axes[0].set_title(f"{_percentage(simulated.fraction)} % of the population detected", fontsize=9.0)
        axes[0].legend(loc="best", markerscale=2.0)
        for axis, (column, selection) in zip(axes[1:], columns, strict=True):
            limit = None
            if isinstance(selection, Selection):
                limit = float(np.median(_limits(selection, data, means)))
                (axes[0].axvline if column == 0 else axes[0].axhline)(limit, color=BLACK, lw=0.8, ls="--")
            draw_distribution(axis, measured[:, column], simulated.points[:, column], simulated.detected, limit, others)
            axis.set(xlabel=prefix + labels[column], ylabel="points")
            axis.set_ylim(top=1.25 * axis.get_ylim()[1])  # room for the legend
            if isinstance(selection, Efficiency):
                draw_efficiency(axis, selection.at, selection.probability)
        _draw_functions(axes[0], model)
        axes[1].legend(loc="upper right")
    return figure


def drawable(model: Relation, data: PointsInGroups) -> bool:
    """Return True if `selected_points` can draw a fit of this model and these data."""
    is_simple = model.num_components == 1 and model.pooling != "none"
    if model.by_injections:
        is_simple = is_simple and model.scatter and not (model.outliers or model.student_t)
    selected = bool(model.selections) or model.by_injections
    return selected and is_simple and len(data.predictors) == 1 and not data.group_predictor_names


def _columns(model: Relation, data: PointsInGroups) -> list[tuple[int, Any]]:
    """Return the column and the selection of each distribution that is drawn."""
    columns: list[tuple[int, Any]] = []
    for selection in model.selections:
        if isinstance(selection, DetectionFunction):
            columns += [(0, None), (1, None)]
        else:
            columns.append(((*data.predictors, "y").index(selection.quantity), selection))
    return columns or [(0, None), (1, None)]


def _percentage(fraction: float) -> str:
    """Return a percentage with two digits."""
    return f"{100.0 * fraction:.0f}" if fraction >= 0.1 else f"{100.0 * fraction:.2g}"


def _draw_functions(axis, model: Relation) -> None:
    """Draw the detection probabilities 0.1, 0.5 and 0.9 of functions of x and y."""
    for selection in model.selections:
        if isinstance(selection, DetectionFunction):
            limits = axis.get_xlim(), axis.get_ylim()
            x, y = np.meshgrid(*(np.linspace(low, high, NUM_CONTOUR) for low, high in limits))
            probability = np.broadcast_to(np.asarray(selection.function(x, y)), x.shape)
            levels = [level for level in (0.1, 0.5, 0.9) if probability.min() < level < probability.max()]
            if levels:
                contours = axis.contour(
                    x, y, probability, levels, colors=[BLACK], linewidths=0.7, linestyles="--", zorder=5
                )
                axis.clabel(contours, fontsize=7.0)


def _population(unselected: Relation, selections, data: PointsInGroups, means: dict[str, Any]) -> _Simulated:
    """Return measured points simulated without selection, each detected with its probability."""
    repeats = -(-MIN_SIMULATED // data.num_points)
    design = data.subset(np.tile(np.arange(len(data)), repeats))
    parameters = {name: means[name] for name in unselected.all_priors}
    drawn, _ = unselected.simulate(jax.random.key(SEED), design, parameters)
    used = np.asarray(design.used)
    points, probability = np.asarray(drawn.values)[used], np.ones(int(used.sum()))
    for selection in selections:
        if isinstance(selection, DetectionFunction):
            probability = probability * np.asarray(selection.function(*points.T))
            continue
        value = points[:, (*data.predictors, "y").index(selection.quantity)]
        if isinstance(selection, Efficiency):
            probability = probability * np.interp(value, selection.at, selection.probability)
            continue
        sign = -1.0 if selection.missing == "below" else 1.0
        margin = sign * (_limits(selection, design, means)[used] - value)
        probability = probability * (margin >= 0.0 if selection.is_step else ndtr(margin / means[selection.names[1]]))
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(points))
    points, probability = points[order], probability[order]
    return _Simulated(points, rng.random(len(points)) < probability, float(probability.mean()))


def _injected(model: Relation, data: PointsInGroups, means: dict[str, Any]) -> _Simulated:
    """Return true points of the population, with found injections as detected ones."""
    rng = np.random.default_rng(SEED)
    pivot = float(np.asarray(data.center)[0] if model.pivot is None else model.pivot)

    def line(x):
        return means["beta"] + means["alpha"] * (x - pivot)

    x, y, log_density = np.asarray(data.injections).T
    scatter = float(means["intrinsic_scatter"])
    log_population = norm.logpdf(x, means["x_mean"], means["x_std"]) + norm.logpdf(y, line(x), scatter)
    weights = np.exp(log_population - log_density)
    fraction = float(weights.sum() / np.asarray(data.num_injections))
    num_found = max(round(min(fraction, 1.0) * MIN_SIMULATED), 1)
    chosen = rng.choice(len(x), num_found, p=weights / weights.sum())
    true_x = rng.normal(means["x_mean"], means["x_std"], MIN_SIMULATED)
    everything = np.stack([true_x, line(true_x) + scatter * rng.standard_normal(MIN_SIMULATED)], axis=-1)
    points = np.concatenate([everything, np.stack([x[chosen], y[chosen]], axis=-1)])
    detected = np.arange(len(points)) >= MIN_SIMULATED
    order = rng.permutation(len(points))
    return _Simulated(points[order], detected[order], fraction)


def _limits(selection: Selection, data: PointsInGroups, means: dict[str, Any]) -> np.ndarray:
    """Return the limit of each point, (J, M)."""
    if selection.of_objects:
        return np.asarray(data.cut)[..., (*data.predictors, "y").index(selection.quantity)]
    limits = np.resize(np.atleast_1d(means[selection.names[0]]), len(data))  # one for all, or those of repeated groups
    return np.broadcast_to(limits[:, None], np.shape(data.used))
