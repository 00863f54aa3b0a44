"""Figure of a selection: measured points, and a simulated population with its detected and missing points."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import ndtr

from hbm_jax.data import PointsInGroups
from hbm_jax.inference import Fit
from hbm_jax.models import Relation
from hbm_jax.models.selection import Selection
from hbm_jax.plotting.draws import model_and_data, parameter
from hbm_jax.plotting.style import (
    BLACK,
    MAX_DOTS,
    MIN_SIMULATED,
    Figure,
    draw_distribution,
    draw_simulated,
    house_style,
)

SEED = 0


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
        and missed ones in grey. Dashed lines are the limits, or their median if they differ between points. Then, for
        each selected quantity, the distributions of the measured values, of the detected simulated values and of all
        simulated values, scaled to the number of measured points.

    Raises
    ------
    ValueError
        If the fit is of another model or without limits, has several predictors or populations of x, predictors of
        groups, or lines without pooling.

    Examples
    --------
    >>> selected_points(fit).savefig("selection.pdf")  # doctest: +SKIP
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
    points, probability = _population(unselected, model.selections, data, means)
    detected = np.random.default_rng(SEED).random(len(points)) < probability
    measured = np.asarray(data.values)[np.asarray(data.used)]
    with house_style():
        num = len(model.selections)
        figure = Figure(figsize=(4.6 + 2.7 * num, 3.6), layout="constrained")
        axes = figure.subplots(1, 1 + num, width_ratios=[1.5] + [1.0] * num)
        shown = slice(MAX_DOTS)
        draw_simulated(axes[0], points[shown, 0], points[shown, 1], detected[shown])
        axes[0].plot(*measured.T, "o", color=BLACK, ms=2.2, mew=0.0, label="measured")
        axes[0].set(xlabel=data.predictors[0], ylabel="y")
        axes[0].legend(loc="best", markerscale=2.0)
        for axis, selection in zip(axes[1:], model.selections, strict=True):
            column = (*data.predictors, "y").index(selection.quantity)
            limit = float(np.median(_limits(selection, data, means)))
            (axes[0].axvline if column == 0 else axes[0].axhline)(limit, color=BLACK, lw=0.8, ls="--")
            draw_distribution(axis, measured[:, column], points[:, column], detected, limit)
            axis.set(xlabel=data.predictors[0] if column == 0 else "y", ylabel="points")
        axes[1].set_ylim(top=1.25 * axes[1].get_ylim()[1])  # room for the legend
        axes[1].legend(loc="upper right")
    return figure


def drawable(model: Relation, data: PointsInGroups) -> bool:
    """Return True if `selected_points` can draw a fit of this model and these data."""
    is_simple = model.num_components == 1 and model.pooling != "none"
    has_limits = bool(model.selections) and all(isinstance(part, Selection) for part in model.selections)
    return has_limits and is_simple and len(data.predictors) == 1 and not data.group_predictor_names


def _population(
    unselected: Relation, selections: Sequence[Selection], data: PointsInGroups, means: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return measured points simulated without selection, (N, 2), and the probability that each is detected."""
    repeats = -(-MIN_SIMULATED // data.num_points)
    design = data.subset(np.tile(np.arange(len(data)), repeats))
    parameters = {name: means[name] for name in unselected.all_priors}
    drawn, _ = unselected.simulate(jax.random.key(SEED), design, parameters)
    used = np.asarray(design.used)
    points, probability = np.asarray(drawn.values)[used], np.ones(int(used.sum()))
    for selection in selections:
        value = points[:, (*data.predictors, "y").index(selection.quantity)]
        sign = -1.0 if selection.missing == "below" else 1.0
        margin = sign * (_limits(selection, design, means)[used] - value)
        probability = probability * (margin >= 0.0 if selection.is_step else ndtr(margin / means[selection.names[1]]))
    order = np.random.default_rng(SEED).permutation(len(points))
    return points[order], probability[order]


def _limits(selection: Selection, data: PointsInGroups, means: dict[str, Any]) -> np.ndarray:
    """Return the limit of each point, (J, M)."""
    if selection.of_objects:
        return np.asarray(data.cut)[..., (*data.predictors, "y").index(selection.quantity)]
    limits = np.resize(np.atleast_1d(means[selection.names[0]]), len(data))  # one for all, or those of repeated groups
    return np.broadcast_to(limits[:, None], np.shape(data.used))
