"""Selections of a relation and its points: limits of the points, injections, and checks that data fit them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpyro import distributions as dist

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.models.efficiency import DetectionFunction, Efficiency
from hbm_jax.models.selection import Selection
from hbm_jax.names import did_you_mean
from hbm_jax.validation import DataError


def _coordinate(data: PointsInGroups, selection: Selection | Efficiency) -> int:
    """Return the index of the coordinate of a selection."""
    coordinates = (*data.predictors, "y")
    if selection.quantity not in coordinates:
        raise DataError(
            f"Relation: selection {selection}: expected a measured coordinate, one of {', '.join(coordinates)}; found "
            f"{selection.quantity!r}{did_you_mean(selection.quantity, coordinates)}."
        )
    return coordinates.index(selection.quantity)


def _limit_of_points(data: PointsInGroups, selection: Selection) -> np.ndarray | None:
    """Return the known limit of each point, (J, M), or None where it has a prior."""
    if selection.of_objects:
        return np.asarray(data.cut)[..., _coordinate(data, selection)]
    if isinstance(selection.limit, dist.Distribution):
        return None
    return np.full(np.shape(data.used), selection.limit)


def _missing(data: PointsInGroups, selection: Selection) -> np.ndarray:
    """Return True for measured points beyond the limit of a step, which should be missing, (J, M)."""
    limit, value = _limit_of_points(data, selection), np.asarray(data.values)[..., _coordinate(data, selection)]
    if limit is None or not selection.is_step:
        return np.zeros(np.shape(data.used), bool)
    return np.asarray(data.used) & (value < limit if selection.missing == "below" else value > limit)


def inside(data: PointsInGroups, selections: Sequence[Any]) -> PointsInGroups:
    """Return the data with values beyond the limit of a step moved to the limit, and never at an efficiency of 0."""
    values = np.array(data.values)
    for selection in selections:
        if isinstance(selection, Efficiency):
            column = values[..., _coordinate(data, selection)]
            column[...] = selection.moved_inside(column)
        if not isinstance(selection, Selection):
            continue
        column = values[..., _coordinate(data, selection)]  # a view
        missing = _missing(data, selection)
        if missing.any():
            column[missing] = np.asarray(_limit_of_points(data, selection))[missing]
    return data.replace_observations(values)


def _efficiency(data: PointsInGroups, selection: Efficiency) -> np.ndarray:
    """Return the efficiency at the measured values, (J, M)."""
    value = np.asarray(data.values)[..., _coordinate(data, selection)]
    return selection.probability_at(value)


def check_probability(data: PointsInGroups, selection: Efficiency | DetectionFunction) -> None:
    """Raise an error for limits in the data, and for points that an efficiency or a function does not detect."""
    prefix, used = f"Relation: selection {selection}", np.asarray(data.used)
    if isinstance(selection, Efficiency):
        probability = _efficiency(data, selection)
    elif len(data.predictors) > 1:
        raise DataError(f"{prefix}: expected one predictor; found {len(data.predictors)}.")
    else:
        values = np.asarray(data.values)
        probability = np.broadcast_to(selection.function(values[..., 0], values[..., 1]), used.shape)
    if data.limited != "no":
        raise DataError(f"{prefix}: expected no upper or lower limits; found some. They need a selection by limits.")
    wrong = used & ~((probability > 0.0) & (probability <= 1.0))
    if wrong.any():
        j, i = np.argwhere(wrong)[0]
        raise DataError(
            f"{prefix}: expected a probability above 0 and up to 1 at every point; found {probability[j, i]:.6g} in "
            f"row {data.row[j, i]}."
        )


def check_selected(data: PointsInGroups, selection: Any) -> None:
    """Raise an error where the data contradict a selection or lack its limits."""
    if not isinstance(selection, Selection):
        check_probability(data, selection)
        return
    index, used = _coordinate(data, selection), np.asarray(data.used)
    option = f"Relation: selection {selection}"
    limits, column = _limit_of_points(data, selection), f"cut_{selection.quantity}"
    if selection.of_objects and (limits is None or selection.limit != column or not np.isfinite(limits[used]).all()):
        raise DataError(
            f"{option}: expected the column {column} with the limit of every point; found none. Name it with columns=, "
            f"or give the limit, such as {selection.quantity} > 1."
        )
    missing = _missing(data, selection)
    if missing.any():
        j, i = np.argwhere(missing)[0]
        raise DataError(
            f"{option}: expected no point beyond the limit; found {missing.sum()} of {used.sum()}, the first with "
            f"{selection.quantity} = {data.values[j, i, index]:.6g} in row {data.row[j, i]}. Leave them out, or give "
            f"the limit a width, such as +- 0.1."
        )
    censored = used & np.isfinite(data.limit) & (np.asarray(data.order)[..., -1, index] > 0)
    if censored.any():
        raise DataError(
            f"{option}: expected no upper or lower limits of {selection.quantity}; found {censored.sum()}. A selection "
            "in another coordinate can be combined with limits."
        )


def check_injections(data: PointsInGroups, pooling: str) -> None:
    """Raise an error for data without injections, or whose density is not that of single points of one line."""
    prefix = "Relation: selection='injections' expects"
    if not len(data.injections):
        raise DataError(f"{prefix} injections; found none. Read them with injections= of read_relation.")
    if pooling != "complete":
        raise DataError(f"{prefix} one line for all points, pooling='complete'; found pooling={pooling!r}.")
    if data.limited != "no" or np.any(data.common_error_y) or np.any(data.common_error_x):
        unsupported = "limits" if data.limited != "no" else "common errors"
        raise DataError(f"{prefix} points without limits and common errors; found {unsupported}.")
